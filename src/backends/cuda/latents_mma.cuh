// Latent attention of single tokens on tensor cores: 16 query heads against 64 keys at a time, which are read once for scores and for
// values (the keys' first columns). 16-bit caches; q is rounded to their type, times the scale and log2(e).
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kSharedThreads = 256, kSharedWarps = kSharedThreads / kWarp, kSharedHeads = 16, kSharedKeys = 8 * kSharedWarps, kSharedStages = 2;
template <int kWidth>
inline constexpr int kSharedBytes = (kSharedStages * kSharedKeys * kWidth + kSharedHeads * kWidth + kSharedHeads * kSharedKeys) * 2;

/// Keys first … of the sequence to a stage; zeros from `end` on. Four threads a key, whose chunks they take in turn.
template <class T, int kWidth>
__device__ inline void copy_latents(const SegmentView& segment, std::int64_t base, int first, int end, unsigned to) {
  constexpr int kChunks = kWidth / 8;
  static_assert(kSharedThreads == 4 * kSharedKeys && kChunks % 4 == 0);
  const int key = static_cast<int>(threadIdx.x) / 4, turn = static_cast<int>(threadIdx.x) % 4, dk = segment.dk, width = segment.dk + segment.dr;
  const bool here = first + key < end;
  const std::int64_t row = base + (here ? first + key : 0);
  const T *own = reinterpret_cast<const T*>(segment.k) + row * segment.k_row + 8 * turn, *rest = reinterpret_cast<const T*>(segment.k_shared) + row * segment.shared_row - dk + 8 * turn;
#pragma unroll
  for (int i = 0; i < kChunks / 4; ++i) {
    const int d = 32 * i + 8 * turn;
    copy_16(to + swizzled<kChunks>(key, 4 * i + turn), (d < dk ? own : rest) + (d < width ? 32 * i : 0), here && d < width);
  }
}

/// Rows lane/4 + 8·i of the 16 heads; columns of the values are shared out to the warps.
template <int kValues>
struct LatentState {
  float acc[kValues / kSharedWarps / 8][4];
  float largest[2], total[2];  // total: of this thread's keys alone
};

/// Scores of 16 heads and the warp's eight keys.
template <class T, int kWidth>
__device__ inline void score_latents(const unsigned (&q)[kWidth / 16][4], unsigned tile, float (&s)[4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float sums[4][4] = {};
#pragma unroll
  for (int step = 0; step < kWidth / 16; step += 2) {
    unsigned b[4];
    load_matrices(tile + swizzled<kWidth / 8>(8 * warp + lane % 8, 2 * step + lane / 8), b);
    multiply_add<T>(sums[step % 4], q[step], b[0], b[1]);
    multiply_add<T>(sums[step % 4 + 1], q[step + 1], b[2], b[3]);
  }
#pragma unroll
  for (int x = 0; x < 4; ++x) s[x] = (sums[0][x] + sums[1][x]) + (sums[2][x] + sums[3][x]);
}

template <class T, int kWidth, int kValues>
__device__ inline void mix_latents(unsigned weights, unsigned tile, LatentState<kValues>& state) {
  constexpr int kColumns = kValues / kSharedWarps;
  const int warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = 0; step < kSharedKeys / 16; ++step) {
    unsigned a[4];
    load_a<kSharedKeys / 8>(weights, 0, step, a);
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      unsigned b[4];
      load_b_transposed<kWidth / 8>(tile, 16 * step, warp * kColumns / 8 + n, b);
      multiply_add<T>(state.acc[n], a, b[0], b[1]);
      multiply_add<T>(state.acc[n + 1], a, b[2], b[3]);
    }
  }
}

