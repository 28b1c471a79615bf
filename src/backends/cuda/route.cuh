// Which experts a token goes to and with what weights, by one warp. Scores in f64, as the reference's, so that choices are the same; what is
// stored is rounded once.
#pragma once
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/launch.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

struct RouteView {
  View<const float> logits;            // [tokens, experts]
  FloatVector bias;                    // [experts] or undefined
  const std::int64_t* table = nullptr;  // [vocabulary, top_k] or null
  View<const std::int32_t> ids;        // [tokens], with a table
  View<std::int32_t> indices;          // [tokens, top_k]
  View<float> weights;                 // [tokens, top_k]
  tensor::Scoring scoring = tensor::Scoring::kSoftmax;
  tensor::GroupRank group_rank = tensor::GroupRank::kMax;
  int experts = 0, top_k = 0, groups = 1, top_groups = 1;
  bool normalize = false;
  double scaling = 1;
};

__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
/// Whole numbers in the order of the values, NaN above everything; none is 0.
__device__ inline std::uint64_t rank_key(double value) {
  if (isnan(value)) return ~std::uint64_t{0};
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(value + 0.0));  // one zero
  return bits >> 63 != 0 ? ~bits : bits | std::uint64_t{1} << 63;
}

/// The largest of all lanes' keys.
__device__ inline std::uint64_t warp_largest(std::uint64_t key) {
  const auto high = static_cast<unsigned>(key >> 32), low = static_cast<unsigned>(key);
  const unsigned most = __reduce_max_sync(kAllLanes, high), rest = __reduce_max_sync(kAllLanes, high == most ? low : 0u);
  return std::uint64_t{most} << 32 | rest;
}
/// NaN is passed over, as by the reference.
__device__ inline double warp_largest(double value) {
  const std::uint64_t key = warp_largest(rank_key(isnan(value) ? -INFINITY : value));
  return __longlong_as_double(static_cast<long long>(key >> 63 != 0 ? key ^ std::uint64_t{1} << 63 : ~key));
}

__device__ inline void score_experts(const RouteView& view, const float* logits, double* scores) {
  const int lane = threadIdx.x % kWarp;
  double largest = -INFINITY, sum = 0;
  if (view.scoring == tensor::Scoring::kSoftmax) {
    for (int e = lane; e < view.experts; e += kWarp) largest = fmax(largest, static_cast<double>(logits[e]));
    largest = warp_largest(largest);
  }
  // One exponential in the code for all of them: who chooses beside a product runs through this once.
#pragma unroll 1
  for (int e = lane; e < view.experts; e += kWarp) {
    const double x = logits[e], power = exp(view.scoring == tensor::Scoring::kSoftmax ? x - largest : view.scoring == tensor::Scoring::kSigmoid ? -x : -fabs(x));
    switch (view.scoring) {
      case tensor::Scoring::kSoftmax: sum += scores[e] = power; break;
      case tensor::Scoring::kSigmoid: scores[e] = 1.0 / (1.0 + power); break;
      case tensor::Scoring::kSqrtSoftplus: scores[e] = sqrt(fmax(x, 0.0) + log1p(power)); break;
    }
  }
  if (view.scoring == tensor::Scoring::kSoftmax) {
    sum = warp_sum(sum);
    for (int e = lane; e < view.experts; e += kWarp) scores[e] /= sum;
  }
  __syncwarp();
}

/// Whether value a at index i ranks before b at j: larger, NaN above everything so that it is not hidden, ties to the lower index.
__device__ inline bool ranks_before(double a, int i, double b, int j) {
  const bool a_nan = isnan(a), b_nan = isnan(b);
  if (a_nan || b_nan) return a_nan && (!b_nan || i < j);
  return a > b || (a == b && i < j);
}

/// The index of the first in rank among values [0, n) that are not taken, which it takes; -1: none is left. By the whole warp.
__device__ inline int take_largest(const double* values, int n, bool* taken) {
  const int lane = threadIdx.x % kWarp;
  std::uint64_t best = 0;
  int at = -1;
  for (int i = lane; i < n; i += kWarp)
    if (const std::uint64_t key = taken[i] ? 0 : rank_key(values[i]); key > best) best = key, at = i;
  const std::uint64_t most = warp_largest(best);
  const bool first = at >= 0 && best == most;
  at = static_cast<int>(__reduce_min_sync(kAllLanes, first ? static_cast<unsigned>(at) : ~0u));  // ~0: -1
  if (at >= 0 && lane == at % kWarp) taken[at] = true;  // nobody else looks at it
  return at;
}

