// Careful reading of JSON that somebody else wrote. Include from .cpp files only: the header is heavy.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fathom {

using Json = nlohmann::ordered_json;

/// Parses UTF-8 JSON without exceptions; refuses nesting deeper than `max_depth`. `what` names the source in errors.
Result<Json> parse_json(std::string_view text, std::string_view what, int max_depth = 64);

// Typed access. A key that is absent or null answers nullopt; one of another type, or a number that does not fit, is an
// error.
Result<std::optional<std::int64_t>> json_integer(const Json& object, std::string_view key, std::string_view what);
Result<std::optional<double>> json_number(const Json& object, std::string_view key, std::string_view what);
Result<std::optional<bool>> json_bool(const Json& object, std::string_view key, std::string_view what);
Result<std::optional<std::string>> json_string(const Json& object, std::string_view key, std::string_view what);

/// Serialises for machines: valid UTF-8 always (bad bytes replaced), no exceptions.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace fathom
