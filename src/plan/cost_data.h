// Reads the records of data/engines and data/curves into structs by the field names of cost_fields.h.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"
#include "plan/cost_fields.h"

namespace fathom::plan {

/// Fills the fields that `record` names ({"a": {"b": 1}} names "a.b") and leaves the others. An unknown name or a wrong
/// type is an error that names `what` and the field; so is a number that is negative or not finite.
Status read_record(const Json& record, std::string_view what, DeviceCurves& out);
Status read_record(const Json& record, std::string_view what, LinkCurves& out);
Status read_record(const Json& record, std::string_view what, EngineProfile& out);

}  // namespace fathom::plan
