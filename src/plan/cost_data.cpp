#include "plan/cost_data.h"

#include <cmath>
#include <map>

namespace fathom::plan {
namespace {

void flatten(const Json& record, const std::string& prefix, std::map<std::string, const Json*>& out) {
  for (const auto& [key, value] : record.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_object())
      flatten(value, name, out);
    else
      out.emplace(name, &value);
  }
}

bool assign(const Json& value, double& out) {
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < 0) return false;
  out = value.get<double>();
  return true;
}
bool assign(const Json& value, bool& out) {
  if (!value.is_boolean()) return false;
  out = value.get<bool>();
  return true;
}
bool assign(const Json& value, std::int64_t& out) {
  if (!value.is_number_unsigned()) return false;
  const auto number = value.get<std::uint64_t>();
  if (number > std::uint64_t{1} << 60) return false;
  out = static_cast<std::int64_t>(number);
  return true;
}
bool assign(const Json& value, std::string& out) {
  if (!value.is_string()) return false;
  out = value.get<std::string>();
  return true;
}
bool assign(const Json& value, std::vector<std::string>& out) {
  if (!value.is_array()) return false;
  out.clear();
  for (const Json& item : value) {
    if (!item.is_string()) return false;
    out.push_back(item.get<std::string>());
  }
  return true;
}
bool assign(const Json& value, Scheduler& out) {
  std::string name;
  if (!assign(value, name)) return false;
  if (name == "static")
    out = Scheduler::kStatic;
  else if (name == "mixed")
    out = Scheduler::kMixed;
  else if (name == "prefill_first")
    out = Scheduler::kPrefillFirst;
  else
    return false;
  return true;
}

template <class Record>
Status read(const Json& record, std::string_view what, Record& out) {
  if (!record.is_object()) return fail("plan_cost.not_an_object", {{"file", std::string(what)}});
  std::map<std::string, const Json*> fields;
  flatten(record, "", fields);
  std::string wrong;
  visit_fields(out, [&](std::string_view name, auto& value) {
    const auto found = fields.find(std::string(name));
    if (found == fields.end()) return;
    if (!assign(*found->second, value) && wrong.empty()) wrong = std::string(name);
    fields.erase(found);
  });
  if (!wrong.empty()) return fail("plan_cost.bad_field", {{"file", std::string(what)}, {"field", wrong}});
  fields.erase("note");
  if (!fields.empty())
    return fail("plan_cost.unknown_field", {{"file", std::string(what)}, {"field", fields.begin()->first}});
  return {};
}

}  // namespace

Status read_record(const Json& record, std::string_view what, DeviceCurves& out) { return read(record, what, out); }
Status read_record(const Json& record, std::string_view what, LinkCurves& out) { return read(record, what, out); }
Status read_record(const Json& record, std::string_view what, EngineProfile& out) { return read(record, what, out); }

}  // namespace fathom::plan
