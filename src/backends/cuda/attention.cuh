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
  bool fresh_rows = false;       // rows of the caches were made in this pass (widened), not in earlier ones
  bool clustered = false;        // the parts of a tile are a cluster, which joins them
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

/// q, k and v of single tokens as products left them; null cosines: they are rotated and in the cache already.
struct FreshRows {
  float *q = nullptr, *k = nullptr;  // [tokens, heads, width], [tokens, key heads, width]: rotated in place
  const float* v = nullptr;          // as k
  std::int64_t q_token = 0, q_head = 0, k_token = 0, k_head = 0, v_token = 0, v_head = 0, angle = 0;  // strides in elements
  const float *cosines = nullptr, *sines = nullptr;  // [tokens, width / 2]
  bool interleaved = false;
  bool unread = false;  // nobody reads q and k afterwards: they stay as they are
};

/// The tokens of a tile in one sequence.
struct TileTokens {
  SequenceRow sequence;
  int index = 0;                             // of the sequence
  std::int32_t first = 0, count = 0;         // tokens of the sequence
};

inline constexpr int kMostParts = 64;  // of the keys

/// How much each part of a token and head counts, by a warp: lane i has part i's share, and that of part i + 32.
struct PartShares {
  float share[2];
  Finish finish;
  __device__ PartShares(const AttentionView& view, int token, int head) {
    const std::int64_t rows = static_cast<std::int64_t>(view.tokens) * view.heads, row = static_cast<std::int64_t>(token) * view.heads + head;
    const auto* states = reinterpret_cast<const float2*>(view.part_state);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const float2 none = make_float2(-INFINITY, 0.0f);
    const float2 first = lane < view.parts ? states[lane * rows + row] : none, second = lane + kWarp < view.parts ? states[(lane + kWarp) * rows + row] : none;
    float largest = fmaxf(first.x, second.x);
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    share[0] = relative(first.x, largest), share[1] = relative(second.x, largest);
    finish = finish_row(view, head, largest, warp_sum(first.y * share[0] + second.y * share[1]));
  }
};

}  // namespace fathom::cuda
