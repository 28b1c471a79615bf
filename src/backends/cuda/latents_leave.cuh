// What follows latent attention of some tokens: the parts of its keys joined, and the product by head that carries sums of latents out to values.
//
// A cluster of eight blocks has a head. Each joins some tokens' parts, and sends the rows, rounded to the weights' type, to all of them; then each
// multiplies 16 of the head's values at a time, its warps 64 columns each. The values are rounded once more for the product that comes next.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {

inline constexpr int kLeaveBlocks = 8, kLeaveThreads = 256, kLeaveTokens = 32, kLeaveRank = 512;
inline constexpr int kLeaveWarps = kLeaveThreads / kWarp, kLeaveEach = kLeaveTokens / kLeaveBlocks, kLeaveRows = 16, kLeaveParts = 4;
static_assert(kLeaveThreads * 8 == kLeaveEach * kLeaveRank && kLeaveWarps * 64 == kLeaveRank);

struct LeaveView {
  AttentionView attention;       // of parts
  Product product;               // its x is what attention makes
  std::byte* rounded = nullptr;  // [tokens, heads, rows] once more, in the weights' type; or null
};

/// Grid: heads · kLeaveBlocks.
template <class T>
__global__ void __launch_bounds__(kLeaveThreads) leave_latents(const __grid_constant__ LeaveView view) {
  constexpr int kChunks = kLeaveRank / 8;
  extern __shared__ __align__(128) unsigned char leave_room[];  // [kLeaveTokens, kLeaveRank] of T, then [warps, 16 rows, tokens] of f32
  const AttentionView& attention = view.attention;
  const Product& p = view.product;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp, rank = cluster_rank(), head = static_cast<int>(blockIdx.x) / kLeaveBlocks;
  const unsigned room = shared_address(leave_room);
  cluster_arrive();  // this block is there: others may write to it
  let_next_start();
  // Weights: lane % 4 has eight neighbouring columns of every 32, as it will have of x.
  uint4 weights[2][2];  // rows lane / 4 and 8 further; 32 columns each
  const auto read_weights = [&](int row) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[i][half] = stream_16(p.weight.data + 2 * ((p.first_row + head * p.row_step + row + lane / 4 + 8 * i) * kLeaveRank + 64 * warp + 32 * half + lane % 4 * 8));
  };
  if (rank * kLeaveRows < p.rows) read_weights(rank * kLeaveRows);
  wait_for_previous();

  // Two warps a token, a lane eight columns.
  const int token = rank + kLeaveBlocks * (warp / 2), column = (thread % (2 * kWarp)) * 8;
  float4 joined[2] = {};
  if (token < attention.tokens) {
    const std::int64_t rows = static_cast<std::int64_t>(attention.tokens) * attention.heads, row = static_cast<std::int64_t>(token) * attention.heads + head;
    const float* from = attention.part_out + row * kLeaveRank + column;
    const auto read = [&](int part, int half) {
      return part < attention.parts ? reinterpret_cast<const float4*>(from + part * rows * kLeaveRank)[half] : make_float4(0, 0, 0, 0);
    };
    // Some at a time, the first of them on their way while shares are worked out.
    float4 some[kLeaveParts][2];
#pragma unroll
    for (int i = 0; i < kLeaveParts; ++i) some[i][0] = read(i, 0), some[i][1] = read(i, 1);
    const PartShares shares(attention, token, head);
    for (int first = 0; first < attention.parts; first += kLeaveParts) {
#pragma unroll
      for (int i = 0; i < kLeaveParts; ++i) {
        const int part = first + i;
        const float share = __shfl_sync(kAllLanes, part < kWarp ? shares.share[0] : shares.share[1], part % kWarp);  // 0 of those that are not there
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float4 v = first == 0 ? some[i][half] : read(part, half);
          joined[half].x += v.x * share, joined[half].y += v.y * share, joined[half].z += v.z * share, joined[half].w += v.w * share;
        }
      }
    }
#pragma unroll
    for (float4& v : joined) v.x *= shares.finish.factor, v.y *= shares.finish.factor, v.z *= shares.finish.factor, v.w *= shares.finish.factor;
    auto* out = reinterpret_cast<float4*>(attention.out.at(token, head) + column);
    out[0] = joined[0], out[1] = joined[1];
    if (attention.lse.defined() && column == 0) attention.lse.at(token)[head] = shares.finish.lse;
  }
  const uint4 packed = pack_eight<T>(joined[0], joined[1]);
  cluster_wait();
#pragma unroll
  for (unsigned to = 0; to < kLeaveBlocks; ++to) send_16(room + swizzled<kChunks>(token, column / 8), to, packed);
  cluster_arrive();
  cluster_wait();

  auto* const sums_room = reinterpret_cast<float4*>(leave_room + kLeaveTokens * kLeaveRank * sizeof(T));
  for (int row = rank * kLeaveRows; row < p.rows; row += kLeaveBlocks * kLeaveRows) {
    if (row != rank * kLeaveRows) read_weights(row);
    float sums[kLeaveTokens / 8][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 low = weights[0][half], high = weights[1][half];
      const unsigned first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int n = 0; n < kLeaveTokens / 8; ++n) {
        const uint4 x = *reinterpret_cast<const uint4*>(leave_room + swizzled<kChunks>(8 * n + lane / 4, 8 * warp + 4 * half + lane % 4));
        multiply_add<T>(sums[n], first, x.x, x.y);
        multiply_add<T>(sums[n], second, x.z, x.w);
      }
    }
#pragma unroll
    for (int n = 0; n < kLeaveTokens / 8; ++n) sums_room[(warp * (kLeaveTokens / 8) + n) * kWarp + lane] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
    __syncthreads();
    // A value and token a thread, twice: rows side by side.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int value = thread % kLeaveRows, t = thread / kLeaveRows + i * (kLeaveThreads / kLeaveRows);
      // Where a fragment of eight tokens has it: lane 4 · (value % 8) + t % 8 / 2, number t % 2 + 2 · (value / 8).
      const auto* own = reinterpret_cast<const float*>(sums_room) + ((t / 8 * kWarp) + 4 * (value % 8) + t % 8 / 2) * 4 + t % 2 + 2 * (value / 8);
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kLeaveWarps; ++w) sum += own[w * (kLeaveTokens / 8) * kWarp * 4];
      if (t >= p.tokens) continue;
      p.out[t * p.out_stride + head * p.out_step + row + value] = sum;
      if (view.rounded != nullptr) reinterpret_cast<T*>(view.rounded)[(static_cast<std::int64_t>(t) * p.groups + head) * p.rows + row + value] = from_float<T>(sum);
    }
    __syncthreads();
  }
}

inline constexpr int kLeaveBytes = kLeaveTokens * kLeaveRank * 2 + kLeaveWarps * kLeaveRows * kLeaveTokens * 4;

}  // namespace fathom::cuda
