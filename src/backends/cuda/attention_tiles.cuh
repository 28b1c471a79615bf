// Attention of anything: tiles of query rows (tokens × heads of one key head) against blocks of keys, by f32 multiply-adds.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/eight_bits.cuh"

namespace fathom::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kKeys = 64;     // of a block of keys
inline constexpr int kDepth = 32;    // of the keys' dimensions at a time
inline constexpr int kColumns = 64;  // of the values at a time

/// Names of a block of keys, and where their rows lie (-1: none).
struct KeyBlock {
  std::int32_t name[kKeys];
  std::int64_t row[kKeys];
};

/// Rows are ty + 16·i, keys tx + 16·j, columns 64·c + 4·tx + 0 … 3 for thread (tx, ty) of 16 × 16.
template <int kRows, int kChunks>
struct TileState {
  float acc[kRows][kChunks][4];
  float largest[kRows], total[kRows];  // total: of this thread's keys alone
  std::int32_t position[kRows];        // -1: no such row
};

template <int kRows>
struct TileRoom {
  static constexpr int kTile = 16 * kRows;
  static constexpr int kStride = kDepth + 4, kWide = kColumns + 4;
  union {
    struct { float q[kTile][kStride], k[kKeys][kStride]; } in;
    float v[kKeys][kWide];
  };
  float p[kTile][kWide];  // -1: not seen
  std::int64_t q_offset[kTile];
  KeyBlock keys;
};

template <class T>
__device__ inline float load_key(const SegmentView& segment, int head, std::int64_t row, int d) {
  if (d < segment.dk) return to_float(reinterpret_cast<const T*>(segment.k)[row * segment.k_row + head * segment.k_head + d]) * key_scale<T>(segment, row, head);
  return to_float(reinterpret_cast<const T*>(segment.k_shared)[row * segment.shared_row + d - segment.dk]) * shared_scale<T>(segment, row);
}

template <class T, int kRows>
__device__ inline void load_keys(const SegmentView& segment, int head, int d, int width, TileRoom<kRows>& room) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kKeys / 8; ++i) {
    const int key = warp + 8 * i;
    const std::int64_t row = room.keys.row[key];
    room.in.k[key][lane] = row >= 0 && d < width ? load_key<T>(segment, head, row, d) : 0.0f;
  }
}

template <class T, int kRows>
__device__ inline void load_values(const SegmentView& segment, int head, int column, int dv, TileRoom<kRows>& room) {
  const int x = threadIdx.x % kColumns, y = threadIdx.x / kColumns;
#pragma unroll
  for (int i = 0; i < kKeys / 4; ++i) {
    const int key = y + 4 * i;
    const std::int64_t row = room.keys.row[key];
    const bool here = row >= 0 && column + x < dv;
    room.v[key][x] = here ? to_float(reinterpret_cast<const T*>(segment.v)[row * segment.v_row + head * segment.v_head + column + x]) * value_scale<T>(segment, row, head) : 0.0f;
  }
}

/// s[i][j] = q row · key, over all dimensions.
template <int kRows>
__device__ inline void score_block(const AttentionView& view, const SegmentView& segment, int head, TileRoom<kRows>& room, float (&s)[kRows][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) s[i][j] = 0.0f;
  for (int d0 = 0; d0 < view.width; d0 += kDepth) {
    const int d = d0 + lane;
    __syncthreads();  // what lay here has been read, and the block's rows are written
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
      const int row = warp + 8 * i;
      const std::int64_t offset = room.q_offset[row];
      room.in.q[row][lane] = offset >= 0 && d < view.width ? view.q.data[offset + d] : 0.0f;
    }
    if (segment.dtype == DType::f32) load_keys<float>(segment, head, d, view.width, room);
    else if (segment.dtype == DType::bf16) load_keys<__nv_bfloat16>(segment, head, d, view.width, room);
    else if (segment.dtype == DType::f8e4m3) load_keys<E4m3>(segment, head, d, view.width, room);
    else if (segment.dtype == DType::i8) load_keys<Int8>(segment, head, d, view.width, room);
    else load_keys<__half>(segment, head, d, view.width, room);
    __syncthreads();
#pragma unroll
    for (int at = 0; at < kDepth; at += 4) {
      float4 k[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) k[j] = *reinterpret_cast<const float4*>(&room.in.k[tx + 16 * j][at]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 q = *reinterpret_cast<const float4*>(&room.in.q[ty + 16 * i][at]);
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] += q.x * k[j].x + q.y * k[j].y + q.z * k[j].z + q.w * k[j].w;
      }
    }
  }
}

