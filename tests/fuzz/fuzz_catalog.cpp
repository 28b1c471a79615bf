// Catalog files that a user wrote, and the names he asks for. The first byte chooses which of the four doors is tried.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "hardware/catalog_describe.h"
#include "hardware/catalog_load.h"
#include "model/catalog_load.h"
#include "model/catalog_match.h"

namespace {

using namespace fathom;

// Small facts to overlay, so that one run stays in microseconds.
constexpr std::string_view kHardware =
    R"({"as_of": "2026", "links": [{"id": "net", "name": "n", "kind": "link", "gb_s": 10}],
  "accelerators": [{"id": "card-80gb", "vendor": "v", "name": "Card 80GB", "memory": {"marketed_gb": 80, "bandwidth_gb_s": 1000},
    "peak_dense_tflops": {"bf16": 100}, "node": {"devices": 8, "inter_link": "net"}}],
  "cpus": [{"id": "cpu", "name": "c", "peak_gb_s": 100}], "storage": [{"id": "disk", "name": "d", "read_gb_s": 1}],
  "offers": [{"id": "cloud/one", "accelerator": "card-80gb", "on_demand_usd_per_hour": 2}],
  "sources": [{"id": "s", "url": "u", "what": "w", "date": "2026", "tier": "A"}]})";
constexpr std::string_view kModels = R"({"family": "f", "as_of": "2026", "tokenizers": [{"id": "t", "vocab_size": 10}],
  "models": [{"id": "me/one", "tokenizer": "t", "config": {"model_type": "llama"}}, {"id": "me/two", "same_config_as": "me/one"}]})";

void hardware_file(std::string_view text) {
  hardware::CatalogLoader loader;
  if (!loader.add(kHardware, "base", false)) __builtin_trap();
  if (const auto added = loader.add(text, "user", true); !added) return static_cast<void>(error_text(added.error()));
  const auto catalog = loader.build();
  if (!catalog) return static_cast<void>(error_text(catalog.error()));
  for (const hardware::Accelerator& a : catalog->accelerators()) {
    static_cast<void>(hardware::figures(a));
    static_cast<void>(hardware::record_json(*catalog, a));
    const auto choice = catalog->find(a.id);
    if (!choice || choice->accelerator != &a) __builtin_trap();
    static_cast<void>(catalog->parse("8x" + a.id));
  }
  for (const hardware::CloudOffer& offer : catalog->offers()) static_cast<void>(catalog->parse(offer.id));
  static_cast<void>(hardware::list_json(catalog->links()));
}

void model_file(std::string_view text) {
  model::ModelCatalogLoader loader;
  if (!loader.add(kModels, "base", false)) __builtin_trap();
  if (const auto added = loader.add(text, "user", true); !added) return static_cast<void>(error_text(added.error()));
  const auto catalog = loader.build();
  if (!catalog) return static_cast<void>(error_text(catalog.error()));
  for (const model::ModelEntry& entry : catalog->models()) {
    const auto found = catalog->find(entry.id);  // an id always leads to its entry
    if (!found || (*found)->id != entry.id) __builtin_trap();
  }
}

void hardware_name(std::string_view text) {
  static const auto catalog = hardware::Catalog::load("/nonexistent");
  if (!catalog) __builtin_trap();
  const auto choice = catalog->parse(text);
  if (choice && (choice->accelerator == nullptr || choice->count < 1)) __builtin_trap();
  static_cast<void>(catalog->find(text, fathom::Bytes{text.size()} << 32));
  static_cast<void>(catalog->find_cpu(text));
  static_cast<void>(catalog->find_link(text));
  static_cast<void>(catalog->find_offer(text));
}

void model_name(std::string_view text) {
  static const auto catalog = model::ModelCatalog::load("/nonexistent");
  if (!catalog) __builtin_trap();
  static_cast<void>(catalog->find(text));
  static_cast<void>(model::parse_parameter_count(text));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      hardware_file(text);
      break;
    case 1:
      model_file(text);
      break;
    case 2:
      hardware_name(text);
      break;
    default:
      model_name(text);
      break;
  }
  return 0;
}
