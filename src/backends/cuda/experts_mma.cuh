// Products of mixtures of experts with 16-bit weights on tensor cores. Hits and runs as in experts.cuh; what goes in is rounded to the weights'
// type, sums are f32, the gated product is stored in the weights' type (it is what the down product would round anyway).
#pragma once
#include "backends/cuda/experts.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

/// As ProductView; rows of x and of the weights start at multiples of 16 bytes and cols is a multiple of 8.
struct MmaView {
  MatrixOfExperts first, second;       // second: of the gated product
  std::int64_t rows = 0, cols = 0;
  const void* x = nullptr;             // row of hit i: token[i] (i where token is null) · x_stride
  std::int64_t x_stride = 0;
  const std::int32_t* token = nullptr;
  void* y = nullptr;                   // [hits, rows]
  float limit = 0;
  const RunOfExpert* runs = nullptr;   // expert -1: none
};

// ---------------------------------------------------------------- few hits: the weights stream by

inline constexpr int kStreamWarps = 4, kMmaStreamThreads = kStreamWarps * kWarp, kStreamSteps = 4;  // steps of 32 columns that are in flight

/// A block has two tiles of 16 rows of the weights: 16 rows of both matrices of a gated product, or 32 of the one; each of its warps a
/// quarter of the columns. The weights are operand A straight from memory: a lane's 16 bytes are eight consecutive columns, for x as well, so
/// that both agree on which column is which. Runs have at most 8·kTiles hits. Grid: blocks of rows, runs.
template <class T, bool kGated, int kTiles>
__global__ void __launch_bounds__(kMmaStreamThreads) stream_hits(const __grid_constant__ MmaView view) {
  after_previous();
  __shared__ float room[kStreamWarps][2][kTiles][4][kWarp];
  const RunOfExpert run = view.runs[blockIdx.y];
  if (run.expert < 0) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, quad = lane % 4, group = lane / 4;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * (kGated ? 16 : 32);
  const T* w[2][2];  // tile, half
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = min(first_row + (kGated ? 0 : 16 * tile) + 8 * half + group, view.rows - 1);
      const std::byte* data = kGated && tile == 1 ? view.second.data_of(run.expert) : view.first.data_of(run.expert);
      w[tile][half] = reinterpret_cast<const T*>(data) + row * view.cols + 8 * quad;
    }
  const T* x[kTiles];
  bool has[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int hit = 8 * n + group, at = run.first + min(hit, run.count - 1);
    has[n] = hit < run.count;
    x[n] = reinterpret_cast<const T*>(view.x) + (view.token != nullptr ? view.token[at] : at) * view.x_stride + 8 * quad;
  }
  const int cols = static_cast<int>(view.cols), steps = (cols + 31) / 32, from = steps * warp / kStreamWarps, to = steps * (warp + 1) / kStreamWarps;
  float sums[2][kTiles][4] = {};
#pragma unroll 1
  for (int at = from; at < to; at += kStreamSteps) {
    uint4 a[kStreamSteps][2][2], b[kStreamSteps][kTiles];
#pragma unroll
    for (int u = 0; u < kStreamSteps; ++u) {
      const int col = 32 * (at + u);
      const bool here = at + u < to && col + 8 * quad < cols;
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) a[u][tile][half] = here ? stream_16(w[tile][half] + col) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) b[u][n] = here && has[n] ? __ldg(reinterpret_cast<const uint4*>(x[n] + col)) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < kStreamSteps; ++u)
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const unsigned low[4] = {a[u][tile][0].x, a[u][tile][1].x, a[u][tile][0].y, a[u][tile][1].y};
        const unsigned high[4] = {a[u][tile][0].z, a[u][tile][1].z, a[u][tile][0].w, a[u][tile][1].w};
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          multiply_add<T>(sums[tile][n], low, b[u][n].x, b[u][n].y);
          multiply_add<T>(sums[tile][n], high, b[u][n].z, b[u][n].w);
        }
      }
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) room[warp][tile][n][i][lane] = sums[tile][n][i];
  __syncthreads();
  // The warps' quarters are added in their order: thread t has fragment t % 32, element t / 32.
  const int element = warp;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    float values[2] = {};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int from_warp = 0; from_warp < kStreamWarps; ++from_warp) values[tile] += room[from_warp][tile][n][element][lane];
    const int hit = 8 * n + 2 * quad + element % 2;
    const std::int64_t row = first_row + group + element / 2 * 8, at = (run.first + hit) * view.rows;
    if (hit >= run.count) continue;
    if constexpr (kGated) {
      if (row < view.rows) reinterpret_cast<T*>(view.y)[at + row] = from_float<T>(gated(values[0], values[1], view.limit));
    } else {
      float* y = reinterpret_cast<float*>(view.y) + at;
      if (row < view.rows) y[row] = values[0];
      if (row + 16 < view.rows) y[row + 16] = values[1];
    }
  }
}

// ---------------------------------------------------------------- many hits: tiles