/// The running maximum and sum take in a block's scores; its weights go to room.p.
template <int kRows, int kChunks>
__device__ inline void soften_block(const AttentionView& view, const SegmentView& segment, std::int32_t past, bool whole, TileRoom<kRows>& room,
                                    float (&s)[kRows][4], TileState<kRows, kChunks>& state) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const NameRange names = state.position[i] >= 0 ? visible_names(segment, past, state.position[i]) : NameRange{};
    bool sees[4];
    float largest = state.largest[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int32_t name = room.keys.name[tx + 16 * j];
      sees[j] = whole || (name >= names.first && name < names.end);
      s[i][j] *= view.scale;
      if (sees[j]) largest = fmaxf(largest, s[i][j]);
    }
#pragma unroll
    for (int step = 8; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    const float shrink = relative(state.largest[i], largest);
    state.largest[i] = largest;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float p = relative(s[i][j], largest);
      if (sees[j]) sum += p;
      room.p[ty + 16 * i][tx + 16 * j] = sees[j] ? p : -1.0f;
    }
    state.total[i] = state.total[i] * shrink + sum;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int x = 0; x < 4; ++x) state.acc[i][c][x] *= shrink;
  }
}

template <bool kWhole>
__device__ inline void add_weighted(float p, const float4& v, float (&acc)[4]) {
  if (kWhole || !(p < 0.0f)) acc[0] += p * v.x, acc[1] += p * v.y, acc[2] += p * v.z, acc[3] += p * v.w;
}

/// acc += p · v for one chunk of columns. What a row does not see is not even multiplied by zero.
template <bool kWhole, int kRows>
__device__ inline void mix_chunk(const TileRoom<kRows>& room, float (&acc)[kRows][4]) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll 4
  for (int key = 0; key < kKeys; key += 4) {
    float4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = *reinterpret_cast<const float4*>(&room.v[key + j][4 * tx]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 p = *reinterpret_cast<const float4*>(&room.p[ty + 16 * i][key]);
      add_weighted<kWhole>(p.x, v[0], acc[i]);
      add_weighted<kWhole>(p.y, v[1], acc[i]);
      add_weighted<kWhole>(p.z, v[2], acc[i]);
      add_weighted<kWhole>(p.w, v[3], acc[i]);
    }
  }
}

template <int kRows, int kChunks>
__device__ inline void mix_block(const AttentionView& view, const SegmentView& segment, int head, int first_column, bool whole, TileRoom<kRows>& room,
                                 TileState<kRows, kChunks>& state) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = first_column + c * kColumns;
    __syncthreads();  // weights are written, and what lay here has been read
    if (segment.dtype == DType::f32) load_values<float>(segment, head, column, view.dv, room);
    else if (segment.dtype == DType::bf16) load_values<__nv_bfloat16>(segment, head, column, view.dv, room);
    else if (segment.dtype == DType::f8e4m3) load_values<E4m3>(segment, head, column, view.dv, room);
    else if (segment.dtype == DType::i8) load_values<Int8>(segment, head, column, view.dv, room);
    else load_values<__half>(segment, head, column, view.dv, room);
    __syncthreads();
    float acc[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int x = 0; x < 4; ++x) acc[i][x] = state.acc[i][c][x];
    if (whole) mix_chunk<true, kRows>(room, acc);
    else mix_chunk<false, kRows>(room, acc);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int x = 0; x < 4; ++x) state.acc[i][c][x] = acc[i][x];
  }
}

/// Blocks of keys that any token of the tile sees, and the names that they start from.
__device__ inline int blocks_of(const SegmentView& segment, const TileTokens& tile, NameRange& all) {
  const std::int32_t past = tile.sequence.past, p0 = past + tile.first;
  all = {visible_names(segment, past, p0).first, visible_names(segment, past, p0 + tile.count - 1).end};
  if (segment.selected != nullptr) return (segment.selected_count + kKeys - 1) / kKeys;
  return all.end > all.first ? (all.end - all.first + kKeys - 1) / kKeys : 0;
}

/// Fills in the names and rows of block `number` of a segment. True: every token of the tile sees all of them.
template <int kRows>
__device__ inline bool point_at_block(const SegmentView& segment, const TileTokens& tile, const NameRange& all, std::int64_t base, int number,
                                      TileRoom<kRows>& room) {
  const std::int32_t past = tile.sequence.past, p0 = past + tile.first;
  if (threadIdx.x < kKeys) {
    const std::int32_t at = number * kKeys + static_cast<std::int32_t>(threadIdx.x);
    std::int32_t name = -1;
    if (segment.selected == nullptr) name = all.first + at;
    else if (at < segment.selected_count) name = segment.selected[(tile.sequence.first_token + tile.first) * segment.selected_row + at];
    if (name < all.first || name >= all.end) name = -1;
    room.keys.name[threadIdx.x] = name;
    room.keys.row[threadIdx.x] = name < 0 ? -1 : row_of_name(segment, base, name);
  }
  const std::int32_t first = all.first + number * kKeys;
  return segment.selected == nullptr && first >= visible_names(segment, past, p0 + tile.count - 1).first && first + kKeys <= visible_names(segment, past, p0).end;
}

