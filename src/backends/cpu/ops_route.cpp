// Family experts, routing: which experts a token goes to and with what weights.
#include <cmath>
#include <limits>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

float softplus(float x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

void score(const Kernels& kernels, const float* logits, std::int64_t experts, Scoring scoring, float* scores) {
  switch (scoring) {
    case Scoring::kSoftmax: {
      const float sum = kernels.exponentials(logits, 1.0f, kernels.largest(logits, experts), scores, experts);
      for (std::int64_t e = 0; e < experts; ++e) scores[e] /= sum;
      return;
    }
    case Scoring::kSigmoid:
      return kernels.sigmoid(logits, scores, experts);
    case Scoring::kSqrtSoftplus:
      for (std::int64_t e = 0; e < experts; ++e) scores[e] = std::sqrt(softplus(logits[e]));
      return;
  }
}

/// a ranks before b: larger, NaN above everything so that it is not hidden; ties to the lower index are the caller's
/// order.
bool ranks_before(float a, float b) { return std::isnan(b) ? false : std::isnan(a) || a > b; }

/// The `count` largest of n values, best first, ties to the lower index. `taken` [n] is scratch.
void largest_of(const float* values, std::int64_t n, std::int64_t count, bool* taken, std::int32_t* out) {
  std::fill_n(taken, n, false);
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t best = -1;
    for (std::int64_t j = 0; j < n; ++j)
      if (!taken[j] && (best < 0 || ranks_before(values[j], values[best]))) best = j;
    taken[best] = true;
    out[i] = static_cast<std::int32_t>(best);
  }
}

/// Scores of experts outside the best groups become 0 (ranked by their best: V2) or minus infinity (by their two best:
/// V3).
void keep_best_groups(float* choice, const Routing& routing, Scratch& scratch) {
  const std::int64_t size = routing.experts / routing.groups;
  FATHOM_CHECK(size * routing.groups == routing.experts && routing.top_groups <= routing.groups &&
               routing.top_k <= routing.top_groups * size);
  const std::int64_t counted = routing.group_rank == GroupRank::kMax ? 1 : std::min<std::int64_t>(2, size);
  bool* taken = scratch.take<bool>(std::max(size, routing.groups));
  float* rank = scratch.take<float>(routing.groups);
  auto* best = scratch.take<std::int32_t>(std::max(counted, routing.groups));
  for (std::int64_t g = 0; g < routing.groups; ++g) {
    largest_of(choice + g * size, size, counted, taken, best);
    rank[g] = 0;
    for (std::int64_t i = 0; i < counted; ++i) rank[g] += choice[g * size + best[i]];
  }
  largest_of(rank, routing.groups, routing.top_groups, taken, best);  // leaves in `taken` which were chosen
  const float fill = routing.group_rank == GroupRank::kMax ? 0.0f : -std::numeric_limits<float>::infinity();
  for (std::int64_t g = 0; g < routing.groups; ++g)
    if (!taken[g]) std::fill_n(choice + g * size, size, fill);
}

void choose(const Routing& routing, const float* scores, const float* bias, Scratch& scratch, std::int32_t* chosen) {
  float* choice = scratch.take<float>(routing.experts);
  for (std::int64_t e = 0; e < routing.experts; ++e) choice[e] = scores[e] + (bias != nullptr ? bias[e] : 0.0f);
  if (routing.groups > 1) keep_best_groups(choice, routing, scratch);
  largest_of(choice, routing.experts, routing.top_k, scratch.take<bool>(routing.experts), chosen);
}

}  // namespace

void CpuOps::route(const RouteArgs& args) {
  const Routing& routing = args.routing;
  const std::int64_t tokens = args.logits.dim(0), experts = args.logits.dim(1), top_k = routing.top_k;
  FATHOM_CHECK(experts == routing.experts && args.indices.shape == (Shape{tokens, top_k}) &&
               args.weights.shape == args.indices.shape);
  FATHOM_CHECK(top_k <= experts && is_f32(args.logits) && is_f32(args.weights) && args.indices.dtype == DType::i32);
  FATHOM_CHECK(!args.table.defined() ||
               (args.table.cols == top_k && args.table.format == WeightFormat::i64 && args.ids.dtype == DType::i32));
  float* bias = nullptr;
  if (args.bias.defined()) {
    FATHOM_CHECK(args.bias.elements() == experts && args.bias.contiguous());
    context_.kernels.widen(element_of(args.bias.dtype), args.bias.data, experts,
                           bias = fresh_shared().take<float>(experts));
  }
  const RowsOfTensor logits(args.logits), indices(args.indices), weights(args.weights);
  for_ranges(context_.pool, tokens, experts * (top_k + 16), [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t t = first; t < last; ++t) {
      Scratch& scratch = fresh(thread);
      float *scores = scratch.take<float>(experts), *weight = weights.floats(t);
      auto* chosen = reinterpret_cast<std::int32_t*>(indices.at(t));
      score(context_.kernels, logits.floats(t), experts, routing.scoring, scores);
      if (args.table.defined()) {
        const std::int64_t id = args.ids.as<std::int32_t>()[t * args.ids.strides[0]];
        FATHOM_CHECK(id >= 0 && id < args.table.rows, "a token outside the vocabulary");
        const auto* row = reinterpret_cast<const std::int64_t*>(args.table.data) + id * top_k;
        for (std::int64_t j = 0; j < top_k; ++j) {
          FATHOM_CHECK(row[j] >= 0 && row[j] < experts, "a table names an expert that is not there");
          chosen[j] = static_cast<std::int32_t>(row[j]);
        }
      } else {
        choose(routing, scores, bias, scratch, chosen);
      }
      float sum = 0;
      for (std::int64_t j = 0; j < top_k; ++j) sum += weight[j] = scores[chosen[j]];
      const float factor = static_cast<float>(routing.scaling) / (routing.normalize ? sum + 1e-20f : 1.0f);
      for (std::int64_t j = 0; j < top_k; ++j) weight[j] *= factor;
    }
  });
}

}  // namespace fathom::cpu
