#include "plan/calibration.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "base/embedded.h"
#include "base/json.h"
#include "base/strings.h"

namespace fathom::plan {
namespace {

constexpr std::int64_t kVersion = 2;  // of what tables are of
constexpr std::size_t kMostBytes = 16 << 20, kMostPoints = 1 << 16, kMostAxes = 4;

struct FamilyInfo {
  std::string_view name;
  std::array<std::string_view, kMostAxes> axes;
};
constexpr std::array<FamilyInfo, kFamilyCount> kFamilies{{{"plain", {"tokens", "outputs", "inputs"}},
                                                          {"sum", {"tokens", "outputs", "inputs"}},
                                                          {"gates", {"tokens", "outputs", "inputs"}},
                                                          {"normed", {"tokens", "outputs", "inputs"}},
                                                          {"normed_gates", {"tokens", "outputs", "inputs"}},
                                                          {"grouped_in", {"tokens", "heads"}},
                                                          {"grouped_out", {"tokens", "heads"}},
                                                          {"decode", {"streams", "keys", "group"}},
                                                          {"chunk", {"tokens", "reach", "heads", "group"}},
                                                          {"latent_decode", {"sequences", "keys", "heads"}},
                                                          {"latent_chunk", {"tokens", "reach", "heads"}},
                                                          {"expanded", {"tokens", "heads"}},
                                                          {"rows", {"tokens", "queries", "keys"}},
                                                          {"latent_rows", {"tokens", "heads"}},
                                                          {"latent_fresh", {"tokens", "heads"}},
                                                          {"experts", {"tokens", "hidden", "inner", "choices"}},
                                                          {"route", {"tokens", "experts"}},
                                                          {"elementwise", {"bytes"}},
                                                          {"all_reduce", {"bytes"}},
                                                          {"step", {"bytes"}},
                                                          {"copy", {"bytes"}},
                                                          {"host_copy", {"bytes"}},
                                                          {"launch", {"ops"}}}};

/// Smoother than the larger of both.
double blend(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return high <= 0 ? 0 : high * std::cbrt(1 + std::pow(low / high, 3));
}

bool ascending(const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!(values[i] > 0) || !std::isfinite(values[i]) || (i > 0 && !(values[i] > values[i - 1]))) return false;
  return !values.empty();
}

Result<std::vector<double>> numbers(const Json& value, std::string_view what, std::string_view field) {
  if (!value.is_array() || value.size() > kMostPoints)
    return fail("calibration.bad_field", {{"file", std::string(what)}, {"field", std::string(field)}});
  std::vector<double> out;
  for (const Json& item : value) {
    if (!item.is_number() || !std::isfinite(item.get<double>()) || item.get<double>() < 0)
      return fail("calibration.bad_field", {{"file", std::string(what)}, {"field", std::string(field)}});
    out.push_back(item.get<double>());
  }
  return out;
}

Result<MeasuredTable> parse_table(const Json& item, std::string_view what) {
  const auto bad = [&](std::string_view field) {
    return fail("calibration.bad_field", {{"file", std::string(what)}, {"field", std::string(field)}});
  };
  if (!item.is_object()) return bad("tables");
  FATHOM_TRY(const auto family, json_string(item, "family", what));
  const auto found = std::find_if(kFamilies.begin(), kFamilies.end(),
                                  [&](const FamilyInfo& info) { return family && info.name == *family; });
  if (found == kFamilies.end()) return bad("family");
  MeasuredTable table;
  table.family = static_cast<Family>(found - kFamilies.begin());
  FATHOM_TRY(const auto format, json_string(item, "format", what));
  table.format = format.value_or("");
  const Json axes = item.value("axes", Json::object());
  if (!axes.is_object()) return bad("axes");
  for (const std::string_view name : family_axes(table.family)) {
    if (!axes.contains(name)) return bad(name);
    FATHOM_TRY(std::vector<double> values, numbers(axes[std::string(name)], what, name));
    table.axes.push_back(std::move(values));
  }
  for (const auto& [name, to] : {std::pair<const char*, std::vector<double>*>{"seconds", &table.seconds},
                                 {"bytes", &table.bytes},
                                 {"flops", &table.flops}}) {
    FATHOM_TRY(*to, numbers(item.value(name, Json()), what, name));
  }
  FATHOM_TRY_VOID(table.prepare());
  return table;
}

/// Four digits are more than a timing has.
double rounded(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.4g", value);
  return std::strtod(text, nullptr);
}
Json rounded(const std::vector<double>& values) {
  Json out = Json::array();
  for (const double value : values) out.push_back(rounded(value));
  return out;
}

std::uint64_t next_calibration() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

std::string_view family_name(Family family) { return kFamilies[static_cast<std::size_t>(family)].name; }

std::span<const std::string_view> family_axes(Family family) {
  const auto& axes = kFamilies[static_cast<std::size_t>(family)].axes;
  const auto end = std::find(axes.begin(), axes.end(), std::string_view());
  return {axes.data(), static_cast<std::size_t>(end - axes.begin())};
}

std::size_t MeasuredTable::points() const {
  std::size_t n = 1;
  for (const auto& axis : axes) n *= axis.size();
  return n;
}

double MeasuredTable::base(double moved, double done) const {
  return floor_ + blend(stream_ > 0 ? moved / stream_ : 0, rate_ > 0 ? done / rate_ : 0);
}

Status MeasuredTable::prepare() {
  const auto bad = [&] {
    return fail("calibration.bad_table", {{"family", std::string(family_name(family))}, {"format", format}});
  };
  if (axes.size() != family_axes(family).size() || !std::all_of(axes.begin(), axes.end(), ascending)) return bad();
  const std::size_t n = points();
  if (n > kMostPoints || seconds.size() != n || bytes.size() != n || flops.size() != n) return bad();
  if (!std::all_of(seconds.begin(), seconds.end(), [](double s) { return s > 0; })) return bad();
  floor_ = 0.5 * *std::min_element(seconds.begin(), seconds.end());
  stream_ = rate_ = 0;
  for (std::size_t i = 0; i < n; ++i)
    stream_ = std::max(stream_, bytes[i] / seconds[i]), rate_ = std::max(rate_, flops[i] / seconds[i]);
  misses_.clear();
  for (std::size_t i = 0; i < n; ++i) misses_.push_back(std::log(seconds[i] / base(bytes[i], flops[i])));
  if (family <= Family::kNormedGates) {
    // The first point of the tokens' axis with the most outputs and inputs: nearly all of what moves is weights.
    const double outputs = axes[1].back(), inputs = axes[2].back(), tokens = axes[0].front();
    bytes_per_element_ =
        (bytes[axes[1].size() * axes[2].size() - 1] - 4 * tokens * (outputs + inputs)) / (outputs * inputs);
  }
  return {};
}

double MeasuredTable::at(std::span<const double> place, double moved, double done) const {
  // Two neighbours and a share an axis; then a sum over the corners of the cell.
  std::array<std::size_t, kMostAxes> low{};
  std::array<double, kMostAxes> share{};
  for (std::size_t a = 0; a < axes.size(); ++a) {
    const std::vector<double>& axis = axes[a];
    const double x = std::clamp(place[a], axis.front(), axis.back());
    std::size_t i = static_cast<std::size_t>(std::upper_bound(axis.begin(), axis.end(), x) - axis.begin());
    i = std::min(i == 0 ? 0 : i - 1, axis.size() > 1 ? axis.size() - 2 : 0);
    low[a] = i;
    share[a] = axis.size() > 1 ? std::log(x / axis[i]) / std::log(axis[i + 1] / axis[i]) : 0;
  }
  double miss = 0;
  for (std::size_t corner = 0; corner < (std::size_t{1} << axes.size()); ++corner) {
    double weight = 1;
    std::size_t index = 0;
    for (std::size_t a = 0; a < axes.size(); ++a) {
      const bool up = (corner >> a & 1) != 0;
      weight *= up ? share[a] : 1 - share[a];
      index = index * axes[a].size() + std::min(low[a] + (up ? 1 : 0), axes[a].size() - 1);
    }
    if (weight > 0) miss += weight * misses_[index];
  }
  return base(moved, done) * std::exp(miss);
}

const MeasuredTable* Calibration::find(Family family, std::string_view format) const {
  const auto found = std::find_if(tables.begin(), tables.end(),
                                  [&](const MeasuredTable& t) { return t.family == family && t.format == format; });
  return found == tables.end() ? nullptr : &*found;
}

const MeasuredTable* Calibration::find_like(Family family, double bytes_per_element, std::string_view prefix) const {
  const MeasuredTable* best = nullptr;
  double nearest = 0;
  for (const MeasuredTable& table : tables) {
    if (table.family != family) continue;
    const MeasuredTable* weights = family <= Family::kNormedGates ? &table : find(Family::kPlain, table.format);
    double distance = weights != nullptr && weights->bytes_per_element() > 0
                          ? std::abs(std::log(weights->bytes_per_element() / bytes_per_element))
                          : 9;
    if (!prefix.empty() && !table.format.starts_with(prefix))
      distance += 0.05;  // of as many bytes, the one of that name
    if (best == nullptr || distance < nearest) best = &table, nearest = distance;
  }
  return best;
}

void Calibration::keep_from(const Calibration& other) {
  if (other.device != device || other.name != name || other.threads != threads) return;
  for (const MeasuredTable& table : other.tables)
    if (find(table.family, table.format) == nullptr) tables.push_back(table);
}

Result<Calibration> parse_calibration(std::string_view json, std::string_view what) {
  FATHOM_TRY(const Json document, parse_json(json, what));
  if (!document.is_object()) return fail("calibration.bad_field", {{"file", std::string(what)}, {"field", "-"}});
  Calibration out;
  for (const auto& [key, to] : {std::pair<const char*, std::string*>{"device", &out.device},
                                {"name", &out.name},
                                {"date", &out.date},
                                {"source", &out.source}}) {
    FATHOM_TRY(const auto text, json_string(document, key, what));
    if (!text) return fail("calibration.bad_field", {{"file", std::string(what)}, {"field", key}});
    *to = *text;
  }
  FATHOM_TRY(const auto threads, json_integer(document, "threads", what));
  out.threads = static_cast<int>(std::clamp<std::int64_t>(threads.value_or(0), 0, 1 << 20));
  // What a table is of has changed: an older file's are of other calls.
  FATHOM_TRY(const auto version, json_integer(document, "version", what));
  if (version.value_or(1) != kVersion) return fail("calibration.old", {{"file", std::string(what)}});
  const Json tables = document.value("tables", Json());
  if (!tables.is_array()) return fail("calibration.bad_field", {{"file", std::string(what)}, {"field", "tables"}});
  for (const Json& item : tables) {
    FATHOM_TRY(MeasuredTable table, parse_table(item, what));
    out.tables.push_back(std::move(table));
  }
  out.serial = next_calibration();
  return out;
}

std::string calibration_json(const Calibration& calibration) {
  // A table a few lines: for people who look, and for what compares versions.
  Json head = {{"about",
                "What Fathom's own ops took on this device (docs/calibration.md). Seconds; bytes and FLOPs are those "
                "of a point."},
               {"version", kVersion},
               {"device", calibration.device},
               {"name", calibration.name},
               {"date", calibration.date},
               {"source", calibration.source},
               {"threads", calibration.threads}};
  std::string out = dump_json(head, 1);
  out.resize(out.size() - 2);  // "\n}"
  out += ",\n \"tables\": [";
  for (std::size_t i = 0; i < calibration.tables.size(); ++i) {
    const MeasuredTable& table = calibration.tables[i];
    Json axes = Json::object();
    const auto names = family_axes(table.family);
    for (std::size_t a = 0; a < names.size(); ++a) axes[std::string(names[a])] = table.axes[a];
    out += i == 0 ? "\n" : ",\n";
    out += "  {\"family\": \"" + std::string(family_name(table.family)) +
           "\", \"format\": " + dump_json(Json(table.format)) + ", \"axes\": " + dump_json(axes);
    out += ",\n   \"seconds\": " + dump_json(rounded(table.seconds)) +
           ",\n   \"bytes\": " + dump_json(rounded(table.bytes)) +
           ",\n   \"flops\": " + dump_json(rounded(table.flops)) + "}";
  }
  return out + "\n ]\n}\n";
}

Path calibration_path(std::string_view device) {
  return user_folder() / "calibration" / (std::string(device) + ".json");
}

bool is_of(const Calibration& calibration, const Device& device) {
  if (!device.is_cpu()) return calibration.device == device.id;
  return calibration.device == "cpu" && device.id == "cpu" && calibration.name == device.name &&
         calibration.threads == device.cores;
}

namespace {

using Found = std::shared_ptr<const Calibration>;

Result<Found> read_calibration(const std::string& id) {
  std::error_code ignored;
  const Path own = calibration_path(id);
  if (std::filesystem::is_regular_file(own, ignored)) {
    FATHOM_TRY(const std::string text, read_file(own, kMostBytes));
    FATHOM_TRY(Calibration calibration, parse_calibration(text, own.string()));
    calibration.here = true;
    return std::make_shared<const Calibration>(std::move(calibration));
  }
  const std::string embedded = "calibration/" + id + ".json";
  const auto text = embedded_file(embedded);
  if (!text) return Found();
  FATHOM_TRY(Calibration calibration, parse_calibration(*text, embedded));
  return std::make_shared<const Calibration>(std::move(calibration));
}

}  // namespace

Result<std::shared_ptr<const Calibration>> find_calibration(const Device& device) {
  static std::mutex guard;
  static std::map<std::string, Result<Found>> kept;
  const std::string id = device.is_cpu() ? "cpu" : device.id;
  if (id.empty() || id.find('/') != std::string::npos) return Found();
  Result<Found> found = Found();
  {
    const std::lock_guard lock(guard);
    const std::string key = user_folder().string() + "\n" + id;  // tests have folders of their own
    auto at = kept.find(key);
    if (at == kept.end()) at = kept.emplace(key, read_calibration(id)).first;
    found = at->second;
  }
  if (!found || *found == nullptr || is_of(**found, device)) return found;
  return Found();
}

}  // namespace fathom::plan
