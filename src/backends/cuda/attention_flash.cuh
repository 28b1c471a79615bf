// Attention of many tokens on tensor cores: tiles of 128 query rows against blocks of 64 keys, after "FlashAttention-2" (Dao 2023). One segment
// (kCache, kFresh) of 16-bit keys and values; q is rounded to their type, times the scale and log2(e), so that weights are powers of two.
// A token's result depends on no later token, but for NaN and infinity among the values of its own block of keys (0 · infinity is NaN).
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kFlashThreads = 128, kFlashRows = 128, kFlashKeys = 64;  // a warp has two tiles of 16 rows
template <int kWidth, int kValues>
inline constexpr int kFlashBytes = (kFlashRows * kWidth + kFlashKeys * (kWidth + kValues)) * 2;

// ---------------------------------------------------------------- tiles

/// What a block of threads works on.
struct FlashTile {
  TileTokens tokens;
  NameRange names;                 // that any of the tokens sees
  std::int64_t base = 0;           // row of name 0
  int first_head = 0, heads = 1, kv_head = 0;
};

/// Finds the block's work; least and most: what its first and its last token see. False: there is none.
__device__ inline bool find_flash_tile(const AttentionView& view, FlashTile& tile, NameRange& least, NameRange& most) {
  const SegmentView& segment = view.segments[0];
  const Piece piece = find_piece(view.table, view.sequences, view.tile_tokens, view.tiles - 1 - static_cast<int>(blockIdx.y));
  if (piece.sequence < 0) return false;
  tile.tokens = {sequence_row(view.table, piece.sequence), piece.sequence, piece.first, 0};
  tile.tokens.count = min(view.tile_tokens, tile.tokens.sequence.tokens - piece.first);
  const std::int32_t past = tile.tokens.sequence.past, p0 = past + piece.first, p1 = p0 + tile.tokens.count - 1;
  least = visible_names(segment, past, p0), most = visible_names(segment, past, p1);
  tile.names = {least.first, most.end};
  tile.base = base_row(segment, view.table, piece.sequence, tile.tokens.sequence);
  tile.kv_head = static_cast<int>(blockIdx.x) / view.pieces;
  const int head_in_group = static_cast<int>(blockIdx.x) % view.pieces * view.tile_heads;
  tile.first_head = tile.kv_head * view.group + head_in_group, tile.heads = min(view.tile_heads, view.group - head_in_group);
  return true;
}

/// Chunks of 16 bytes from rows of the segment to a tile; rows beyond the names are zeros.
template <int kWidth, class Address>
__device__ inline void copy_tile(unsigned to, std::int32_t first, std::int32_t end, int chunks, Address address) {
  constexpr int kChunks = kWidth / 8, kEach = kFlashKeys * kChunks / kFlashThreads;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int item = i * kFlashThreads + static_cast<int>(threadIdx.x), key = item / kChunks, chunk = item % kChunks;
    const bool here = first + key < end && chunk < chunks;
    copy_16(to + swizzled<kChunks>(key, chunk), address(here ? first + key : first, here ? chunk : 0), here);
  }
}

template <class T, int kWidth>
__device__ inline void copy_keys(const SegmentView& segment, const FlashTile& tile, std::int32_t first, unsigned to) {
  const T *k = reinterpret_cast<const T*>(segment.k) + tile.kv_head * segment.k_head, *shared = reinterpret_cast<const T*>(segment.k_shared);
  copy_tile<kWidth>(to, first, tile.names.end, (segment.dk + segment.dr) / 8, [&](std::int32_t name, int chunk) {
    const std::int64_t row = tile.base + name;
    return 8 * chunk < segment.dk ? k + row * segment.k_row + 8 * chunk : shared + row * segment.shared_row + 8 * chunk - segment.dk;
  });
}
template <class T, int kValues>
__device__ inline void copy_values(const SegmentView& segment, const FlashTile& tile, int dv, std::int32_t first, unsigned to) {
  const T* v = reinterpret_cast<const T*>(segment.v) + tile.kv_head * segment.v_head;
  copy_tile<kValues>(to, first, tile.names.end, dv / 8, [&](std::int32_t name, int chunk) { return v + (tile.base + name) * segment.v_row + 8 * chunk; });
}

