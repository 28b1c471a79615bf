#include "base/json.h"

#include <cmath>

#include "base/strings.h"

namespace fathom {
namespace {

// Deepest nesting of brackets outside strings: checked before parsing, so that a hostile file costs one pass.
int nesting_depth(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

tl::unexpected<Error> wrong_type(std::string_view key, std::string_view what, std::string_view expected,
                                 const Json& value) {
  return fail("base.json_wrong_type", {{"key", printable(key)},
                                       {"what", std::string(what)},
                                       {"expected", std::string(expected)},
                                       {"value", printable(dump_json(value), 40)}});
}

const Json* find(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(std::string(key));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view what, int max_depth) {
  if (nesting_depth(text) > max_depth)
    return fail("base.json_too_deep", {{"what", std::string(what)}, {"limit", std::to_string(max_depth)}});
  Json value = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    std::size_t at = 0;  // find where it stops being JSON, for the message
    std::string reason;
    try {
      static_cast<void>(Json::parse(text.begin(), text.end()));
    } catch (const nlohmann::json::parse_error& error) {
      at = error.byte;
    } catch (const std::exception&) {
    }
    return fail("base.json_invalid", {{"what", std::string(what)}, {"byte", std::to_string(at)}});
  }
  return value;
}

Result<std::optional<std::int64_t>> json_integer(const Json& object, std::string_view key, std::string_view what) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned() && value->get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX))
    return static_cast<std::int64_t>(value->get<std::uint64_t>());
  if (value->is_number_integer() && !value->is_number_unsigned()) return value->get<std::int64_t>();
  if (value->is_number_float()) {  // 4096.0 is an integer that somebody's tool wrote as a float
    const double number = value->get<double>();
    if (std::isfinite(number) && number == std::floor(number) && std::fabs(number) < 0x1p53)
      return static_cast<std::int64_t>(number);
  }
  return wrong_type(key, what, "integer", *value);
}

Result<std::optional<double>> json_number(const Json& object, std::string_view key, std::string_view what) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) return wrong_type(key, what, "number", *value);
  const double number = value->get<double>();
  if (!std::isfinite(number)) return wrong_type(key, what, "finite number", *value);
  return number;
}

Result<std::optional<bool>> json_bool(const Json& object, std::string_view key, std::string_view what) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) return wrong_type(key, what, "true or false", *value);
  return value->get<bool>();
}

Result<std::optional<std::string>> json_string(const Json& object, std::string_view key, std::string_view what) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) return wrong_type(key, what, "string", *value);
  return value->get<std::string>();
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace fathom
