// Every model of the catalog, sized from its configuration alone, against the facts (tests/fixtures/model/facts.json).
#include "model/sizes.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "base/json.h"
#include "model/catalog.h"
#include "support/paths.h"

namespace fathom::model {
namespace {

TEST(Sizes, EveryCatalogModelMatchesTheFacts) {
  const auto text = read_file(test::fixtures() / "model" / "facts.json", 4 * kMiB);
  ASSERT_TRUE(text);
  const auto facts = parse_json(*text, "facts.json");
  ASSERT_TRUE(facts);
  const auto catalog = model_catalog();
  ASSERT_TRUE(catalog) << error_text(catalog.error());
  int checked = 0;
  for (const auto& [id, fact] : facts->items()) {
    SCOPED_TRACE(id);
    const auto entry = (*catalog)->find(id);
    ASSERT_TRUE(entry) << error_text(entry.error());
    const auto spec = parse_config((*entry)->config, id);
    ASSERT_TRUE(spec) << error_text(spec.error());
    const auto sized = size_model(*spec);
    ASSERT_TRUE(sized) << error_text(sized.error());
    const Json& params = fact["params"];
    EXPECT_EQ(sized->sizes.parameters_total, params["total"].get<std::uint64_t>());
    EXPECT_EQ(sized->sizes.parameters_main, params["main"].get<std::uint64_t>());
    EXPECT_EQ(sized->sizes.parameters_active_with_embedding,
              params["active_per_token_incl_embedding"].get<std::uint64_t>());
    EXPECT_EQ(sized->sizes.parameters_active, params["active_per_token_excl_embedding"].get<std::uint64_t>());
    EXPECT_EQ(sized->sizes.checkpoint_bytes, params["checkpoint_bytes"].get<std::uint64_t>());
    EXPECT_EQ(sized->sizes.checkpoint_bytes_mtp, params["checkpoint_bytes_mtp"].get<std::uint64_t>());
    if (params.contains("checkpoint_tensors") && !params["checkpoint_tensors"].is_null()) {
      EXPECT_EQ(sized->sizes.tensors, params["checkpoint_tensors"].get<std::uint64_t>());
    }
    for (const auto& [key, value] : fact["kv"].items()) {
      const bool growing = key.starts_with("bytes_per_token_"), fixed = key.starts_with("fixed_");
      if (!growing && !fixed) continue;
      const std::string name = key.substr(growing ? 16 : 6);
      const auto& figures = growing ? sized->kv.per_token : sized->kv.fixed;
      const auto found = std::find_if(figures.begin(), figures.end(), [&](const KvFigure& f) { return f.key == name; });
      ASSERT_NE(found, figures.end()) << key;
      EXPECT_DOUBLE_EQ(found->bytes, value.get<double>()) << key;
    }
    ++checked;
  }
  EXPECT_EQ(checked, 67);
}

}  // namespace
}  // namespace fathom::model
