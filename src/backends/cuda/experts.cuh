// The kernels of mixtures of experts; ops_experts.cu chooses among them, gathers and joins (experts_gather.cuh). A hit is a (token, expert)
// pair of an expert that is here; hits are sorted by expert, then token, then slot. A run is some hits of one expert, one after the other.
#pragma once
#include <span>

#include "backends/cuda/device_math.cuh"
#include "backends/cuda/launch.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

inline constexpr int kGatherThreads = 1024;
inline constexpr int kMostExperts = 1024;    // on one device
inline constexpr int kMostChoices = 64;      // top_k
inline constexpr int kGatherRoom = 8192;     // counts
inline constexpr int kProductThreads = 256;

// ---------------------------------------------------------------- gathering

struct RunOfExpert { int expert = -1, first = 0, count = 0; };
struct HitsOfExpert { int first_run = 0, first = 0, count = 0; };

struct GatherView {
  View<const std::int32_t> indices;  // [tokens, top_k]
  int pairs = 0, top_k = 1, first_expert = 0, here = 0, run = 1, most_runs = 0;  // run: hits of a run at most
  std::int32_t* token = nullptr;       // [hits]: of each hit, counted from the view's first; may be null
  std::int32_t* hit = nullptr;         // [pairs]: its hit, -1 where the expert is not here
  RunOfExpert* runs = nullptr;         // [most_runs]; expert -1 after the last
  std::int32_t* hits = nullptr;        // [1]: their number; may be null
  HitsOfExpert* experts = nullptr;     // [here], by gather_hits alone; may be null
};

// ---------------------------------------------------------------- products

/// One matrix of every expert: evenly spaced, or by a table.
struct MatrixOfExperts {
  const std::byte *data = nullptr, *scales = nullptr;
  std::int64_t data_step = 0, scales_step = 0;
  const std::byte* const* table = nullptr;  // [here, 2]: data and scales
  __device__ const std::byte* data_of(int expert) const { return table != nullptr ? table[2 * expert] : data + expert * data_step; }
  __device__ const std::byte* scales_of(int expert) const { return table != nullptr ? table[2 * expert + 1] : scales + expert * scales_step; }
};
/// Of at least one expert; a table takes workspace.
MatrixOfExperts matrix_of(Context& context, std::span<const tensor::Weight> weights);

/// y[hit, :] = W x, or gated(W x, U x), for the rows x of every hit.
struct ProductView {
  MatrixOfExperts first, second;       // second: of the gated product
  tensor::WeightFormat format = tensor::WeightFormat::f32;
  std::int64_t rows = 0, cols = 0;
  const float* x = nullptr;            // row of hit i: token[i] (i where token is null) · x_stride
  std::int64_t x_stride = 0;
  const std::int32_t* token = nullptr;
  float* y = nullptr;                  // [hits, rows]
  float limit = 0;
  const RunOfExpert* runs = nullptr;   // expert -1: none
  int run = 1;                         // hits of a run at most
};

__device__ inline const float* row_of_hit(const ProductView& view, int hit) {
  return view.x + (view.token != nullptr ? view.token[hit] : hit) * view.x_stride;
}

template <tensor::WeightFormat F>
inline constexpr bool kHasScales = F == tensor::WeightFormat::fp8_block128 || F == tensor::WeightFormat::mxfp4 || F == tensor::WeightFormat::int8_row || F == tensor::WeightFormat::int4_group128;

