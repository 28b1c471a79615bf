// What joins the parts that keys were cut into. For ops_attention.cu alone, which launches it: a kernel that is no template is compiled
// wherever its header is read.
#pragma once
#include "backends/cuda/attention.cuh"

namespace fathom::cuda {

/// One block a token and head. Every warp looks at all parts, two a lane; threads of the same four columns take parts in turn, and are
/// added in a fixed order.
static __global__ void __launch_bounds__(kJoinThreads) join_parts(const __grid_constant__ AttentionView view) {
  after_previous();
  static_assert(kMostParts == 2 * kWarp);
  __shared__ float shares[kMostParts];
  __shared__ float4 room[kJoinThreads];
  const std::int64_t rows = static_cast<std::int64_t>(view.tokens) * view.heads, row = blockIdx.x;
  const int token = static_cast<int>(row / view.heads), head = static_cast<int>(row % view.heads), lane = threadIdx.x % kWarp;
  const PartShares own(view, token, head);
  if (threadIdx.x < kWarp) shares[lane] = own.share[0], shares[lane + kWarp] = own.share[1];
  __syncthreads();
  const Finish& finish = own.finish;
  if (threadIdx.x == 0 && view.lse.defined()) view.lse.at(token)[head] = finish.lse;
  const int quads = (view.dv + 3) / 4, teams = max(1, kJoinThreads / quads), team = static_cast<int>(threadIdx.x) / quads;
  const bool fours = view.dv % 4 == 0;
  for (int quad = static_cast<int>(threadIdx.x) % quads; quad < quads; quad += kJoinThreads) {
    float4 sum = make_float4(0, 0, 0, 0);
    const float* from = view.part_out + row * view.dv + 4 * quad;
    const std::int64_t step = rows * view.dv;
    if (team < teams) {
#pragma unroll 8
      for (int part = team; part < view.parts; part += teams) {
        const float share = shares[part];
        const float* at = from + part * step;
        const float4 v = fours ? *reinterpret_cast<const float4*>(at)
                               : make_float4(at[0], 4 * quad + 1 < view.dv ? at[1] : 0.0f, 4 * quad + 2 < view.dv ? at[2] : 0.0f, 4 * quad + 3 < view.dv ? at[3] : 0.0f);
        sum.x += v.x * share, sum.y += v.y * share, sum.z += v.z * share, sum.w += v.w * share;
      }
    }
    if (teams > 1) {
      room[threadIdx.x] = sum;
      __syncthreads();
      if (team != 0) return;
      for (int other = 1; other < teams; ++other) {
        const float4 v = room[other * quads + quad];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
    }
    float* out = view.out.at(token, head) + 4 * quad;
    const float made[4] = {sum.x * finish.factor, sum.y * finish.factor, sum.z * finish.factor, sum.w * finish.factor};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * quad + i >= view.dv) break;
      out[i] = made[i];
      store_rounded(view, row * view.dv + 4 * quad + i, made[i]);
    }
  }
}

}  // namespace fathom::cuda