/// Grid: sequences (of one token each), groups of 16 heads, parts.
template <class T, int kWidth, int kValues>
__global__ void __launch_bounds__(kSharedThreads) attend_latents_mma(const __grid_constant__ AttentionView view) {
  extern __shared__ __align__(128) unsigned char latent_tiles[];
  __shared__ float most[kSharedWarps][kSharedHeads];
  let_next_start();
  if (view.fresh_rows) wait_for_previous();  // the table is one of this pass
  const SequenceRow sequence = sequence_row(view.table, blockIdx.x);
  if (sequence.tokens == 0) return wait_for_previous();
  constexpr unsigned kStage = kSharedKeys * kWidth * 2;
  const unsigned stages = shared_address(latent_tiles), queries = stages + kSharedStages * kStage, weights = queries + kSharedHeads * kWidth * 2;
  unsigned char* const weights_room = latent_tiles + kSharedStages * kStage + kSharedHeads * kWidth * 2;
  const SegmentView& segment = view.segments[0];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, first_head = blockIdx.y * kSharedHeads, part = blockIdx.z;
  const std::int64_t token = sequence.first_token, base = base_row(segment, view.table, blockIdx.x, sequence);
  const NameRange names = visible_names(segment, sequence.past, sequence.past);
  const std::int64_t all = max(names.end - names.first, 0);
  const int from = names.first + static_cast<int>(all * part / view.parts), to = names.first + static_cast<int>(all * (part + 1) / view.parts);

  const auto begin_keys = [&] {
    copy_latents<T, kWidth>(segment, base, from, to, stages);
    commit_copies();
    copy_latents<T, kWidth>(segment, base, from + kSharedKeys, to, stages + kStage);
    commit_copies();
  };
  const bool earlier = !view.fresh_rows && segment.kind == tensor::KvSegment::Kind::kCache && min(to, from + kSharedStages * kSharedKeys) <= sequence.past;  // keys of earlier passes
  if (earlier) begin_keys();
  wait_for_previous();
  if (!earlier) begin_keys();
#pragma unroll
  for (int i = 0; i < (kSharedHeads * kWidth / 8 + kSharedThreads - 1) / kSharedThreads; ++i) {
    const int item = i * kSharedThreads + static_cast<int>(threadIdx.x);
    if (item >= kSharedHeads * kWidth / 8) break;
    const int head = item / (kWidth / 8), chunk = item % (kWidth / 8);
    float4 low = make_float4(0, 0, 0, 0), high = low;
    if (first_head + head < view.heads && 8 * chunk < view.width) {
      const auto* row = reinterpret_cast<const float4*>(view.q.at(token, first_head + head) + 8 * chunk);
      const float scale = view.scale * kLog2E;
      low = row[0], high = row[1];
      low.x *= scale, low.y *= scale, low.z *= scale, low.w *= scale;
      high.x *= scale, high.y *= scale, high.z *= scale, high.w *= scale;
    }
    *reinterpret_cast<uint4*>(latent_tiles + kSharedStages * kStage + swizzled<kWidth / 8>(head, chunk)) = pack_eight<T>(low, high);
  }
  __syncthreads();
  unsigned q[kWidth / 16][4];
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) load_a<kWidth / 8>(queries, 0, step, q[step]);
  LatentState<kValues> state;
#pragma unroll
  for (int i = 0; i < 2; ++i) state.largest[i] = -INFINITY, state.total[i] = 0.0f;
#pragma unroll
  for (auto& tile : state.acc)
#pragma unroll
    for (float& x : tile) x = 0.0f;

  unsigned stage = stages;
#pragma unroll 1
  for (int at = from; at < to; at += kSharedKeys) {
    wait_copies<kSharedStages - 1>();
    __syncthreads();
    float s[4];
    score_latents<T, kWidth>(q, stage, s);
#pragma unroll
    for (int x = 0; x < 4; ++x)
      if (at + 8 * warp + 2 * (lane % 4) + x % 2 >= to) s[x] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = fmaxf(s[2 * i], s[2 * i + 1]);
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      if (lane % 4 == 0) most[warp][8 * i + lane / 4] = largest;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = state.largest[i];
#pragma unroll
      for (int w = 0; w < kSharedWarps; ++w) largest = fmaxf(largest, most[w][8 * i + lane / 4]);
      const float origin = largest == -INFINITY ? 0.0f : largest, keep = exp_of_2(state.largest[i] - origin);
      const float p0 = exp_of_2(s[2 * i] - origin), p1 = exp_of_2(s[2 * i + 1] - origin);
      state.largest[i] = largest;
      state.total[i] = state.total[i] * keep + p0 + p1;
#pragma unroll
      for (auto& tile : state.acc) tile[2 * i] *= keep, tile[2 * i + 1] *= keep;
      *reinterpret_cast<unsigned*>(weights_room + swizzled<kSharedKeys / 8>(8 * i + lane / 4, warp) + 4 * (lane % 4)) = pack_two<T>(p0, p1);
    }
    __syncthreads();
    mix_latents<T, kWidth, kValues>(weights, stage, state);
    __syncthreads();  // the stage has been read
    copy_latents<T, kWidth>(segment, base, at + kSharedStages * kSharedKeys, to, stage);
    commit_copies();
    stage = stage == stages ? stages + kStage : stages;
  }
  wait_copies<0>();
  // The warps' sums of weights, in their order; `most` is free since the last barrier, or was never used.
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float total = state.total[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (lane % 4 == 0) most[warp][8 * i + lane / 4] = total;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = first_head + 8 * i + lane / 4;
    if (head >= view.heads) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kSharedWarps; ++w) total += most[w][8 * i + lane / 4];
    const float largest = state.largest[i] * kLn2;
    const std::int64_t at = (static_cast<std::int64_t>(part) * view.tokens + token) * view.heads + head;
    const Finish finish = view.parts == 1 ? finish_row(view, head, largest, total) : Finish{1.0f, 0.0f};
    float* out = view.parts == 1 ? view.out.at(token, head) : view.part_out + at * view.dv;
    if (warp == 0 && lane % 4 == 0) {
      if (view.parts > 1) view.part_state[2 * at] = largest, view.part_state[2 * at + 1] = total;
      else if (view.lse.defined()) view.lse.at(token)[head] = finish.lse;
    }
#pragma unroll
    for (int n = 0; n < kValues / kSharedWarps / 8; ++n)
      if (const int column = warp * (kValues / kSharedWarps) + 8 * n + 2 * (lane % 4); column < view.dv)
        *reinterpret_cast<float2*>(out + column) = make_float2(state.acc[n][2 * i] * finish.factor, state.acc[n][2 * i + 1] * finish.factor);
  }
}

}  // namespace fathom::cuda