template <class T, int kWidth>
__device__ inline void store_queries(const AttentionView& view, const FlashTile& tile, unsigned char* to) {
  constexpr int kChunks = kWidth / 8;
  const float scale = view.scale * kLog2E;
#pragma unroll 4
  for (int item = threadIdx.x; item < kFlashRows * kChunks; item += kFlashThreads) {
    const int row = item / kChunks, chunk = item % kChunks, token = row / view.tile_heads, head = row % view.tile_heads;
    float4 low = make_float4(0, 0, 0, 0), high = low;
    if (token < tile.tokens.count && head < tile.heads && 8 * chunk < view.width) {
      const auto* from = reinterpret_cast<const float4*>(view.q.at(tile.tokens.sequence.first_token + tile.tokens.first + token, tile.first_head + head) + 8 * chunk);
      low = from[0], high = from[1];
      low.x *= scale, low.y *= scale, low.z *= scale, low.w *= scale;
      high.x *= scale, high.y *= scale, high.z *= scale, high.w *= scale;
    }
    *reinterpret_cast<uint4*>(to + swizzled<kChunks>(row, chunk)) = pack_eight<T>(low, high);
  }
}

/// Rows 16·m + lane/4 + 8·i of a warp's 32; largest in units of log2.
template <int kValues>
struct FlashState {
  float acc[2][kValues / 8][4];
  float largest[2][2], total[2][2];  // total: of this thread's keys alone
};

/// Row `row` of the tile; its token's position, -1: there is no such row.
__device__ inline std::int32_t position_of(const AttentionView& view, const FlashTile& tile, int row) {
  const int token = row / view.tile_heads, head = row % view.tile_heads;
  return token < tile.tokens.count && head < tile.heads ? tile.tokens.sequence.past + tile.tokens.first + token : -1;
}

/// What a row does not see gets -infinity. `first`: the name of the block's first key.
__device__ inline void mask_block(const AttentionView& view, const FlashTile& tile, std::int32_t first, float (&s)[2][kFlashKeys / 8][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t position = position_of(view, tile, 32 * warp + 16 * m + 8 * i + lane / 4);
      const NameRange names = position >= 0 ? visible_names(view.segments[0], tile.tokens.sequence.past, position) : NameRange{};
#pragma unroll
      for (int n = 0; n < kFlashKeys / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const std::int32_t name = first + 8 * n + 2 * (lane % 4) + j;
          if (name < names.first || name >= names.end) s[m][n][2 * i + j] = -INFINITY;
        }
    }
}

/// Scores become weights; the running maximum and sum take them in.
template <int kValues>
__device__ inline void soften_rows(float (&s)[2][kFlashKeys / 8][4], FlashState<kValues>& state) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = state.largest[m][i];
#pragma unroll
      for (int n = 0; n < kFlashKeys / 8; ++n) largest = fmaxf(largest, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      const float origin = largest == -INFINITY ? 0.0f : largest, keep = exp_of_2(state.largest[m][i] - origin);
      state.largest[m][i] = largest;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kFlashKeys / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float p = exp_of_2(s[m][n][2 * i + j] - origin);
          s[m][n][2 * i + j] = p;
          sum += p;
        }
      state.total[m][i] = state.total[m][i] * keep + sum;
#pragma unroll
      for (int n = 0; n < kValues / 8; ++n) state.acc[m][n][2 * i] *= keep, state.acc[m][n][2 * i + 1] *= keep;
    }
}

template <class T, int kWidth>
__device__ inline void score_rows(unsigned q_tile, unsigned k_tile, float (&s)[2][kFlashKeys / 8][4]) {
  const int warp = threadIdx.x / kWarp;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < kFlashKeys / 8; ++n)
#pragma unroll
      for (int x = 0; x < 4; ++x) s[m][n][x] = 0.0f;
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    unsigned a[2][4];
    load_a<kWidth / 8>(q_tile, 32 * warp, step, a[0]);
    load_a<kWidth / 8>(q_tile, 32 * warp + 16, step, a[1]);
