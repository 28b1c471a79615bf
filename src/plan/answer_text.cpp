#include "plan/answer_text.h"

#include "base/i18n.h"
#include "base/units.h"

namespace fathom::plan {

std::string why_not(const PlanRequest& request, const Candidate& candidate) {
  const MemoryPlan& memory = candidate.memory;
  if (memory.fits) return {};
  const TextArgs args{{"device", request.cluster.device.name.empty() ? request.cluster.device.id : request.cluster.device.name},
                      {"stage", std::to_string(memory.stage)},
                      {"category", tr("plan.category." + std::string(category_name(memory.over_category)))},
                      {"over", format_bytes(memory.over_bytes)},
                      {"over_bytes", std::to_string(memory.over_bytes)},
                      {"need", format_bytes(memory.bytes.capacity + memory.over_bytes)},
                      {"capacity", format_bytes(memory.bytes.capacity)}};
  return tr(candidate.layout.pp > 1 ? "plan.why_not_stage" : "plan.why_not", args);
}

}  // namespace fathom::plan
