#include "plan/offload_answer.h"

#include <cmath>

#include "plan/answer.h"
#include "plan/cost_curves.h"
#include "plan/cost_model.h"
#include "plan/engine_profile.h"

namespace fathom::plan {
namespace {

using model::WeightClass;

/// Bytes that can leave the device, by layer of this share.
std::vector<OffloadLayer> layers_of(const model::WeightTable& table, const WeightBytes& bytes, std::int64_t layers) {
  std::vector<OffloadLayer> found(static_cast<std::size_t>(layers));
  for (const model::WeightEntry& entry : table.entries()) {
    if (entry.layer < 0 || entry.layer >= layers || entry.vector || entry.part != model::WeightPart::kMain) continue;
    const bool expert = entry.cls == WeightClass::kRoutedExpert;
    if (!expert && entry.cls != WeightClass::kAttention && entry.cls != WeightClass::kDenseFfn &&
        entry.cls != WeightClass::kSharedExpert)
      continue;
    const auto size = static_cast<Bytes>(static_cast<double>(entry.elements()) *
                                         bytes.per_element[static_cast<std::size_t>(entry.cls)]);
    OffloadLayer& layer = found[static_cast<std::size_t>(entry.layer)];
    layer.all += size;
    if (expert) layer.experts += size;
  }
  return found;
}

void set_experts(const model::WeightTable& table, const model::ModelSpec& spec, OffloadCase& problem) {
  for (const model::WeightEntry& entry : table.entries())
    if (entry.cls == WeightClass::kRoutedExpert && entry.part == model::WeightPart::kMain) {
      problem.experts = static_cast<double>(entry.experts);
      problem.expert_flops = 6.0 * static_cast<double>(entry.rows) * static_cast<double>(entry.cols);
    }
  problem.experts_total = static_cast<double>(spec.routing.experts);
  problem.experts_per_token = static_cast<double>(spec.routing.top_k);
}

}  // namespace

std::optional<OffloadAnswer> offload_answer(const PlanRequest& asked, const Candidate& nearest) {
  if (nearest.memory.fits || asked.task != Task::kChat || asked.cluster.device.is_cpu() || nearest.layout.devices() > 1)
    return std::nullopt;
  PlanRequest request = asked;
  Candidate best = nearest;
  if (!request.engine->own_kernels) {
    const auto own = find_engine("fathom");
    if (!own) return std::nullopt;
    request.engine = *own;
    request.kv = nullptr;
    auto candidate = evaluate_layout(request, nearest.layout);
    if (!candidate || candidate->memory.fits) return std::nullopt;
    best = *std::move(candidate);
  }
  const auto share = request.model->share({});
  const auto weights = request.model->share_weights({}, *best.weights);
  const auto tables = curve_tables();
  if (!share || !weights || !tables || !best.time.ttft_ms) return std::nullopt;
  const model::ModelSpec& spec = request.model->spec();
  OffloadAnswer answer;
  OffloadCase& problem = answer.problem;
  problem.layers = layers_of((*share)->weights(), *(*weights)->bytes, spec.layers);
  set_experts((*share)->weights(), spec, problem);
  problem.over = best.memory.over_bytes;
  if (request.cluster.host.bytes_per_second > 0)
    problem.rates.link = request.cluster.host.bytes_per_second * find_curves(**tables, request.cluster).device.pcie;
  const std::int64_t chunk = std::max<std::int64_t>(best.memory.chunk_tokens, 1);
  problem.prefill_tokens = std::max<std::int64_t>(std::min(chunk, request.input), 1);
  problem.decode_tokens = std::max<std::int64_t>(best.batch, 1);
  problem.prefill_passes = static_cast<double>(best.batch) *
                           std::ceil(static_cast<double>(request.input) / static_cast<double>(problem.prefill_tokens));
  problem.decode_passes = static_cast<double>(request.output);
  problem.prefill_seconds = best.time.ttft_ms->value / 1e3 / std::max(problem.prefill_passes, 1.0);
  problem.decode_seconds = best.time.tpot_ms ? best.time.tpot_ms->value / 1e3 : 0;
  const auto plan = plan_offload(problem, OffloadWish::kAuto);
  if (!plan || (request.cluster.host_memory_bytes > 0 && plan->moved_bytes > request.cluster.host_memory_bytes))
    return std::nullopt;
  answer.plan = *plan;
  answer.ttft_ms = 1e3 * problem.prefill_passes * plan->prefill_seconds;
  answer.tpot_ms = 1e3 * plan->decode_seconds;
  return answer;
}

}  // namespace fathom::plan
