// Latent attention on Hopper's matrix units: 64 rows (tokens × heads) against blocks of 64 keys of 576 columns, whose first 512 are the values
// (kCache, 16 bits; q rounded to their type, times the scale and log2(e)). Three warpgroups, after FlashMLA's split of the work (DeepSeek, 2025):
// the first makes scores and weights and the first half of the output, the second the other half, one block behind; the third reads keys.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/wgmma.cuh"

namespace fathom::cuda {

inline constexpr int kWideThreads = 3 * kGroupOfWarps, kWideRows = 64, kWideKeys = 64, kWideWidth = 576, kWideValues = 512;
inline constexpr unsigned kWideTile = 64 * 128;                          // 64 rows of 64 columns
inline constexpr unsigned kWideBlock = kWideWidth / 64 * kWideTile;      // q, and each of two blocks of keys
inline constexpr unsigned kWideWeights = 3 * kWideBlock, kWideKeep = kWideWeights + kWideTile, kWideBarriers = kWideKeep + kWideRows * 4;
inline constexpr int kWideBytes = static_cast<int>(kWideBarriers) + 112 + 1024;  // 1024: to start at a multiple of it
// A block of keys comes and goes in three stretches of columns: those of the first warpgroup's values, of the second's, and the rest.
inline constexpr int kWideStretches = 3;
constexpr int wide_stretch(int stretch) { return stretch < kWideStretches ? 4 * stretch : kWideWidth / 64; }  // its first tile
/// The barrier of a stretch of a place: it is there (from kWideBarriers on), and as many later: it has been read.
__device__ inline unsigned wide_barrier(unsigned barriers, int place, int stretch) { return barriers + static_cast<unsigned>(8 * (kWideStretches * place + stretch)); }
// After these: weights and keep of a block are there; they have been read. (Barriers by number would do as well, but compute-sanitizer's
// racecheck does not understand threads that arrive at one without waiting.)
inline constexpr unsigned kWideHanded = 16 * kWideStretches, kWideTaken = kWideHanded + 8;  // from the barriers of what has been read on

struct WideTile {
  SequenceRow sequence;
  int first = 0, count = 0;             // tokens of the sequence
  int first_head = 0, heads = 1;
  std::int64_t base = 0;                // row of name 0
  int from = 0, blocks = 0, end = 0;    // of the part: the first name, blocks, and the names' end for its last token
};

/// Finds the block's work. False: there is none.
__device__ inline bool find_wide_tile(const AttentionView& view, WideTile& tile) {
  const Piece piece = find_piece(view.table, view.sequences, view.tile_tokens, view.tiles - 1 - static_cast<int>(blockIdx.y));
  if (piece.sequence < 0) return false;
  tile.sequence = sequence_row(view.table, piece.sequence);
  tile.first = piece.first, tile.count = min(view.tile_tokens, tile.sequence.tokens - piece.first);
  tile.first_head = static_cast<int>(blockIdx.x) * view.tile_heads, tile.heads = min(view.tile_heads, view.heads - tile.first_head);
  tile.base = base_row(view.segments[0], view.table, piece.sequence, tile.sequence);
  const int end = tile.sequence.past + tile.first + tile.count, part = blockIdx.z;
  const std::int64_t all = (end + kWideKeys - 1) / kWideKeys;
  const int from = static_cast<int>(all * part / view.parts), to = static_cast<int>(all * (part + 1) / view.parts);
  tile.from = from * kWideKeys, tile.blocks = to - from, tile.end = end;
  return true;
}

/// Row `row` of the tile is a token and a head; -1: there is none. Its token sees names below position + 1.
__device__ inline int wide_position(const AttentionView& view, const WideTile& tile, int row) {
  const int token = row / view.tile_heads, head = row % view.tile_heads;
  return token < tile.count && head < tile.heads ? tile.sequence.past + tile.first + token : -1;
}
__device__ inline std::int64_t wide_token(const AttentionView& view, const WideTile& tile, int row) { return tile.sequence.first_token + tile.first + row / view.tile_heads; }

#if defined(FATHOM_WGMMA_HERE)

template <class T>
__device__ inline void store_wide_queries(const AttentionView& view, const WideTile& tile, unsigned char* to) {
  const float scale = view.scale * kLog2E;
#pragma unroll 4
  for (int item = threadIdx.x; item < kWideRows * kWideWidth / 8; item += kWideThreads) {
    const int row = item / (kWideWidth / 8), chunk = item % (kWideWidth / 8);
    float4 low = make_float4(0, 0, 0, 0), high = low;
    if (wide_position(view, tile, row) >= 0) {
      const auto* from = reinterpret_cast<const float4*>(view.q.at(wide_token(view, tile, row), tile.first_head + row % view.tile_heads) + 8 * chunk);
      low = from[0], high = from[1];
      low.x *= scale, low.y *= scale, low.z *= scale, low.w *= scale;
      high.x *= scale, high.y *= scale, high.z *= scale, high.w *= scale;
    }
    *reinterpret_cast<uint4*>(to + wide_swizzled(row, chunk, kWideTile)) = pack_eight<T>(low, high);
  }
}

/// The third warpgroup: blocks of keys, each stretch when its place is free.
template <class T>
__device__ inline void read_wide_keys(const AttentionView& view, const WideTile& tile, unsigned keys, unsigned full, unsigned empty) {
  const SegmentView& segment = view.segments[0];
  const int thread = static_cast<int>(threadIdx.x) % kGroupOfWarps, chunk = thread % 8, line = thread / 8;
  const T *k = reinterpret_cast<const T*>(segment.k), *shared = reinterpret_cast<const T*>(segment.k_shared);
#pragma unroll 1
  for (int block = 0; block < tile.blocks; ++block) {
    const int place = block % 2, first = tile.from + block * kWideKeys;
#pragma unroll
    for (int stretch = 0; stretch < kWideStretches; ++stretch) {
      if (block >= 2) wait_phase(wide_barrier(empty, place, stretch), (block / 2 - 1) & 1);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = line + 16 * i;
        const bool here = first + key < tile.end;
        const std::int64_t row = tile.base + (here ? first + key : 0);
        const T *own = k + row * segment.k_row, *rest = shared + row * segment.shared_row - segment.dk;
        const unsigned to = keys + place * kWideBlock + wide_swizzled(key, chunk, kWideTile);
#pragma unroll
        for (int c = wide_stretch(stretch); c < wide_stretch(stretch + 1); ++c) {
          const int d = 64 * c + 8 * chunk;
          copy_16(to + c * kWideTile, (d < segment.dk ? own : rest) + d, here);
        }
      }
      commit_copies();
    }
    const auto tell = [&](int stretch) {
      publish_shared();
      arrive(wide_barrier(full, place, stretch));
    };
    wait_copies<2>();
    tell(0);
    wait_copies<1>();
    tell(1);
    wait_copies<0>();
    tell(2);
  }
}

