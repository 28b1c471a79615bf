#include "plan/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/files.h"
#include "base/strings.h"
#include "hardware/probe.h"
#include "plan/json_line.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kTextKeys[] = {"hardware", "network", "task",      "engine",    "weights",    "compute",
                                          "kv",       "offload", "recompute", "optimizer", "speculative"};

bool is_file(std::string_view name) {
  std::error_code ignored;
  return name.find('\0') == std::string_view::npos && name.size() < 4096 &&
         std::filesystem::is_regular_file(Path(name), ignored);
}

/// The stored profile when it is of this machine, else a quick look.
Result<hardware::Machine> this_machine() {
  FATHOM_TRY(std::optional<hardware::Machine> stored, hardware::load_profile());
  if (stored) return std::move(*stored);
  hardware::ProbeOptions options;
  options.effort = hardware::Effort::kQuick;
  options.disks = false;
  return hardware::probe(options);
}

Result<std::optional<Cluster>> cluster_named(const std::string& on) {
  const std::string name = to_lower(trim(on));
  if (name == "this" || name == "cpu") {
    FATHOM_TRY(const hardware::Machine machine, this_machine());
    FATHOM_TRY(Cluster cluster, machine_cluster(machine, name == "cpu"));
    return std::optional<Cluster>(std::move(cluster));
  }
  if (!is_file(on)) return std::optional<Cluster>();
  FATHOM_TRY(const std::string text, read_file(on, 16 * kMiB));
  FATHOM_TRY(const hardware::Machine machine, hardware::machine_from_json(text, on));
  FATHOM_TRY(Cluster cluster, machine_cluster(machine));
  return std::optional<Cluster>(std::move(cluster));
}

Status read_slo(std::string_view text, Slo& slo) {
  for (const std::string_view part : split(text, ',')) {
    const std::string_view wish = trim(part);
    if (wish.empty()) continue;
    const auto equals = wish.find('=');
    const std::string_view name = trim(wish.substr(0, equals));
    if (equals == std::string_view::npos || (name != "ttft" && name != "tpot"))
      return fail("plan.bad_slo", {{"text", printable(wish)}});
    FATHOM_TRY(const double seconds, parse_seconds(wish.substr(equals + 1)));
    (name == "ttft" ? slo.ttft_seconds : slo.tpot_seconds) = seconds;
  }
  return {};
}

void append_member(std::string& line, std::string_view key, std::string_view value) {
  line += line.size() > 1 ? "," : "";
  append_json_string(line, key);
  line += ':';
  const bool is_text =
      key == "model" || std::find(std::begin(kTextKeys), std::end(kTextKeys), key) != std::end(kTextKeys);
  // A number is passed on as it is typed; what is none becomes a text, which the reader of requests refuses by name.
  double number = 0;
  const auto end = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool is_number =
      !is_text && end.ec == std::errc{} && end.ptr == value.data() + value.size() && std::isfinite(number);
  if (is_number)
    line += value;
  else
    append_json_string(line, value);
}

}  // namespace

Result<double> parse_seconds(std::string_view text) {
  const std::string trimmed = to_lower(trim(text));
  double value = 0;
  const auto [end, error] = std::from_chars(trimmed.data(), trimmed.data() + trimmed.size(), value);
  const std::string_view unit =
      trim(std::string_view(end, static_cast<std::size_t>(trimmed.data() + trimmed.size() - end)));
  const double factor = unit.empty() || unit == "s" ? 1 : unit == "ms" ? 1e-3 : unit == "us" || unit == "µs" ? 1e-6 : 0;
  if (error != std::errc{} || factor == 0 || !(value > 0) || !std::isfinite(value))
    return fail("plan.bad_seconds", {{"text", printable(text)}});
  return value * factor;
}

Result<PlanRequest> request_from_options(const PlanOptions& options) {
  FATHOM_TRY(const std::optional<Cluster> cluster, cluster_named(options.on));
  std::string line = "{";
  append_member(line, "model", options.model);
  if (!cluster) append_member(line, "hardware", options.on);
  bool has_task = false, has_input = false;
  for (const auto& [key, value] : options.settings) {
    append_member(line, key, value);
    has_task = has_task || key == "task";
    has_input = has_input || key == "input";
  }
  if (!has_task) append_member(line, "task", "chat");
  line += '}';
  std::string ignored;
  FATHOM_TRY(PlanRequest request, parse_request(line, ignored, cluster ? &*cluster : nullptr));
  if (options.context) {
    if (*options.context < 1) return fail("plan.bad_context", {{"context", std::to_string(*options.context)}});
    if (is_training(request.task)) request.seq = *options.context;
    request.output =
        std::min(request.output, *options.context - (has_input ? std::min(request.input, *options.context) : 0));
    request.input = *options.context - request.output;
  }
  FATHOM_TRY_VOID(read_slo(options.slo, request.slo));
  if (!options.gpu_memory.empty()) {
    Bytes most = 0;
    if (!parse_bytes(options.gpu_memory, most))
      return fail("plan.bad_gpu_memory", {{"text", printable(options.gpu_memory)}});
    request.cluster.device.capacity_bytes = std::min(request.cluster.device.capacity_bytes, most);
  }
  return request;
}

}  // namespace fathom::plan
