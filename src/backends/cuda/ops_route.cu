// Family experts, routing: which experts a token goes to and with what weights. One warp a token. Scores in f64, as the reference's, so that
// choices are the same; what is stored is rounded once.
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

struct RouteView {
  View<const float> logits;            // [tokens, experts]
  FloatVector bias;                    // [experts] or undefined
  const std::int64_t* table = nullptr;  // [vocabulary, top_k] or null
  View<const std::int32_t> ids;        // [tokens], with a table
  View<std::int32_t> indices;          // [tokens, top_k]
  View<float> weights;                 // [tokens, top_k]
  Scoring scoring = Scoring::kSoftmax;
  GroupRank group_rank = GroupRank::kMax;
  int experts = 0, top_k = 0, groups = 1, top_groups = 1;
  bool normalize = false;
  double scaling = 1;
};

__device__ double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

__device__ double warp_sum(double value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
/// NaN is passed over, as by the reference.
__device__ double warp_largest(double value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = fmax(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

__device__ void score_experts(const RouteView& view, const float* logits, double* scores) {
  const int lane = threadIdx.x;
  double largest = -INFINITY, sum = 0;
  if (view.scoring == Scoring::kSoftmax) {
    for (int e = lane; e < view.experts; e += kWarp) largest = fmax(largest, static_cast<double>(logits[e]));
    largest = warp_largest(largest);
  }
  for (int e = lane; e < view.experts; e += kWarp) {
    const double x = logits[e];
    switch (view.scoring) {
      case Scoring::kSoftmax: sum += scores[e] = exp(x - largest); break;
      case Scoring::kSigmoid: scores[e] = 1.0 / (1.0 + exp(-x)); break;
      case Scoring::kSqrtSoftplus: scores[e] = sqrt(softplus(x)); break;
    }
  }
  if (view.scoring == Scoring::kSoftmax) {
    sum = warp_sum(sum);
    for (int e = lane; e < view.experts; e += kWarp) scores[e] /= sum;
  }
  __syncwarp();
}

/// Whether value a at index i ranks before b at j: larger, NaN above everything so that it is not hidden, ties to the lower index.
__device__ bool ranks_before(double a, int i, double b, int j) {
  const bool a_nan = isnan(a), b_nan = isnan(b);
  if (a_nan || b_nan) return a_nan && (!b_nan || i < j);
  return a > b || (a == b && i < j);
}

/// The index of the first in rank among values [0, n) that are not taken, which it takes; -1: none is left. By the whole warp.
__device__ int take_largest(const double* values, int n, bool* taken) {
  const int lane = threadIdx.x;
  double best = 0;
  int at = -1;
  for (int i = lane; i < n; i += kWarp)
    if (!taken[i] && (at < 0 || ranks_before(values[i], i, best, at))) best = values[i], at = i;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, best, step);
    const int other_at = __shfl_xor_sync(kAllLanes, at, step);
    if (other_at >= 0 && (at < 0 || ranks_before(other, other_at, best, at))) best = other, at = other_at;
  }
  if (at >= 0 && lane == 0) taken[at] = true;
  __syncwarp();
  return at;
}

/// The value of a group: its best, or the sum of its two best, the better first.
__device__ double rank_of_group(const double* choice, int size, GroupRank rank) {
  int first = 0, second = -1;
  for (int i = 1; i < size; ++i)
    if (ranks_before(choice[i], i, choice[first], first)) first = i;
  if (rank == GroupRank::kMax || size == 1) return choice[first];
  for (int i = 0; i < size; ++i)
    if (i != first && (second < 0 || ranks_before(choice[i], i, choice[second], second))) second = i;
  return choice[first] + choice[second];
}

/// Scores of experts outside the best groups become 0 (ranked by their best: V2) or minus infinity (by their two best: V3).
__device__ void keep_best_groups(const RouteView& view, double* choice, double* ranks, bool* taken) {
  const int lane = threadIdx.x, size = view.experts / view.groups;
  for (int g = lane; g < view.groups; g += kWarp) {
    ranks[g] = rank_of_group(choice + g * size, size, view.group_rank);
    taken[g] = false;
  }
  __syncwarp();
  for (int i = 0; i < view.top_groups; ++i) take_largest(ranks, view.groups, taken);
  const double fill = view.group_rank == GroupRank::kMax ? 0.0 : -INFINITY;
  for (int e = lane; e < view.experts; e += kWarp)
    if (!taken[e / size]) choice[e] = fill;
  __syncwarp();
}

/// Shared: scores [experts], choice [experts], ranks [groups] f64, taken [max(experts, groups)].
__global__ void __launch_bounds__(kWarp) route_tokens(const __grid_constant__ RouteView view) {
  extern __shared__ double shared[];
  after_previous();
  double *scores = shared, *choice = scores + view.experts, *ranks = choice + view.experts;
  bool* taken = reinterpret_cast<bool*>(ranks + view.groups);
  const int lane = threadIdx.x;
  const std::int64_t token = blockIdx.x;
  score_experts(view, view.logits.at(token), scores);
  std::int32_t* indices = view.indices.at(token);
  float* weights = view.weights.at(token);
  const std::int64_t* row = view.table != nullptr ? view.table + static_cast<std::int64_t>(*view.ids.at(token)) * view.top_k : nullptr;
  if (row == nullptr) {
    for (int e = lane; e < view.experts; e += kWarp) choice[e] = scores[e] + (view.bias.data != nullptr ? static_cast<double>(view.bias[e]) : 0.0);
    __syncwarp();
    if (view.groups > 1) keep_best_groups(view, choice, ranks, taken);
    for (int e = lane; e < view.experts; e += kWarp) taken[e] = false;
    __syncwarp();
  }
  double sum = 0;
  for (int j = 0; j < view.top_k; ++j) {
    const int expert = row != nullptr ? static_cast<int>(row[j]) : take_largest(choice, view.experts, taken);
    sum += scores[expert];
    if (lane == 0) indices[j] = expert;
  }
  const double factor = view.scaling / (view.normalize ? sum + 1e-20 : 1.0);
  __syncwarp();
  for (int j = lane; j < view.top_k; j += kWarp) weights[j] = static_cast<float>(scores[indices[j]] * factor);
}

}  // namespace

