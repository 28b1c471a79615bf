// Choosing a layout: memory first, since what does not fit is not worth timing; then time; then rank.
#include <algorithm>
#include <cmath>

#include "plan/answer.h"
#include "plan/cost_model.h"
#include "plan/layout_space.h"
#include "plan/ways_out.h"

namespace fathom::plan {
namespace {

constexpr std::size_t kRunnersUp = 4, kParetoLayouts = 24;

DType trace_type(const PlanRequest& request) {
  return request.cluster.device.is_cpu() || request.engine->own_kernels ? DType::f32 : DType::bf16;
}

/// Users that a request's figures are for: what it says, or for a server as many as fit.
std::int64_t users(const PlanRequest& request, const Layout& layout, const MemoryPlan& memory) {
  if (request.batch) return *request.batch;
  return std::max<std::int64_t>(1, memory.concurrent * layout.dp * layout.dp_attention);
}

Result<TimeEstimate> estimate(const PlanRequest& request, const Candidate& candidate) {
  const model::Sharding sharding = sharding_of(candidate.layout);
  CostInputs inputs{.request = &request, .layout = candidate.layout, .weights = candidate.weights, .kv = candidate.kv};
  FATHOM_TRY(inputs.share, request.model->share_weights(sharding, *candidate.weights));
  if (is_training(request.task)) {
    FATHOM_TRY(inputs.train, request.model->trace(sharding, Phase::kTrain, trace_type(request)));
  } else {
    FATHOM_TRY(inputs.prefill, request.model->trace(sharding, Phase::kPrefill, trace_type(request)));
    FATHOM_TRY(inputs.decode, request.model->trace(sharding, Phase::kDecode, trace_type(request)));
    if (calibration_for(request) != nullptr) {
      FATHOM_TRY(inputs.resume, request.model->trace(sharding, Phase::kContinue, trace_type(request)));
    }
  }
  inputs.batch = candidate.batch;
  inputs.concurrent = std::max<std::int64_t>(1, candidate.memory.concurrent);
  return estimate_time(inputs);
}

Result<Candidate> with_memory(const PlanRequest& request, const Layout& layout) {
  Candidate candidate{.layout = layout, .weights = request.weights};
  FATHOM_TRY(candidate.memory, plan_memory(request, layout));
  if (!is_training(request.task)) {
    FATHOM_TRY(candidate.kv, kv_format_of(request));
  }
  candidate.batch = users(request, layout, candidate.memory);
  return candidate;
}

/// Where it was left open, an engine that can computes no more layers again than memory asks for.
Result<Candidate> with_least_recompute(const PlanRequest& request, const Layout& layout) {
  FATHOM_TRY(Candidate most, with_memory(request, layout));
  if (!most.memory.fits || layout.recompute != Recompute::kFull || request.layout.recompute ||
      !request.engine->training.partial_recompute)
    return most;
  const std::int64_t layers = std::max<std::int64_t>(1, request.model->spec().layers / layout.pp);
  std::int64_t low = 0, high = layers;  // low layers are too few, high are enough
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    Layout some = layout;
    some.recompute_share = static_cast<double>(middle) / static_cast<double>(layers);
    FATHOM_TRY(Candidate candidate, with_memory(request, some));
    if (candidate.memory.fits)
      high = middle, most = candidate;
    else
      low = middle;
  }
  return most;
}

/// Smaller is better.
double score(const PlanRequest& request, const Candidate& candidate) {
  const TimeEstimate& time = candidate.time;
  if (is_training(request.task)) return -time.train_tokens_per_second_per_gpu.value_or(0);
  const double ttft = time.ttft_ms ? time.ttft_ms->value : 0, tpot = time.tpot_ms ? time.tpot_ms->value : 0;
  double late = 0;  // how far a wish is missed comes before everything else
  if (request.slo.ttft_seconds > 0) late += std::max(0.0, ttft / 1e3 / request.slo.ttft_seconds - 1);
  if (request.slo.tpot_seconds > 0) late += std::max(0.0, tpot / 1e3 / request.slo.tpot_seconds - 1);
  if (late > 0) return 1e12 * (1 + late);
  if (request.task == Task::kServe) return -time.output_tokens_per_second_per_gpu.value_or(0);
  return ttft + tpot * static_cast<double>(std::max<std::int64_t>(request.output - 1, 0));
}

/// By what memory says alone: those that fit first, then by how much is missing.
bool nearer(const Candidate& a, const Candidate& b) {
  if (a.memory.fits != b.memory.fits) return a.memory.fits;
  return a.memory.over_bytes < b.memory.over_bytes;
}

/// Recompute and offloading cost time and save memory, and nothing else: of layouts that are otherwise alike only the
/// first that fits is worth timing.
bool dominated(const Layout& a, const Layout& by) {
  Layout same = by;
  same.recompute = a.recompute;
  same.recompute_share = a.recompute_share;
  same.offload = a.offload;
  return same == a && a.recompute >= by.recompute && a.offload >= by.offload && !(a == by);
}

Result<std::vector<Candidate>> fitting(const PlanRequest& request, const std::vector<Layout>& layouts) {
  std::vector<Candidate> candidates;
  for (const Layout& layout : layouts) {
    if (std::any_of(candidates.begin(), candidates.end(),
                    [&](const Candidate& other) { return other.memory.fits && dominated(layout, other.layout); }))
      continue;
    FATHOM_TRY(Candidate candidate, with_least_recompute(request, layout));
    candidates.push_back(candidate);
  }
  const bool some_fit =
      std::any_of(candidates.begin(), candidates.end(), [](const Candidate& c) { return c.memory.fits; });
  if (some_fit) {
    std::erase_if(candidates, [](const Candidate& c) { return !c.memory.fits; });
  } else {
    // Nothing fits: the nearest is answered, with all its figures.
    std::stable_sort(candidates.begin(), candidates.end(), nearer);
    candidates.resize(std::min<std::size_t>(candidates.size(), 1));
  }
  return candidates;
}

/// The front of latency (time per token; for training none) against throughput a device, over layouts and numbers of
/// users.
Result<std::vector<Candidate>> pareto_front(const PlanRequest& request, const std::vector<Candidate>& ranked) {
  std::vector<Candidate> front;
  if (request.task != Task::kServe) return front;
  std::vector<Candidate> seen;
  for (std::size_t i = 0; i < std::min(ranked.size(), kParetoLayouts); ++i) {
    const std::int64_t most = users(request, ranked[i].layout, ranked[i].memory);
    for (std::int64_t batch = 1; batch <= most; batch *= 4) {
      FATHOM_TRY(Candidate candidate, evaluate_layout(request, ranked[i].layout, batch));
      if (candidate.memory.fits && candidate.time.tpot_ms && candidate.time.output_tokens_per_second_per_gpu)
        seen.push_back(candidate);
    }
    if (ranked[i].time.tpot_ms && ranked[i].time.output_tokens_per_second_per_gpu) seen.push_back(ranked[i]);
  }
  std::stable_sort(seen.begin(), seen.end(), [](const Candidate& a, const Candidate& b) {
    return a.time.tpot_ms->value < b.time.tpot_ms->value;
  });
  double best = 0;
  for (const Candidate& candidate : seen) {
    if (*candidate.time.output_tokens_per_second_per_gpu <= best * 1.02) continue;
    best = *candidate.time.output_tokens_per_second_per_gpu;
    front.push_back(candidate);
  }
  return front;
}

}  // namespace

