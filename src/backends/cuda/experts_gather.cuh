// Hits found before the products of experts, and added up behind them. For ops_experts.cu alone, which launches both: a kernel that is no
// template is compiled wherever its header is read.
#pragma once
#include "backends/cuda/experts.cuh"

namespace fathom::cuda {

/// Inclusive sums over the block's values of two counts.
__device__ inline int2 block_scan(int2 value, int2 (&room)[kWarp]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto scan = [&](int2 sum) {
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int x = __shfl_up_sync(kAllLanes, sum.x, step), y = __shfl_up_sync(kAllLanes, sum.y, step);
      if (lane >= step) sum.x += x, sum.y += y;
    }
    return sum;
  };
  value = scan(value);
  if (lane == kWarp - 1) room[warp] = value;
  __syncthreads();
  const int2 warps = scan(room[lane]);
  const int x = __shfl_sync(kAllLanes, warps.x, max(warp - 1, 0)), y = __shfl_sync(kAllLanes, warps.y, max(warp - 1, 0));
  return warp == 0 ? value : make_int2(value.x + x, value.y + y);
}

/// One block. Each warp has a stretch of the pairs: it counts them by expert, and when all counts are summed up it places them, in their order.
static __global__ void __launch_bounds__(kGatherThreads) gather_hits(const __grid_constant__ GatherView view) {
  after_previous();
  static_assert(kGatherThreads == kWarp * kWarp && kGatherThreads >= kMostExperts && kGatherRoom >= kMostExperts);
  __shared__ std::int32_t places[kGatherRoom], all_runs;  // [stretches, here]: counts, then where the stretch's next hit of the expert goes
  __shared__ int2 room[kWarp];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp, here = view.here;
  const int stretches = min(kWarp, kGatherRoom / max(here, 1)), length = (view.pairs + stretches - 1) / stretches;
  const int first = min(warp, stretches) * length, last = warp < stretches ? min(first + length, view.pairs) : 0;
  std::int32_t* const own_places = places + warp * here;
  const auto expert_of = [&](int pair) { return view.indices.at(pair / view.top_k)[pair % view.top_k] - view.first_expert; };
  for (int i = thread; i < stretches * here; i += kGatherThreads) places[i] = 0;
  __syncthreads();
  for (int pair = first + lane; pair < last; pair += kWarp) {
    const int expert = expert_of(pair);
    if (expert >= 0 && expert < here) atomicAdd(&own_places[expert], 1);
    else view.hit[pair] = -1;
  }
  __syncthreads();
  std::int32_t own = 0;
  if (thread < here)
    for (int s = 0; s < stretches; ++s) own += places[s * here + thread];
  const std::int32_t runs = (own + view.run - 1) / view.run;
  const int2 ends = block_scan(make_int2(own, runs), room);
  std::int32_t next = ends.x - own;
  for (int i = 0; i < runs; ++i) view.runs[ends.y - runs + i] = {thread, next + i * view.run, min(view.run, own - i * view.run)};
  if (thread == kGatherThreads - 1) {
    all_runs = ends.y;
    if (view.hits != nullptr) *view.hits = ends.x;
  }
  if (thread < here)
    for (int s = 0; s < stretches; ++s) {
      const std::int32_t count = places[s * here + thread];
      places[s * here + thread] = next;
      next += count;
    }
  __syncthreads();
  for (int i = all_runs + thread; i < view.most_runs; i += kGatherThreads) view.runs[i] = {};
  for (int base = first; base < last; base += kWarp) {
    const int pair = base + lane, expert = pair < last ? expert_of(pair) : -1;
    const bool is_here = expert >= 0 && expert < here;
    const unsigned same = __match_any_sync(kAllLanes, is_here ? expert : -1);
    const int rank = __popc(same & ((1u << lane) - 1u));
    if (is_here) {
      const std::int32_t place = own_places[expert] + rank;
      view.token[place] = pair / view.top_k;
      view.hit[pair] = place;
    }
    __syncwarp();
    if (is_here && rank == 0) own_places[expert] += __popc(same);
    __syncwarp();
  }
}

