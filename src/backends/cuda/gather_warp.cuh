// Hits of some tokens found by one warp, beside other work: what gather_hits (experts_gather.cuh) finds, in the same order, and how both place them.
#pragma once
#include "backends/cuda/experts.cuh"

namespace fathom::cuda {

/// The warp's next pairs, each lane's with its expert (-1: none that is here), become hits from places[expert] on, in their order.
__device__ inline void place_hits(const GatherView& view, int pair, int expert, std::int32_t* places) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned same = __match_any_sync(kAllLanes, expert);
  const int rank = __popc(same & ((1u << lane) - 1u));
  if (expert >= 0) {
    const std::int32_t place = places[expert] + rank;
    if (view.token != nullptr) view.token[place] = pair / view.top_k;
    view.hit[pair] = place;
  }
  __syncwarp();
  if (expert >= 0 && rank == 0) places[expert] += __popc(same);
  __syncwarp();
}

/// Bytes of shared memory that gather_by_warp takes: [here] places, [pairs] experts.
inline std::size_t gather_bytes(int here, std::int64_t pairs) { return 4 * static_cast<std::size_t>(here) + 2 * static_cast<std::size_t>(pairs); }

/// Indices may have been written by other blocks, whose writes this warp has waited for.
__device__ inline void gather_by_warp(const GatherView& view, unsigned char* room) {
  constexpr int kAtOnce = 8;  // what is read of memory: one by one would take a microsecond each
  const int lane = static_cast<int>(threadIdx.x) % kWarp, here = view.here;
  auto* const places = reinterpret_cast<std::int32_t*>(room);
  auto* const experts = reinterpret_cast<std::int16_t*>(places + here);
  for (int i = lane; i < here; i += kWarp) places[i] = 0;
  __syncwarp();
  for (int base = 0; base < view.pairs; base += kAtOnce * kWarp) {
    int some[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (const int pair = base + i * kWarp + lane; pair < view.pairs) some[i] = __ldcg(view.indices.at(pair / view.top_k) + pair % view.top_k) - view.first_expert;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = base + i * kWarp + lane;
      if (pair >= view.pairs) break;
      const bool is_here = some[i] >= 0 && some[i] < here;
      experts[pair] = static_cast<std::int16_t>(is_here ? some[i] : -1);
      if (is_here) atomicAdd(&places[some[i]], 1);
      else view.hit[pair] = -1;
    }
  }
  __syncwarp();
  int hits = 0, all_runs = 0;
  for (int base = 0; base < here; base += kWarp) {
    const int i = base + lane, own = i < here ? places[i] : 0, runs = (own + view.run - 1) / view.run;
    int hits_until = own, runs_until = runs;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int x = __shfl_up_sync(kAllLanes, hits_until, step), y = __shfl_up_sync(kAllLanes, runs_until, step);
      if (lane >= step) hits_until += x, runs_until += y;
    }
    const int next = hits + hits_until - own;
    for (int k = 0; k < runs; ++k) view.runs[all_runs + runs_until - runs + k] = {i, next + k * view.run, min(view.run, own - k * view.run)};
    if (i < here) places[i] = next;
    hits += __shfl_sync(kAllLanes, hits_until, kWarp - 1), all_runs += __shfl_sync(kAllLanes, runs_until, kWarp - 1);
  }
  __syncwarp();
  if (lane == 0 && view.hits != nullptr) *view.hits = hits;
  for (int i = all_runs + lane; i < view.most_runs; i += kWarp) view.runs[i] = {};
  for (int base = 0; base < view.pairs; base += kWarp) {
    const int pair = base + lane;
    place_hits(view, pair, pair < view.pairs ? experts[pair] : -1, places);
  }
}

}  // namespace fathom::cuda
