// What the kernels of attention share; ops_attention.cu chooses among them. Scores, softmax and sums in f32.
#pragma once
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/segments.cuh"

namespace fathom::cuda {

inline constexpr int kMostSegments = 3;
inline constexpr int kJoinThreads = 256;

struct AttentionView {
  SegmentView segments[kMostSegments];
  int segment_count = 0;
  bool selects = false;
  View<const float> q;           // [tokens, heads, width]
  const std::byte* rounded_q = nullptr;  // the same, dense, times scale · log2(e), in the keys' 16-bit type, or null: of flash_wide.cuh alone
  View<float> out;               // [tokens, heads, dv]
  View<float> lse;               // [tokens, heads] or undefined
  FloatVector sink;              // [heads] or undefined
  const std::int32_t* table = nullptr;
  int sequences = 0, tokens = 0, heads = 0, kv_heads = 1, group = 1, width = 0, dv = 0;
  float scale = 1;
  // The cut: tiles of tile_tokens × tile_heads rows, `pieces` of them for the heads of a key head; every tile's keys in `parts`.
  int tile_heads = 1, tile_tokens = 1, pieces = 1, tiles = 0, column_pieces = 1, parts = 1;
  std::byte* rounded_out = nullptr;  // [tokens, heads, dv], out once more for the product that comes next, or null
  DType rounded_type = DType::bf16;  // or f16
  float* part_out = nullptr;     // [parts, tokens, heads, dv], relative to the part's own largest score
  float* part_state = nullptr;   // [parts, tokens, heads, 2]: that score and the sum of exponentials
};

/// exp(a - b) where b = -infinity stands for "nothing seen yet".
__device__ inline float relative(float a, float b) { return expf(a - (b == -INFINITY ? 0.0f : b)); }

/// What a row gets in the end: the sink joins, the sum divides, and lse.
struct Finish { float factor = 0, lse = 0; };
__device__ inline Finish finish_row(const AttentionView& view, int head, float largest, float total) {
  float own = 1.0f;
  if (view.sink.data != nullptr) {
    const float sink = view.sink[head], both = fmaxf(largest, sink);
    own = relative(largest, both);
    total = total * own + relative(sink, both);
    largest = both;
  }
  return {total == 0.0f ? 0.0f : own / total, largest + logf(total)};
}

/// Element `at` of rounded_out.
__device__ inline void store_rounded(const AttentionView& view, std::int64_t at, float value) {
  if (view.rounded_out == nullptr) return;
  if (view.rounded_type == DType::bf16) reinterpret_cast<__nv_bfloat16*>(view.rounded_out)[at] = from_float<__nv_bfloat16>(value);
  else reinterpret_cast<__half*>(view.rounded_out)[at] = from_float<__half>(value);
}

/// The tokens of a tile in one sequence.
struct TileTokens {
  SequenceRow sequence;
  int index = 0;                             // of the sequence
  std::int32_t first = 0, count = 0;         // tokens of the sequence
};

// ---------------------------------------------------------------- joining

inline constexpr int kMostParts = 64;

/// One block a token and head. Every warp looks at all parts, two a lane; threads of the same four columns take parts in turn, and are
/// added in a fixed order.
static __global__ void __launch_bounds__(kJoinThreads) join_parts(const __grid_constant__ AttentionView view) {
  after_previous();
  static_assert(kMostParts == 2 * kWarp);
  __shared__ float shares[kMostParts];
  __shared__ float4 room[kJoinThreads];
  const std::int64_t rows = static_cast<std::int64_t>(view.tokens) * view.heads, row = blockIdx.x;
  const int token = static_cast<int>(row / view.heads), head = static_cast<int>(row % view.heads), lane = threadIdx.x % kWarp;
  const auto* states = reinterpret_cast<const float2*>(view.part_state);
  const float2 none = make_float2(-INFINITY, 0.0f);
  const float2 first = lane < view.parts ? states[lane * rows + row] : none, second = lane + kWarp < view.parts ? states[(lane + kWarp) * rows + row] : none;
  float largest = fmaxf(first.x, second.x);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  const float first_share = relative(first.x, largest), second_share = relative(second.x, largest);
  const float total = warp_sum(first.y * first_share + second.y * second_share);
  if (threadIdx.x < kWarp) shares[lane] = first_share, shares[lane + kWarp] = second_share;
  __syncthreads();
  const Finish finish = finish_row(view, head, largest, total);
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