Result<Candidate> evaluate_layout(const PlanRequest& request, const Layout& layout, std::optional<std::int64_t> batch) {
  if (batch && (!request.batch || *batch != *request.batch)) {
    PlanRequest other = request;
    other.batch = batch;
    return evaluate_layout(other, layout);
  }
  FATHOM_TRY(Candidate candidate, with_memory(request, layout));
  FATHOM_TRY(candidate.time, estimate(request, candidate));
  return candidate;
}

Result<PlanAnswer> make_plan(const PlanRequest& request, PlanScope scope) {
  PlanAnswer answer;
  FATHOM_TRY(std::vector<Layout> layouts, layout_space(request));
  answer.layouts_seen = layouts.size();
  answer.searched = layouts.size() > 1;
  FATHOM_TRY(std::vector<Candidate> candidates, fitting(request, layouts));
  if (!candidates.front().memory.fits && is_training(request.task) && !request.layout.offload &&
      !request.cluster.device.is_cpu()) {
    FATHOM_TRY(const std::vector<Layout> offloaded, layout_space(request, true));
    FATHOM_TRY(std::vector<Candidate> others, fitting(request, offloaded));
    if (others.front().memory.fits) candidates = std::move(others);
  }
  for (Candidate& candidate : candidates) {
    FATHOM_TRY(candidate.time, estimate(request, candidate));
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](const Candidate& a, const Candidate& b) { return score(request, a) < score(request, b); });
  if (scope == PlanScope::kReport && candidates.front().memory.fits) {
    FATHOM_TRY(answer.pareto, pareto_front(request, candidates));
    for (std::size_t i = 1; i < candidates.size() && answer.runners_up.size() < kRunnersUp; ++i)
      answer.runners_up.push_back(candidates[i]);
  }
  answer.best = candidates.front();
  if (scope == PlanScope::kReport && !answer.best.memory.fits)
    answer.ways_out = find_ways_out(request, answer.best), answer.offload = offload_answer(request, answer.best);
  return answer;
}

}  // namespace fathom::plan
