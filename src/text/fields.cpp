#include "text/fields.h"

#include "base/strings.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

const Json* find(const Json& node, std::string_view field) {
  if (!node.is_object()) return nullptr;
  const auto found = node.find(std::string(field));
  return found == node.end() ? nullptr : &*found;
}

}  // namespace

tl::unexpected<Error> bad_field(std::string_view part, std::string_view field) {
  return fail("text.bad_field", {{"part", std::string(part)}, {"field", std::string(field)}});
}

tl::unexpected<Error> unknown_type(std::string_view part, std::string_view type, std::string_view known) {
  return fail_unsupported("text.unknown_type",
                          {{"part", std::string(part)}, {"type", printable(type)}, {"known", std::string(known)}});
}

Result<std::string> string_field(const Json& node, std::string_view part, std::string_view field) {
  const Json* value = find(node, field);
  if (value == nullptr || !value->is_string()) return bad_field(part, field);
  return value->get<std::string>();
}

Result<std::string> type_of(const Json& node, std::string_view part) { return string_field(node, part, "type"); }

Result<bool> bool_field(const Json& node, std::string_view part, std::string_view field, bool if_absent) {
  const Json* value = find(node, field);
  if (value == nullptr || value->is_null()) return if_absent;
  if (!value->is_boolean()) return bad_field(part, field);
  return value->get<bool>();
}

Result<std::string> char_field(const Json& node, std::string_view part, std::string_view field) {
  FATHOM_TRY(std::string text, string_field(node, part, field));
  if (count_chars(text) != 1) return bad_field(part, field);
  return text;
}

Result<const Json*> array_field(const Json& node, std::string_view part, std::string_view field) {
  const Json* value = find(node, field);
  if (value == nullptr || !value->is_array()) return bad_field(part, field);
  return value;
}

Result<Regex> pattern_field(const Json& node, std::string_view part, std::string_view field) {
  const Json* value = find(node, field);
  if (value == nullptr || !value->is_object() || value->size() != 1 || !value->front().is_string())
    return bad_field(part, field);
  const std::string kind = value->items().begin().key(), text = value->front().get<std::string>();
  if (kind == "String") return Regex::literal(text);
  if (kind == "Regex") return Regex::compile(text);
  return bad_field(part, field);
}

}  // namespace fathom::text