/// The first `count` in rank among values [0, n), n at most kOwn · kWarp: take(j, index). By the whole warp.
template <int kOwn, class Take>
__device__ inline void take_first(const double* values, int n, int count, Take take) {
  const int lane = threadIdx.x % kWarp;
  std::uint64_t keys[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) keys[i] = i * kWarp + lane < n ? rank_key(values[i * kWarp + lane]) : 0;
#pragma unroll 1
  for (int j = 0; j < count; ++j) {
    std::uint64_t best = keys[0];
    int at = lane;
#pragma unroll
    for (int i = 1; i < kOwn; ++i)
      if (keys[i] > best) best = keys[i], at = i * kWarp + lane;
    const std::uint64_t most = warp_largest(best);
    at = static_cast<int>(__reduce_min_sync(kAllLanes, best == most ? static_cast<unsigned>(at) : ~0u));
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (at == i * kWarp + lane) keys[i] = 0;
    take(j, at);
  }
}

/// The value of a group: its best, or the sum of its two best, the better first.
__device__ inline double rank_of_group(const double* choice, int size, tensor::GroupRank rank) {
  int first = 0, second = -1;
  for (int i = 1; i < size; ++i)
    if (ranks_before(choice[i], i, choice[first], first)) first = i;
  if (rank == tensor::GroupRank::kMax || size == 1) return choice[first];
  for (int i = 0; i < size; ++i)
    if (i != first && (second < 0 || ranks_before(choice[i], i, choice[second], second))) second = i;
  return choice[first] + choice[second];
}

/// Scores of experts outside the best groups become 0 (ranked by their best: V2) or minus infinity (by their two best: V3).
__device__ inline void keep_best_groups(const RouteView& view, double* choice, double* ranks, bool* taken) {
  const int lane = threadIdx.x % kWarp, size = view.experts / view.groups;
  for (int g = lane; g < view.groups; g += kWarp) {
    ranks[g] = rank_of_group(choice + g * size, size, view.group_rank);
    taken[g] = false;
  }
  __syncwarp();
  for (int i = 0; i < view.top_groups; ++i) take_largest(ranks, view.groups, taken);
  __syncwarp();
  const double fill = view.group_rank == tensor::GroupRank::kMax ? 0.0 : -INFINITY;
  for (int e = lane; e < view.experts; e += kWarp)
    if (!taken[e / size]) choice[e] = fill;
  __syncwarp();
}

/// The choice of one token by a warp. Unless it `writes`, nobody hears of it. `room`: scores [experts], choice [experts], ranks [groups] f64, taken [max(experts, groups)].
__device__ inline void route_token(const RouteView& view, std::int64_t token, double* room, bool writes = true) {
  std::int32_t* indices = view.indices.at(token);
  float* weights = view.weights.at(token);
  double *scores = room, *choice = scores + view.experts, *ranks = choice + view.experts;
  bool* taken = reinterpret_cast<bool*>(ranks + view.groups);
  const int lane = threadIdx.x % kWarp;
  __syncwarp();  // what the choice before this one left has been read
  score_experts(view, view.logits.at(token), scores);
  const std::int64_t* row = view.table != nullptr ? view.table + static_cast<std::int64_t>(*view.ids.at(token)) * view.top_k : nullptr;
  if (row == nullptr) {
    for (int e = lane; e < view.experts; e += kWarp) choice[e] = scores[e] + (view.bias.data != nullptr ? static_cast<double>(view.bias[e]) : 0.0);
    __syncwarp();
    if (view.groups > 1) keep_best_groups(view, choice, ranks, taken);
  }
  double sum = 0;
  int own = 0;  // the expert of choice lane, of the first kWarp
  const auto take = [&](int j, int expert) {
    sum += scores[expert];
    if (lane == j) own = expert;
    if (writes && lane == j % kWarp) indices[j] = expert;
  };
  if (row != nullptr) {
    for (int j = 0; j < view.top_k; ++j) take(j, static_cast<int>(row[j]));
  } else if (view.experts <= 2 * kWarp) {
    take_first<2>(choice, view.experts, view.top_k, take);
  } else if (view.experts <= 8 * kWarp) {
    take_first<8>(choice, view.experts, view.top_k, take);
  } else {
    for (int e = lane; e < view.experts; e += kWarp) taken[e] = false;
    __syncwarp();
    for (int j = 0; j < view.top_k; ++j) take(j, take_largest(choice, view.experts, taken));
  }
  const double factor = view.normalize ? view.scaling / (sum + 1e-20) : view.scaling;
  if (!writes) return;
  for (int j = lane; j < view.top_k; j += kWarp) weights[j] = static_cast<float>(scores[j < kWarp ? own : indices[j]] * factor);
}
/// Bytes of `room`.
inline std::size_t route_bytes(const RouteView& view) {
  return static_cast<std::size_t>(2 * view.experts + view.groups) * sizeof(double) + static_cast<std::size_t>(std::max(view.experts, view.groups));
}

/// A block of a warp a token. Shared: route_bytes.
void launch_route(Context& context, const RouteView& view, std::int64_t tokens);

}  // namespace fathom::cuda
