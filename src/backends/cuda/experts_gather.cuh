// Hits found before the products of experts, and added up behind them. For ops_experts.cu alone, which launches both: a kernel that is no
// template is compiled wherever its header is read.
#pragma once
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/experts.cuh"
#include "backends/cuda/gather_warp.cuh"
#include "backends/cuda/mma.cuh"

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

/// One warp's pairs from `first` until `last`, in their order: take(pair, expert, -1: none that is here) by all lanes, behind the last one too.
template <class Take>
__device__ inline void each_pair(const GatherView& view, int first, int last, Take take) {
  constexpr int kAtOnce = 8;  // of each lane: read together
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::uint64_t inverse = ((1u << 31) + static_cast<unsigned>(view.top_k) - 1) / static_cast<unsigned>(view.top_k);  // exact for 2^31 / kMostChoices pairs
  for (int base = first; base < last; base += kAtOnce * kWarp) {
    std::int32_t chosen[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = min(base + i * kWarp + lane, last - 1), token = static_cast<int>(static_cast<unsigned>(pair) * inverse >> 31);
      chosen[i] = view.indices.at(token)[pair - token * view.top_k];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (base + i * kWarp >= last) break;
      const int pair = base + i * kWarp + lane, expert = chosen[i] - view.first_expert;
      take(pair, pair < last && expert >= 0 && expert < view.here ? expert : -1);
    }
  }
}

/// One block. Each warp has a stretch of the pairs: it counts them by expert, and when all counts are summed up it places them, in their order.
/// The next launch may begin beside it (launch.cuh).
static __global__ void __launch_bounds__(kGatherThreads) gather_hits(const __grid_constant__ GatherView view) {
  wait_for_previous();
  let_next_start();
  static_assert(kGatherThreads == kWarp * kWarp && kGatherThreads >= kMostExperts && kGatherRoom >= kMostExperts);
  __shared__ std::int32_t places[kGatherRoom], all_runs;  // [stretches, here]: counts, then where the stretch's next hit of the expert goes
  __shared__ int2 room[kWarp];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, here = view.here;
  const int stretches = min(kWarp, kGatherRoom / max(here, 1)), length = (view.pairs + stretches - 1) / stretches;
  const int first = min(warp, stretches) * length, last = warp < stretches ? min(first + length, view.pairs) : 0;
  std::int32_t* const own_places = places + warp * here;
  for (int i = thread; i < stretches * here; i += kGatherThreads) places[i] = 0;
  __syncthreads();
  each_pair(view, first, last, [&](int pair, int expert) {
    if (expert >= 0) atomicAdd(&own_places[expert], 1);
    else if (pair < last) view.hit[pair] = -1;
  });
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
  if (thread < here && view.experts != nullptr) view.experts[thread] = {ends.y - runs, next, own};
  if (thread < here)
    for (int s = 0; s < stretches; ++s) {
      const std::int32_t count = places[s * here + thread];
      places[s * here + thread] = next;
      next += count;
    }
  __syncthreads();
  for (int i = all_runs + thread; i < view.most_runs; i += kGatherThreads) view.runs[i] = {};
  each_pair(view, first, last, [&](int pair, int expert) { place_hits(view, pair, expert, own_places); });
}

/// A token's hits in their order, and what they weigh.
struct HitsOfToken {
  std::int32_t hits[kMostChoices];
  float weights[kMostChoices];
};
/// By the whole block, which has to wait for each other then; how many there are.
__device__ inline int find_hits(const CombineView& view, std::int64_t token, HitsOfToken& found) {
  static_assert(kMostChoices == 2 * kWarp);
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
      if (hit[half] >= 0) found.hits[rank[half]] = hit[half], found.weights[rank[half]] = weight[half];
  }
  return count;
}

/// Four columns of a token from `column` on: what is there or 0, its hits, what is added last.
__device__ inline float4 combine_four(const CombineView& view, const HitsOfToken& found, int count, std::int64_t token, std::int64_t column) {
  const std::int64_t h = view.out.dims[1];
  const float4 added = view.added != nullptr ? *reinterpret_cast<const float4*>(view.added + token * view.added_stride + column) : make_float4(0, 0, 0, 0);
  float4 sum = view.accumulate ? *reinterpret_cast<const float4*>(view.out.at(token) + column) : make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float4 y = *reinterpret_cast<const float4*>(view.y + found.hits[i] * h + column);
    const float weight = found.weights[i];
    sum.x += weight * y.x, sum.y += weight * y.y, sum.z += weight * y.z, sum.w += weight * y.w;
  }
  return view.added != nullptr ? sum_of(sum, added) : sum;
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
  after_previous();
  __shared__ HitsOfToken found;
  const std::int64_t token = blockIdx.x;
  const int own = static_cast<int>(threadIdx.x), count = find_hits(view, token, found);
  __syncthreads();
  const int columns = view.y16 != nullptr ? 2 * kCombineColumns : kCombineColumns;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * columns, h = view.out.dims[1], last = min(first + columns, h);
  float* out = view.out.at(token);
  if (view.y16 != nullptr && view.fours && h % 8 == 0) {
    if (first + 8 * own < last) combine_eight(view, found.hits, found.weights, count, first + 8 * own, out);
    return;
  }
  if (view.fours && view.y16 == nullptr) {
    if (const std::int64_t column = first + 4 * own; column < last) *reinterpret_cast<float4*>(out + column) = combine_four(view, found, count, token, column);
    return;
  }
  for (std::int64_t column = first + own; column < last; column += kCombineThreads) {
    float sum = view.accumulate ? out[column] : 0.0f;
#pragma unroll 8
    for (int i = 0; i < count; ++i) sum += found.weights[i] * (view.y16 != nullptr ? __bfloat162float(view.y16[found.hits[i] * h + column]) : view.y[found.hits[i] * h + column]);
    out[column] = sum;
  }
}

constexpr int kCombineNormThreads = 512;

/// The same of f32 results in fours, and the norm of the row, which comes once more in a product's type. Grid: tokens; a thread's kFours of four
/// columns stay in registers.
template <class T, int kFours>
__global__ void __launch_bounds__(kCombineNormThreads) combine_and_norm_kernel(const __grid_constant__ CombineView view, FloatVector weight, float eps, float* normed, T* rounded) {
  after_previous();
  __shared__ HitsOfToken found;
  __shared__ BlockRoom room;
  const std::int64_t token = blockIdx.x;
  const int h = static_cast<int>(view.out.dims[1]), count = find_hits(view, token, found);
  __syncthreads();
  float4 kept[kFours];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int at = 4 * (static_cast<int>(threadIdx.x) + k * kCombineNormThreads);
    if (at >= h) break;
    const float4 v = kept[k] = combine_four(view, found, count, token, at);
    *reinterpret_cast<float4*>(view.out.at(token) + at) = v;
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(h) + eps);
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int at = 4 * (static_cast<int>(threadIdx.x) + k * kCombineNormThreads);
    if (at >= h) break;
    const float4 v = make_float4(kept[k].x * scale * weight[at], kept[k].y * scale * weight[at + 1], kept[k].z * scale * weight[at + 2], kept[k].w * scale * weight[at + 3]);
    *reinterpret_cast<float4*>(normed + token * h + at) = v;
    *reinterpret_cast<uint2*>(rounded + token * h + at) = make_uint2(pack_two<T>(v.x, v.y), pack_two<T>(v.z, v.w));
  }
}

}  // namespace fathom::cuda
