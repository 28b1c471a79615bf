#include "plan/cost_curves.h"

#include <algorithm>

#include "base/embedded.h"
#include "base/files.h"
#include "plan/cost_data.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kDevices = "curves/devices.json", kLinks = "curves/links.json";

template <class Record>
Result<std::vector<Record>> read_table(std::string_view path, std::string_view list,
                                       Status (*fill)(const Json&, const std::vector<Record>&, std::string_view,
                                                      Record&)) {
  const std::optional<std::string> text = data_file(path);
  if (!text) return fail("plan_cost.missing_file", {{"file", std::string(path)}});
  FATHOM_TRY(const Json document, parse_json(*text, path));
  if (!document.is_object() || !document.contains(list) || !document[std::string(list)].is_array())
    return fail("plan_cost.bad_field", {{"file", std::string(path)}, {"field", std::string(list)}});
  std::vector<Record> records;
  for (const Json& item : document[std::string(list)]) {
    Record record;
    FATHOM_TRY_VOID(fill(item, records, path, record));
    records.push_back(std::move(record));
  }
  return records;
}

Status fill_device(const Json& item, const std::vector<DeviceCurves>& before, std::string_view what,
                   DeviceCurves& out) {
  if (!item.is_object()) return fail("plan_cost.not_an_object", {{"file", std::string(what)}});
  const Json base = item.value("base", Json());
  if (base.is_string()) {
    const auto parent = std::find_if(before.begin(), before.end(),
                                     [&](const DeviceCurves& c) { return c.id == base.get<std::string>(); });
    if (parent == before.end())
      return fail("plan_cost.bad_base", {{"file", std::string(what)}, {"base", base.get<std::string>()}});
    out = *parent;
    out.sources.clear();
    out.measured = false;
  }
  return read_record(item, what, out);
}

Status fill_link(const Json& item, const std::vector<LinkCurves>&, std::string_view what, LinkCurves& out) {
  return read_record(item, what, out);
}

Result<CurveTables> load_tables() {
  CurveTables tables;
  FATHOM_TRY(tables.devices, read_table<DeviceCurves>(kDevices, "devices", fill_device));
  FATHOM_TRY(tables.links, read_table<LinkCurves>(kLinks, "links", fill_link));
  return tables;
}

LinkCurves link_of(const CurveTables& tables, std::string_view kind) {
  LinkCurves fallback;
  for (const LinkCurves& link : tables.links) {
    if (link.kind == kind) return link;
    if (link.kind == "default") fallback = link;
  }
  return fallback;
}

const DeviceCurves* device_of(const CurveTables& tables, std::string_view id) {
  const auto found =
      std::find_if(tables.devices.begin(), tables.devices.end(), [&](const DeviceCurves& c) { return c.id == id; });
  return found == tables.devices.end() ? nullptr : &*found;
}

/// A sibling: the same architecture, and the same kind of memory when there is a choice.
const DeviceCurves* sibling_of(const CurveTables& tables, const hardware::Accelerator& accelerator) {
  const DeviceCurves* any = nullptr;
  const bool hbm = accelerator.memory.kind.starts_with("HBM");
  for (const DeviceCurves& c : tables.devices) {
    if (c.arch.empty() || c.arch != accelerator.arch || c.id.starts_with("default")) continue;
    if (any == nullptr) any = &c;
    if (c.hbm == hbm) return &c;
  }
  return any;
}

}  // namespace

Result<const CurveTables*> curve_tables() {
  static const Result<CurveTables> tables = load_tables();
  if (!tables) return tl::unexpected<Error>(tables.error());
  return &*tables;
}

Curves find_curves(const CurveTables& tables, const Cluster& cluster) {
  Curves curves;
  const DeviceCurves* device = nullptr;
  if (cluster.device.accelerator != nullptr) {
    const hardware::Accelerator& accelerator = *cluster.device.accelerator;
    curves.intra = link_of(tables, accelerator.node.intra_kind);
    device = device_of(tables, accelerator.id);
    if (device != nullptr) {
      curves.tier = device->measured ? ProvenanceTier::kMeasuredSame : ProvenanceTier::kMeasuredSibling;
    } else if ((device = sibling_of(tables, accelerator)) != nullptr) {
      curves.tier = ProvenanceTier::kMeasuredSibling;
    } else {
      device = device_of(tables, accelerator.vendor == "Apple" ? "default-apple" : "default");
    }
  } else {
    device = device_of(tables, "default-cpu");
    curves.intra = link_of(tables, "none");
    if (cluster.device.probed) curves.tier = ProvenanceTier::kMeasuredHere;
  }
  curves.inter = link_of(tables, "network");
  if (device != nullptr) curves.device = *device;
  return curves;
}

}  // namespace fathom::plan