/// s = q · keys of a block, under way when it returns.
template <class T>
__device__ inline void score_wide(unsigned queries, unsigned keys, unsigned full, int block, float (&s)[32]) {
#pragma unroll
  for (int stretch = 0; stretch < kWideStretches; ++stretch) {
    if (stretch > 0) {  // the first: before the products that may be under way
      wait_phase(wide_barrier(full, block % 2, stretch), (block / 2) & 1);
      begin_products();
    }
#pragma unroll
    for (int step = 4 * wide_stretch(stretch); step < 4 * wide_stretch(stretch + 1); ++step) {
      const unsigned at = step / 4 * kWideTile + step % 4 * 32;
      multiply_64_by_rows<T>(s, by_rows(queries + at), by_rows(keys + at), step > 0);
    }
    commit_products();
  }
}

struct WideState { float largest[2], total[2]; };  // rows lane/4 + 8·i of the warp's 16

/// Scores become weights, here and in shared memory; keep: what sums up to now are multiplied with.
template <class T>
__device__ inline void soften_wide(const AttentionView& view, const WideTile& tile, int first, float (&s)[32], unsigned (&p)[4][4], WideState& state, float (&keep)[2]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (first + kWideKeys > tile.sequence.past + tile.first + 1) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int end = wide_position(view, tile, 16 * warp + 8 * i + lane / 4) + 1;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (first + 8 * n + 2 * (lane % 4) + j >= end) s[4 * n + 2 * i + j] = -INFINITY;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float largest = state.largest[i];
#pragma unroll
    for (int n = 0; n < 8; ++n) largest = fmaxf(largest, fmaxf(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float origin = largest == -INFINITY ? 0.0f : largest;
    keep[i] = exp_of_2(state.largest[i] - origin);
    state.largest[i] = largest;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float a = exp_of_2(s[4 * n + 2 * i] - origin), b = exp_of_2(s[4 * n + 2 * i + 1] - origin);
      sum += a + b;
      p[n / 2][n % 2 * 2 + i] = pack_two<T>(a, b);
    }
    state.total[i] = state.total[i] * keep[i] + sum;
  }
}

