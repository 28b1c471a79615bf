// Reading the parts of a tokenizer.json: every field has a type, and a wrong one is an error that names it.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "text/regex.h"

namespace fathom::text {

/// The "type" of a component; error unless `node` is an object with one. `part` names the component in errors.
Result<std::string> type_of(const Json& node, std::string_view part);
tl::unexpected<Error> unknown_type(std::string_view part, std::string_view type, std::string_view known);
tl::unexpected<Error> bad_field(std::string_view part, std::string_view field);
Result<std::string> string_field(const Json& node, std::string_view part, std::string_view field);
Result<bool> bool_field(const Json& node, std::string_view part, std::string_view field, bool if_absent);
/// A string of exactly one character.
Result<std::string> char_field(const Json& node, std::string_view part, std::string_view field);
Result<const Json*> array_field(const Json& node, std::string_view part, std::string_view field);
/// {"String": …} or {"Regex": …}.
Result<Regex> pattern_field(const Json& node, std::string_view part, std::string_view field);

}  // namespace fathom::text