void CudaOps::route(const RouteArgs& args) {
  flush();
  const Routing& routing = args.routing;
  const std::int64_t tokens = args.logits.dim(0), experts = args.logits.dim(1), top_k = routing.top_k;
  FATHOM_CHECK(experts == routing.experts && args.indices.shape == (Shape{tokens, top_k}) && args.weights.shape == args.indices.shape);
  FATHOM_CHECK(top_k <= experts && (!args.bias.defined() || args.bias.elements() == experts));
  FATHOM_CHECK(!args.table.defined() || (args.table.cols == top_k && args.table.format == WeightFormat::i64));
  FATHOM_CHECK(routing.groups <= 1 || (experts % routing.groups == 0 && routing.top_groups <= routing.groups &&
                                       top_k <= routing.top_groups * (experts / routing.groups)));
  if (tokens == 0) return;
  RouteView view;
  view.logits = view_of<const float>(args.logits);
  view.bias = vector_of(args.bias);
  if (args.table.defined()) {
    view.table = reinterpret_cast<const std::int64_t*>(args.table.data);
    view.ids = view_of<const std::int32_t>(args.ids);
  }
  view.indices = view_of<std::int32_t>(args.indices);
  view.weights = view_of<float>(args.weights);
  view.scoring = routing.scoring;
  view.group_rank = routing.group_rank;
  view.experts = static_cast<int>(experts);
  view.top_k = static_cast<int>(top_k);
  view.groups = static_cast<int>(std::max<std::int64_t>(routing.groups, 1));
  view.top_groups = static_cast<int>(routing.top_groups);
  view.normalize = routing.normalize;
  view.scaling = routing.scaling;
  const std::size_t shared = static_cast<std::size_t>(2 * view.experts + view.groups) * sizeof(double) + static_cast<std::size_t>(std::max(view.experts, view.groups));
  FATHOM_CHECK(shared <= 48 * 1024, "more experts than a router's shared memory holds");
  launch_early(context_, &route_tokens, static_cast<unsigned>(tokens), kWarp, shared, view);
}

}  // namespace fathom::cuda