__device__ inline void scale_wide(float (&acc)[128], const float (&keep)[2]) {
#pragma unroll
  for (int n = 0; n < 32; ++n) acc[4 * n] *= keep[0], acc[4 * n + 1] *= keep[0], acc[4 * n + 2] *= keep[1], acc[4 * n + 3] *= keep[1];
}

/// 256 columns from first_column on, times what the rows' factors are.
__device__ inline void write_wide(const AttentionView& view, const WideTile& tile, int first_column, const float (&acc)[128], const float (&factor)[2]) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupOfWarps, lane = thread % kWarp, warp = thread / kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = 16 * warp + 8 * i + lane / 4;
    if (wide_position(view, tile, row) < 0) continue;
    const std::int64_t token = wide_token(view, tile, row), head = tile.first_head + row % view.tile_heads;
    float* out = view.parts == 1 ? view.out.at(token, head) : view.part_out + ((static_cast<std::int64_t>(blockIdx.z) * view.tokens + token) * view.heads + head) * view.dv;
#pragma unroll
    for (int n = 0; n < 32; ++n)
      *reinterpret_cast<float2*>(out + first_column + 8 * n + 2 * (lane % 4)) = make_float2(acc[4 * n + 2 * i] * factor[i], acc[4 * n + 2 * i + 1] * factor[i]);
  }
}

/// The first warpgroup.
template <class T>
__device__ inline void lead_wide(const AttentionView& view, const WideTile& tile, unsigned char* room, unsigned at, unsigned full, unsigned empty) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, own_row = 16 * warp + lane / 4;
  const unsigned keys = at + kWideBlock;
  auto* const keeps = reinterpret_cast<float*>(room + kWideKeep);
  WideState state{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
  float acc[128], s[32];
#pragma unroll
  for (float& x : acc) x = 0.0f;
#pragma unroll
  for (float& x : s) x = 0.0f;
  if (tile.blocks > 0) {
    wait_phase(full, 0);
    begin_products();
    score_wide<T>(at, keys, full, 0, s);
    wait_products<0>();
    arrive(wide_barrier(empty, 0, 2));
  }
  unsigned p[4][4];
  float keep[2];
  const auto hand_over = [&](int block) {  // weights and keep of the block go to shared memory, and what was summed up is scaled
    soften_wide<T>(view, tile, tile.from + block * kWideKeys, s, p, state, keep);
    if (block > 0) wait_phase(empty + kWideTaken, (block - 1) & 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = own_row + 8 * i;
      if (lane % 4 == 0) keeps[row] = keep[i];
#pragma unroll
      for (int n = 0; n < 8; ++n) *reinterpret_cast<unsigned*>(room + kWideWeights + wide_swizzled(row, n, kWideTile) + 4 * (lane % 4)) = p[n / 2][n % 2 * 2 + i];
    }
    publish_shared();
    arrive(empty + kWideHanded);
    scale_wide(acc, keep);
  };
  const auto mix = [&](unsigned values) {
#pragma unroll
    for (int step = 0; step < 4; ++step) multiply_256_by_columns<T>(acc, p[step], by_columns(values + step * 2048, kWideTile), true);
    commit_products();
  };
#pragma unroll 1
  for (int block = 0; block + 1 < tile.blocks; ++block) {
    const int place = block % 2;
    hand_over(block);
    wait_phase(wide_barrier(full, 1 - place, 0), ((block + 1) / 2) & 1);
    begin_products();
    mix(keys + place * kWideBlock);
    score_wide<T>(at, keys + (1 - place) * kWideBlock, full, block + 1, s);
    wait_products<kWideStretches>();
    arrive(wide_barrier(empty, place, 0));
    wait_products<0>();
    arrive(wide_barrier(empty, 1 - place, 2));
  }
  if (tile.blocks > 0) {
    hand_over(tile.blocks - 1);
    begin_products();
    mix(keys + (tile.blocks - 1) % 2 * kWideBlock);
    wait_products<0>();
  }
  float factor[2] = {1.0f, 1.0f};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float total = state.total[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int row = own_row + 8 * i;
    if (wide_position(view, tile, row) < 0) continue;
    const std::int64_t token = wide_token(view, tile, row), head = tile.first_head + row % view.tile_heads;
    const float largest = state.largest[i] * kLn2;
    if (view.parts == 1) {
      const Finish finish = finish_row(view, static_cast<int>(head), largest, total);
      factor[i] = finish.factor;
      if (lane % 4 == 0 && view.lse.defined()) view.lse.at(token)[head] = finish.lse;
    } else if (lane % 4 == 0) {
      float* to = view.part_state + 2 * ((static_cast<std::int64_t>(blockIdx.z) * view.tokens + token) * view.heads + head);
      to[0] = largest, to[1] = total;
    }
  }
  if (tile.blocks > 0) wait_phase(empty + kWideTaken, (tile.blocks - 1) & 1);
  if (lane % 4 == 0) keeps[own_row] = factor[0], keeps[own_row + 8] = factor[1];
  arrive(empty + kWideHanded);
  write_wide(view, tile, 0, acc, factor);
}