/// Eight elements of row `row` from column `col` on, in two steps, so that reading can run ahead. Columns beyond the row are zero.
template <tensor::WeightFormat F, bool kVector>
struct EightColumns {
  EightOf<F> bits;
  float scale = 1.0f, shift = 0.0f;  // shift: int4's zero point
  __device__ void read(const ProductView& view, const std::byte* data, const std::byte* scales, std::int64_t row, std::int64_t col) {
    bits.read(data + row * view.cols * kBitsOf / 8, col);
    if constexpr (kHasScales<F>) scale = weight_scale(view.format, scales, row, col, view.cols);
    if constexpr (F == tensor::WeightFormat::int4_group128)
      if (has_zeros(view.format)) shift = static_cast<float>(8 - weight_zero(view.format, scales, row, col, view.rows, view.cols));
  }
  __device__ void widen(float (&out)[8]) const {
    bits.widen(out);
    if constexpr (kHasScales<F>) {
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = F == tensor::WeightFormat::int4_group128 ? (out[i] + shift) * scale : out[i] * scale;
    }
  }
  static constexpr std::int64_t kBitsOf = F == tensor::WeightFormat::f32 ? 32
                                      : F == tensor::WeightFormat::mxfp4 || F == tensor::WeightFormat::int4_group128 ? 4
                                      : F == tensor::WeightFormat::fp8_block128 || F == tensor::WeightFormat::int8_row ? 8 : 16;
};
/// Any format, rows of any length at any address.
template <tensor::WeightFormat F>
struct EightColumns<F, false> {
  float values[8];
  __device__ void read(const ProductView& view, const std::byte* data, const std::byte* scales, std::int64_t row, std::int64_t col) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = col + i < view.cols ? load_weight(view.format, data, scales, row, col + i, view.rows, view.cols) : 0.0f;
  }
  __device__ void widen(float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = values[i];
  }
};

template <bool kVector>
__device__ inline void read_x(const float* x, std::int64_t col, std::int64_t cols, float (&out)[8]) {
  if constexpr (kVector) {
    const float4 low = *reinterpret_cast<const float4*>(x + col), high = *reinterpret_cast<const float4*>(x + col + 4);
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = col + i < cols ? x[col + i] : 0.0f;
  }
}

/// For few tokens: a warp takes one row of the weights and all (at most kHits) hits of a run, so that the row is read once.
/// Grid: rows in groups of 8, runs.
template <tensor::WeightFormat F, bool kVector, bool kGated, int kHits>
__global__ void __launch_bounds__(kProductThreads) multiply_few(const __grid_constant__ ProductView view) {
  after_previous();
  const RunOfExpert run = view.runs[blockIdx.y];
  const int lane = threadIdx.x % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kProductThreads / kWarp) + threadIdx.x / kWarp;
  if (run.expert < 0 || row >= view.rows) return;
  const std::byte *first = view.first.data_of(run.expert), *first_scales = view.first.scales_of(run.expert);
  const std::byte *second = kGated ? view.second.data_of(run.expert) : nullptr, *second_scales = kGated ? view.second.scales_of(run.expert) : nullptr;
  const float* x[kHits];
#pragma unroll
  for (int n = 0; n < kHits; ++n) x[n] = row_of_hit(view, run.first + min(n, run.count - 1));
  float sums[kHits] = {}, others[kHits] = {};
#pragma unroll 2
  for (std::int64_t col = 8 * lane; col < view.cols; col += 8 * kWarp) {
    EightColumns<F, kVector> a, b;
    a.read(view, first, first_scales, row, col);
    if constexpr (kGated) b.read(view, second, second_scales, row, col);
    float wide[8], other[8];
    a.widen(wide);
    if constexpr (kGated) b.widen(other);
#pragma unroll
    for (int n = 0; n < kHits; ++n) {
      if (n >= run.count) break;
      float values[8];
      read_x<kVector>(x[n], col, view.cols, values);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums[n] += wide[i] * values[i];
        if constexpr (kGated) others[n] += other[i] * values[i];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kHits; ++n) {
    if (n >= run.count) break;
    float value = warp_sum(sums[n]);
    if constexpr (kGated) value = gated(value, warp_sum(others[n]), view.limit);
    if (lane == 0) view.y[(run.first + n) * view.rows + row] = value;
  }
}

inline constexpr int kTileHits = 64, kTileRows = 64, kTileDepth = 32;

struct ProductTile {
  static constexpr int kStride = kTileDepth + 4;
  float x[kTileHits][kStride], first[kTileRows][kStride], second[kTileRows][kStride];
};