/// Eight columns of a token: sum += weights · y16.
__device__ inline void combine_eight(const CombineView& view, const std::int32_t* hits, const float* weights, int count, std::int64_t column, float* out) {
  const std::int64_t h = view.out.dims[1];
  float sum[8];
#pragma unroll
  for (int j = 0; j < 8; j += 4) *reinterpret_cast<float4*>(sum + j) = view.accumulate ? *reinterpret_cast<const float4*>(out + column + j) : make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const uint4 y = *reinterpret_cast<const uint4*>(view.y16 + hits[i] * h + column);
    const unsigned twos[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[2 * j] += weights[i] * __uint_as_float(twos[j] << 16), sum[2 * j + 1] += weights[i] * __uint_as_float(twos[j] & 0xffff0000u);
  }
#pragma unroll
  for (int j = 0; j < 8; j += 4) *reinterpret_cast<float4*>(out + column + j) = *reinterpret_cast<const float4*>(sum + j);
}

/// out[token] (+)= the sum of weight · y over its hits, experts ascending. Grid: tokens, blocks of columns.
static __global__ void __launch_bounds__(kCombineThreads) combine_hits(const __grid_constant__ CombineView view) {
  static_assert(kMostChoices == 2 * kWarp);
  after_previous();
  __shared__ std::int32_t hits[kMostChoices];
  __shared__ float weights[kMostChoices];
  const std::int64_t token = blockIdx.x;
  const int own = static_cast<int>(threadIdx.x), lane = own % kWarp;
  // Hits are numbered by expert, then token, then slot: the order of a token's hits is that of their numbers. Every warp finds it.
  std::int32_t hit[2];
  float weight[2];
  int count = 0, rank[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int choice = lane + half * kWarp;
    hit[half] = choice < view.top_k ? view.hit[token * view.top_k + choice] : -1;
    weight[half] = choice < view.top_k ? view.weights.at(token)[choice] : 0.0f;
    count += __popc(__ballot_sync(kAllLanes, hit[half] >= 0));
  }
  for (int j = 0; j < min(view.top_k, kMostChoices); ++j) {
    const std::int32_t other = __shfl_sync(kAllLanes, j < kWarp ? hit[0] : hit[1], j % kWarp);
    if (other < 0) continue;
    rank[0] += other < hit[0], rank[1] += other < hit[1];
  }
  if (own < kWarp) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (hit[half] >= 0) hits[rank[half]] = hit[half], weights[rank[half]] = weight[half];
  }
  __syncthreads();
  const int columns = view.y16 != nullptr ? 2 * kCombineColumns : kCombineColumns;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * columns, h = view.out.dims[1], last = min(first + columns, h);
  float* out = view.out.at(token);
  if (view.y16 != nullptr && view.fours && h % 8 == 0) {
    if (first + 8 * own < last) combine_eight(view, hits, weights, count, first + 8 * own, out);
    return;
  }
  if (view.fours && view.y16 == nullptr) {
    const std::int64_t column = first + 4 * own;
    if (column >= last) return;
    float4 sum = view.accumulate ? *reinterpret_cast<const float4*>(out + column) : make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float4 y = *reinterpret_cast<const float4*>(view.y + hits[i] * h + column);
      sum.x += weights[i] * y.x, sum.y += weights[i] * y.y, sum.z += weights[i] * y.z, sum.w += weights[i] * y.w;
    }
    *reinterpret_cast<float4*>(out + column) = sum;
    return;
  }
  for (std::int64_t column = first + own; column < last; column += kCombineThreads) {
    float sum = view.accumulate ? out[column] : 0.0f;
#pragma unroll 8
    for (int i = 0; i < count; ++i) sum += weights[i] * (view.y16 != nullptr ? __bfloat162float(view.y16[hits[i] * h + column]) : view.y[hits[i] * h + column]);
    out[column] = sum;
  }
}

}  // namespace fathom::cuda