inline constexpr int kGroupThreads = 128, kGroupHits = 128, kGroupRows = 128, kGroupDepth = 64, kGroupStages = 3;
inline constexpr int kGroupStage = (kGroupHits + kGroupRows) * kGroupDepth * 2, kGroupBytes = kGroupStages * kGroupStage;

/// Tiles of 128 hits × 128 rows of the weights (64 of each matrix of a gated product, eight by eight in turn), 64 columns deep, three deep in
/// shared memory; each of the four warps has 64 × 64. x is in the weights' type. Grid: blocks of rows, runs of 128 hits.
template <class T, bool kGated>
__global__ void __launch_bounds__(kGroupThreads) multiply_group(const __grid_constant__ MmaView view) {
  after_previous();
  extern __shared__ __align__(128) unsigned char group_room[];
  constexpr int kEach = kGroupHits / (kGroupThreads / 8);  // chunks of 16 bytes of either operand that a thread copies
  const RunOfExpert run = view.runs[blockIdx.y];
  if (run.expert < 0) return;
  const unsigned room = shared_address(group_room);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, chunk = threadIdx.x % 8, line = threadIdx.x / 8;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * (kGated ? kGroupRows / 2 : kGroupRows);
  const int cols = static_cast<int>(view.cols), depths = (cols + kGroupDepth - 1) / kGroupDepth;
  const T *first = reinterpret_cast<const T*>(view.first.data_of(run.expert)), *second = kGated ? reinterpret_cast<const T*>(view.second.data_of(run.expert)) : nullptr;
  std::int64_t x_at[kEach];  // -1: no hit
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int hit = line + 16 * i;
    x_at[i] = hit < run.count ? (view.token != nullptr ? view.token[run.first + hit] : run.first + hit) * view.x_stride : -1;
  }
  const auto load = [&](int depth, int stage) {
    const int col = depth * kGroupDepth + 8 * chunk;
    const bool here = depth < depths && col < cols;
    const unsigned to = room + stage * kGroupStage;
#pragma unroll
    for (int i = 0; i < kEach; ++i) copy_16(to + swizzled<8>(line + 16 * i, chunk), reinterpret_cast<const T*>(view.x) + (here && x_at[i] >= 0 ? x_at[i] + col : 0), here && x_at[i] >= 0);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int n = line + 16 * i;
      const T* data = kGated && n / 8 % 2 == 1 ? second : first;
      const std::int64_t row = first_row + (kGated ? n / 16 * 8 + n % 8 : n);
      const bool has = here && row < view.rows;
      copy_16(to + kGroupHits * kGroupDepth * 2 + swizzled<8>(n, chunk), data + (has ? row * cols + col : 0), has);
    }
    commit_copies();
  };
  const int hits = 64 * (warp % 2), rows = 64 * (warp / 2);
  float sums[4][8][4];
#pragma unroll
  for (auto& row : sums)
#pragma unroll
    for (auto& tile : row)
#pragma unroll
      for (float& x : tile) x = 0.0f;
#pragma unroll
  for (int stage = 0; stage < kGroupStages - 1; ++stage) load(stage, stage);
  int stage = 0;
#pragma unroll 1
  for (int depth = 0; depth < depths; ++depth) {
    wait_copies<kGroupStages - 2>();
    __syncthreads();  // this depth is there, and the one before has been read
    load(depth + kGroupStages - 1, stage == 0 ? kGroupStages - 1 : stage - 1);
    const unsigned x_tile = room + stage * kGroupStage, w_tile = x_tile + kGroupHits * kGroupDepth * 2;
    if (hits < run.count) {
#pragma unroll
      for (int step = 0; step < kGroupDepth / 16; ++step) {
        unsigned a[4][4];
#pragma unroll
        for (int m = 0; m < 4; ++m) load_a<8>(x_tile, hits + 16 * m, step, a[m]);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          unsigned b[4];
          load_b<8>(w_tile, rows + 8 * n, step, b);
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            multiply_add<T>(sums[m][n], a[m], b[0], b[1]);
            multiply_add<T>(sums[m][n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
    stage = stage + 1 == kGroupStages ? 0 : stage + 1;
  }
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int hit = hits + 16 * m + 8 * i + lane / 4;
      if (hit >= run.count) continue;
      const std::int64_t at = (run.first + hit) * view.rows;
      if constexpr (kGated) {
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          const std::int64_t row = first_row + (rows + 8 * n) / 2 + 2 * (lane % 4);
          if (row < view.rows)
            *reinterpret_cast<unsigned*>(reinterpret_cast<T*>(view.y) + at + row) =
                pack_two<T>(gated(sums[m][n][2 * i], sums[m][n + 1][2 * i], view.limit), gated(sums[m][n][2 * i + 1], sums[m][n + 1][2 * i + 1], view.limit));
        }
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const std::int64_t row = first_row + rows + 8 * n + 2 * (lane % 4);
          if (row < view.rows) *reinterpret_cast<float2*>(reinterpret_cast<float*>(view.y) + at + row) = make_float2(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
        }
      }
    }
}

}  // namespace fathom::cuda