/// For many tokens: tiles of 64 hits × 64 rows through shared memory, the next depth read while this one is multiplied. Thread
/// (tx, ty) of 16 × 16 has hits ty + 16·i and rows tx + 16·j. Grid: blocks of rows, runs of 64 hits.
template <tensor::WeightFormat F, bool kVector, bool kGated>
__global__ void __launch_bounds__(kProductThreads) multiply_many(const __grid_constant__ ProductView view) {
  after_previous();
  __shared__ __align__(16) ProductTile tile;
  const RunOfExpert run = view.runs[blockIdx.y];
  if (run.expert < 0) return;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, own = threadIdx.x / 4, at = threadIdx.x % 4 * 8;  // own: the hit and the row that this thread loads
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kTileRows;
  const std::byte *first = view.first.data_of(run.expert), *first_scales = view.first.scales_of(run.expert);
  const std::byte *second = kGated ? view.second.data_of(run.expert) : nullptr, *second_scales = kGated ? view.second.scales_of(run.expert) : nullptr;
  const float* x = own < run.count ? row_of_hit(view, run.first + own) : nullptr;
  const bool has_row = first_row + own < view.rows;
  float sums[4][4] = {}, others[4][4] = {};
  float x_next[8], first_next[8], second_next[8];
  const auto read = [&](std::int64_t depth) {
    const std::int64_t col = depth + at;
#pragma unroll
    for (int i = 0; i < 8; ++i) x_next[i] = first_next[i] = second_next[i] = 0.0f;
    if (col >= view.cols) return;
    if (x != nullptr) read_x<kVector>(x, col, view.cols, x_next);
    if (!has_row) return;
    EightColumns<F, kVector> eight;
    eight.read(view, first, first_scales, first_row + own, col);
    eight.widen(first_next);
    if constexpr (kGated) {
      eight.read(view, second, second_scales, first_row + own, col);
      eight.widen(second_next);
    }
  };
  const auto put = [&](float (&row)[ProductTile::kStride], const float (&values)[8]) {
    *reinterpret_cast<float4*>(&row[at]) = make_float4(values[0], values[1], values[2], values[3]);
    *reinterpret_cast<float4*>(&row[at + 4]) = make_float4(values[4], values[5], values[6], values[7]);
  };
  read(0);
  for (std::int64_t depth = 0; depth < view.cols; depth += kTileDepth) {
    __syncthreads();
    put(tile.x[own], x_next);
    put(tile.first[own], first_next);
    if constexpr (kGated) put(tile.second[own], second_next);
    __syncthreads();
    if (depth + kTileDepth < view.cols) read(depth + kTileDepth);
#pragma unroll
    for (int d = 0; d < kTileDepth; d += 4) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = *reinterpret_cast<const float4*>(&tile.x[ty + 16 * i][d]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(&tile.first[tx + 16 * j][d]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i][j] += a[i].x * b.x + a[i].y * b.y + a[i].z * b.z + a[i].w * b.w;
        if constexpr (kGated) {
          const float4 c = *reinterpret_cast<const float4*>(&tile.second[tx + 16 * j][d]);
#pragma unroll
          for (int i = 0; i < 4; ++i) others[i][j] += a[i].x * c.x + a[i].y * c.y + a[i].z * c.z + a[i].w * c.w;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int hit = ty + 16 * i;
      const std::int64_t row = first_row + tx + 16 * j;
      if (hit < run.count && row < view.rows) view.y[(run.first + hit) * view.rows + row] = kGated ? gated(sums[i][j], others[i][j], view.limit) : sums[i][j];
    }
}

// ---------------------------------------------------------------- joining

struct CombineView {
  View<const std::int32_t> indices;  // [tokens, top_k]
  View<const float> weights;         // [tokens, top_k]
  const std::int32_t* hit = nullptr;  // [tokens · top_k]
  const float* y = nullptr;          // [hits, h]
  const __nv_bfloat16* y16 = nullptr;  // instead of y
  View<float> out;                   // [tokens, h]
  int top_k = 1;
  bool accumulate = false;
  bool fours = false;                // columns come in fours, at multiples of 16 bytes
  const float* added = nullptr;      // [tokens, h] that is added last
  std::int64_t added_stride = 0;
};
void launch_combine(Context& context, const CombineView& view);
/// That and the norm of what comes out, in one launch. False: nothing was launched.
bool combine_and_norm(Context& context, const CombineView& view, const tensor::RmsNormArgs& norm);

inline constexpr int kCombineThreads = 256, kCombineColumns = 1024;  // columns: of a block; twice as many of y16

}  // namespace fathom::cuda