#pragma unroll
    for (int n = 0; n < kFlashKeys / 8; n += 2) {
      unsigned b[4];
      load_b<kWidth / 8>(k_tile, 8 * n, step, b);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add<T>(s[m][n], a[m], b[0], b[1]);
        multiply_add<T>(s[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <class T, int kValues>
__device__ inline void mix_rows(unsigned v_tile, const float (&p)[2][kFlashKeys / 8][4], FlashState<kValues>& state) {
#pragma unroll
  for (int step = 0; step < kFlashKeys / 16; ++step) {
    unsigned a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int x = 0; x < 4; ++x) a[m][x] = pack_two<T>(p[m][2 * step + x / 2][x % 2 * 2], p[m][2 * step + x / 2][x % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < kValues / 8; n += 2) {
      unsigned b[4];
      load_b_transposed<kValues / 8>(v_tile, 16 * step, n, b);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add<T>(state.acc[m][n], a[m], b[0], b[1]);
        multiply_add<T>(state.acc[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <class T, int kValues>
__device__ inline void write_rows(const AttentionView& view, const FlashTile& tile, int part, FlashState<kValues>& state) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = state.total[m][i];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      const int row = 32 * warp + 16 * m + 8 * i + lane / 4;
      if (position_of(view, tile, row) < 0) continue;
      const int head = tile.first_head + row % view.tile_heads;
      const std::int64_t token = tile.tokens.sequence.first_token + tile.tokens.first + row / view.tile_heads;
      const float largest = state.largest[m][i] * kLn2;
      const std::int64_t at = (static_cast<std::int64_t>(part) * view.tokens + token) * view.heads + head;
      const bool whole = view.parts == 1;
      const Finish finish = whole ? finish_row(view, head, largest, total) : Finish{1.0f, 0.0f};
      float* out = whole ? view.out.at(token, head) : view.part_out + at * view.dv;
      if (lane % 4 == 0) {
        if (!whole) view.part_state[2 * at] = largest, view.part_state[2 * at + 1] = total;
        else if (view.lse.defined()) view.lse.at(token)[head] = finish.lse;
      }
      T* rounded = reinterpret_cast<T*>(view.rounded_out) + (token * view.heads + head) * view.dv;
#pragma unroll
      for (int n = 0; n < kValues / 8; ++n)
        if (const int column = 8 * n + 2 * (lane % 4); column < view.dv) {
          const float2 made = make_float2(state.acc[m][n][2 * i] * finish.factor, state.acc[m][n][2 * i + 1] * finish.factor);
          *reinterpret_cast<float2*>(out + column) = made;
          if (whole && view.rounded_out != nullptr) *reinterpret_cast<unsigned*>(rounded + column) = pack_two<T>(made.x, made.y);
        }
    }
}

/// Grid: key heads × pieces of their heads, tiles (the later tokens first), parts.
template <class T, int kWidth, int kValues>
__global__ void __launch_bounds__(kFlashThreads) attend_flash(const __grid_constant__ AttentionView view) {
  after_previous();
  extern __shared__ __align__(128) unsigned char flash_room[];
  const unsigned q_tile = shared_address(flash_room), k_tile = q_tile + kFlashRows * kWidth * 2, v_tile = k_tile + kFlashKeys * kWidth * 2;
  const SegmentView& segment = view.segments[0];
  FlashTile tile;
  NameRange least, most;
  if (!find_flash_tile(view, tile, least, most)) return;
  const std::int64_t blocks = max((tile.names.end - tile.names.first + kFlashKeys - 1) / kFlashKeys, 0);
  const int part = blockIdx.z, from = static_cast<int>(blocks * part / view.parts), to = static_cast<int>(blocks * (part + 1) / view.parts);
  const auto first_of = [&](int block) { return tile.names.first + block * kFlashKeys; };

  if (from < to) copy_keys<T, kWidth>(segment, tile, first_of(from), k_tile);
  commit_copies();
  store_queries<T, kWidth>(view, tile, flash_room);
  FlashState<kValues> state;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) state.largest[m][i] = -INFINITY, state.total[m][i] = 0.0f;
#pragma unroll
    for (int n = 0; n < kValues / 8; ++n)
#pragma unroll
      for (int x = 0; x < 4; ++x) state.acc[m][n][x] = 0.0f;
  }
#pragma unroll 1
  for (int block = from; block < to; ++block) {
    const std::int32_t first = first_of(block);
    wait_copies<0>();
    __syncthreads();  // the block's keys are there, and the values before have been read
    copy_values<T, kValues>(segment, tile, view.dv, first, v_tile);
    commit_copies();
    float s[2][kFlashKeys / 8][4];
    score_rows<T, kWidth>(q_tile, k_tile, s);
    wait_copies<0>();
    __syncthreads();  // the block's values are there, and its keys have been read
    if (block + 1 < to) copy_keys<T, kWidth>(segment, tile, first_of(block + 1), k_tile);
    commit_copies();
    const bool whole = first >= most.first && first + kFlashKeys <= least.end;
    if (!whole) mask_block(view, tile, first, s);
    soften_rows<kValues>(s, state);
    mix_rows<T, kValues>(v_tile, s, state);
  }
  write_rows<T, kValues>(view, tile, part, state);
}

}  // namespace fathom::cuda