/// The second warpgroup.
template <class T>
__device__ inline void follow_wide(const AttentionView& view, const WideTile& tile, unsigned char* room, unsigned at, unsigned full, unsigned empty) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupOfWarps, own_row = 16 * (thread / kWarp) + thread % kWarp / 4;
  const auto* keeps = reinterpret_cast<const volatile float*>(room + kWideKeep);
  const unsigned keys = at + kWideBlock + 4 * kWideTile;
  float acc[128];
#pragma unroll
  for (float& x : acc) x = 0.0f;
#pragma unroll 1
  for (int block = 0; block < tile.blocks; ++block) {
    const int place = block % 2;
    wait_phase(wide_barrier(full, place, 1), (block / 2) & 1);
    wait_phase(empty + kWideHanded, block & 1);
    const float keep[2] = {keeps[own_row], keeps[own_row + 8]};
    scale_wide(acc, keep);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step) multiply_256_by_columns<T>(acc, by_rows(at + kWideWeights + 32 * step), by_columns(keys + place * kWideBlock + step * 2048, kWideTile), true);
    commit_products();
    wait_products<0>();
    arrive(empty + kWideTaken);
    arrive(wide_barrier(empty, place, 1));
  }
  wait_phase(empty + kWideHanded, tile.blocks & 1);
  const float factor[2] = {keeps[own_row], keeps[own_row + 8]};
  write_wide(view, tile, kWideValues / 2, acc, factor);
}

#endif  // FATHOM_WGMMA_HERE

/// Grid: pieces of the heads, tiles (the later tokens first), parts.
template <class T>
__global__ void __launch_bounds__(kWideThreads, 1) attend_latents_wide(const __grid_constant__ AttentionView view) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ unsigned char wide_room[];
  const unsigned start = shared_address(wide_room), at = (start + 1023) / 1024 * 1024, full = at + kWideBarriers, empty = full + 16 * kWideStretches;
  unsigned char* const room = wide_room + (at - start);
  WideTile tile;
  if (!find_wide_tile(view, tile)) return;
  if (threadIdx.x == 0)
    for (int i = 0; i < 4 * kWideStretches + 2; ++i) init_barrier(full + 8 * i, kGroupOfWarps);
  store_wide_queries<T>(view, tile, room);
  publish_shared();
  __syncthreads();
  const int role = static_cast<int>(threadIdx.x) / kGroupOfWarps;
  if (role == 0) {
    take_registers<232>();
    lead_wide<T>(view, tile, room, at, full, empty);
  } else if (role == 1) {
    take_registers<208>();
    follow_wide<T>(view, tile, room, at, full, empty);
  } else {
    give_registers<56>();
    read_wide_keys<T>(view, tile, at + kWideBlock, full, empty);
  }
#endif
}

}  // namespace fathom::cuda