template <int kRows, int kChunks>
__device__ inline void start_tile(const AttentionView& view, const TileTokens& tile, int first_head, int heads, TileRoom<kRows>& room,
                                  TileState<kRows, kChunks>& state) {
  const int ty = threadIdx.x / 16;
  for (int row = threadIdx.x; row < 16 * kRows; row += kTileThreads) {
    const int token = row / view.tile_heads, head = row % view.tile_heads;
    room.q_offset[row] = token < tile.count && head < heads
                             ? (tile.sequence.first_token + tile.first + token) * view.q.strides[0] + (first_head + head) * view.q.strides[1]
                             : -1;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = ty + 16 * i, token = row / view.tile_heads, head = row % view.tile_heads;
    state.position[i] = token < tile.count && head < heads ? tile.sequence.past + tile.first + token : -1;
    state.largest[i] = -INFINITY;
    state.total[i] = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int x = 0; x < 4; ++x) state.acc[i][c][x] = 0.0f;
  }
}

template <int kRows, int kChunks>
__device__ inline void end_tile(const AttentionView& view, const TileTokens& tile, int first_head, int first_column, int part, TileState<kRows, kChunks>& state) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float total = state.total[i];
#pragma unroll
    for (int step = 8; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
    if (state.position[i] < 0) continue;
    const int row = ty + 16 * i, token = tile.sequence.first_token + state.position[i] - tile.sequence.past, head = first_head + row % view.tile_heads;
    float* out = nullptr;
    float factor = 1.0f;
    if (view.parts == 1) {
      const Finish finish = finish_row(view, head, state.largest[i], total);
      factor = finish.factor;
      out = view.out.at(token, head);
      if (tx == 0 && first_column == 0 && view.lse.defined()) view.lse.at(token)[head] = finish.lse;
    } else {
      const std::int64_t at = (static_cast<std::int64_t>(part) * view.tokens + token) * view.heads + head;
      out = view.part_out + at * view.dv;
      if (tx == 0 && first_column == 0) view.part_state[2 * at] = state.largest[i], view.part_state[2 * at + 1] = total;
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int x = 0; x < 4; ++x)
        if (const int column = first_column + c * kColumns + 4 * tx + x; column < view.dv) out[column] = state.acc[i][c][x] * factor;
  }
}

/// Grid: tiles (the later tokens first), key heads × pieces of their heads, parts × pieces of the columns.
template <int kRows, int kChunks>
__global__ void __launch_bounds__(kTileThreads) attend_tiles(const __grid_constant__ AttentionView view) {
  after_previous();
  __shared__ TileRoom<kRows> room;
  TileTokens tile;
  const Piece piece = find_piece(view.table, view.sequences, view.tile_tokens, view.tiles - 1 - static_cast<int>(blockIdx.x));
  if (piece.sequence < 0) return;
  tile.sequence = sequence_row(view.table, piece.sequence);
  tile.index = piece.sequence;
  tile.first = piece.first;
  tile.count = min(view.tile_tokens, tile.sequence.tokens - piece.first);
  const int kv_head = blockIdx.y / view.pieces, head_in_group = static_cast<int>(blockIdx.y) % view.pieces * view.tile_heads;
  const int first_head = kv_head * view.group + head_in_group, heads = min(view.tile_heads, view.group - head_in_group);
  const int part = blockIdx.z / view.column_pieces, first_column = static_cast<int>(blockIdx.z) % view.column_pieces * kChunks * kColumns;
  TileState<kRows, kChunks> state;
  start_tile(view, tile, first_head, heads, room, state);

  NameRange all;
  int total = 0;
  for (int s = 0; s < view.segment_count; ++s) total += blocks_of(view.segments[s], tile, all);
  const int from = static_cast<int>(static_cast<std::int64_t>(total) * part / view.parts), to = static_cast<int>(static_cast<std::int64_t>(total) * (part + 1) / view.parts);
  int before = 0;
#pragma unroll 1
  for (int s = 0; s < view.segment_count; ++s) {
    const SegmentView& segment = view.segments[s];
    const int blocks = blocks_of(segment, tile, all), head = kv_head / (view.kv_heads / segment.kv_heads);
    const std::int64_t base = base_row(segment, view.table, tile.index, tile.sequence);
#pragma unroll 1
    for (int number = max(from - before, 0); number < min(to - before, blocks); ++number) {
      __syncthreads();  // the block before has been read
      const bool whole = point_at_block(segment, tile, all, base, number, room);
      float scores[kRows][4];
      score_block(view, segment, head, room, scores);
      soften_block(view, segment, tile.sequence.past, whole, room, scores, state);
      mix_block(view, segment, head, first_column, whole, room, state);
    }
    before += blocks;
  }
  end_tile(view, tile, first_head, first_column, part, state);
}

}  // namespace fathom::cuda
