#include "text/post_processor.h"

#include "base/json.h"
#include "text/fields.h"
#include "text/vocabulary.h"

namespace fathom::text {
namespace {

constexpr std::string_view kPostProcessorPart = "post_processor";

// The ids of a special token named in a template.
Result<std::vector<std::int32_t>> ids_of(const Json& node, const std::string& name) {
  const auto table = node.find("special_tokens");
  if (table == node.end() || !table->is_object() || !table->contains(name))
    return bad_field(kPostProcessorPart, "special_tokens");
  const Json& entry = (*table)[name];
  FATHOM_TRY(const Json* list, array_field(entry, kPostProcessorPart, "ids"));
  std::vector<std::int32_t> ids;
  for (const Json& id : *list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > kMaxTokenId)
      return bad_field(kPostProcessorPart, "ids");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

Status add_template(const Json& node, PostProcessor& out) {
  FATHOM_TRY(const Json* items, array_field(node, kPostProcessorPart, "single"));
  std::vector<std::int32_t> before, behind;
  bool text_seen = false;
  for (const Json& item : *items) {
    if (!item.is_object() || item.size() != 1) return bad_field(kPostProcessorPart, "single");
    const std::string kind = item.items().begin().key();
    FATHOM_TRY(const std::string id, string_field(item.front(), kPostProcessorPart, "id"));
    if (kind == "SpecialToken") {
      FATHOM_TRY(const auto ids, ids_of(node, id));
      std::vector<std::int32_t>& side = text_seen ? behind : before;
      side.insert(side.end(), ids.begin(), ids.end());
    } else if (kind == "Sequence" && id == "A" && !text_seen) {
      text_seen = true;
    } else {
      return bad_field(kPostProcessorPart, "single");
    }
  }
  if (!text_seen) return bad_field(kPostProcessorPart, "single");
  out.before.insert(out.before.begin(), before.begin(), before.end());
  out.behind.insert(out.behind.end(), behind.begin(), behind.end());
  return {};
}

Status add(const Json& node, PostProcessor& out) {
  FATHOM_TRY(const std::string type, type_of(node, kPostProcessorPart));
  if (type == "ByteLevel") return {};  // moves offsets only
  if (type == "TemplateProcessing") return add_template(node, out);
  if (type != "Sequence") return unknown_type(kPostProcessorPart, type, "TemplateProcessing, ByteLevel, Sequence");
  FATHOM_TRY(const Json* parts, array_field(node, kPostProcessorPart, "processors"));
  for (const Json& part : *parts) FATHOM_TRY_VOID(add(part, out));
  return {};
}

}  // namespace

Result<PostProcessor> PostProcessor::from_json(const Json& node) {
  PostProcessor out;
  if (!node.is_null()) FATHOM_TRY_VOID(add(node, out));
  return out;
}

}  // namespace fathom::text
