#include "plan/answer_text.h"

#include <cmath>

#include "base/i18n.h"
#include "base/strings.h"
#include "base/units.h"
#include "plan/engine_profile.h"

namespace fathom::plan {
namespace {

std::string device_name(const PlanRequest& request) {
  return request.cluster.device.name.empty() ? request.cluster.device.id : request.cluster.device.name;
}

void add(std::vector<std::string>& parts, std::string_view name, std::int64_t value, std::int64_t silent) {
  if (value != silent) parts.push_back(std::string(name) + " " + std::to_string(value));
}

}  // namespace

std::string why_not(const PlanRequest& request, const Candidate& candidate) {
  const MemoryPlan& memory = candidate.memory;
  if (memory.fits) return {};
  const TextArgs args{{"device", device_name(request)},
                      {"stage", std::to_string(memory.stage)},
                      {"category", tr("plan.category." + std::string(category_name(memory.over_category)))},
                      {"over", format_bytes(memory.over_bytes)},
                      {"over_bytes", std::to_string(memory.over_bytes)},
                      {"need", format_bytes(memory.bytes.capacity + memory.over_bytes)},
                      {"capacity", format_bytes(memory.bytes.capacity)}};
  return tr(candidate.layout.pp > 1 ? "plan.why_not_stage" : "plan.why_not", args);
}

std::string layout_text(const Layout& layout, bool training) {
  std::vector<std::string> parts{"tp " + std::to_string(layout.tp)};
  add(parts, "pp", layout.pp, 1);
  add(parts, "vp", layout.vp, 1);
  add(parts, "cp", layout.cp, 1);
  add(parts, "dp", layout.dp, 1);
  add(parts, "dp_attention", layout.dp_attention, 1);
  add(parts, "ep", layout.ep, 1);
  add(parts, "expert_tp", layout.expert_tp, layout.ep > 1 ? 1 : layout.tp);
  if (training) {
    parts.push_back("zero " + std::to_string(layout.zero));
    const bool some = layout.recompute == Recompute::kFull && layout.recompute_share < 1;
    parts.push_back("recompute " + std::string(recompute_name(layout.recompute)) +
                    (some ? " × " + std::to_string(std::lround(layout.recompute_share * 100)) + " %" : ""));
    if (layout.offload != Offload::kNone) parts.push_back("offload " + std::string(offload_name(layout.offload)));
    parts.push_back("micro_batch " + std::to_string(layout.micro_batch) + " × " + std::to_string(layout.micro_batches));
  }
  return join(parts, " · ");
}

std::string way_out_text(const PlanRequest& request, const WayOut& way) {
  static constexpr std::string_view names[] = {"smaller_weights", "smaller_kv",   "less_context", "smaller_batch",
                                               "more_devices",    "other_layout", "other_model",  "other_hardware",
                                               "offload",         "recompute"};
  return tr("plan.way." + std::string(names[static_cast<int>(way.kind)]),
            {{"what", way.what},
             {"total", format_bytes(way.total)},
             {"device", device_name(request)},
             {"devices", std::to_string(request.cluster.devices)}});
}

}  // namespace fathom::plan
