// Products of mixtures of experts with weights of eight-bit floats, few hits an expert: the weights stream by and are read once a run. Codes become
// f16, which holds every one of them, one instruction for two; what they are multiplied with is f16 as well, each row divided by a power of
// two so that nothing of it is out of range. Tensor cores, sums in f32, a block's scale after every 64 columns. Hits and runs as in experts.cuh.
#pragma once
#include "backends/cuda/experts.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

// ---------------------------------------------------------------- rows in f16

/// Rows as f16, and the power of two that each was divided by.
struct HalfRows {
  __half* values = nullptr;  // [rows, width]
  float* factors = nullptr;  // [rows]
};
struct HalfRowsView {
  View<const float> from;  // [rows, width]; rows start at multiples of 16 bytes, width is a multiple of 4
  HalfRows to;
  const std::int32_t* count = nullptr;  // rows that are there, where fewer may be
};

inline constexpr int kHalfRowThreads = 256;

/// The power of two that brings `most` to [2^13, 2^14); 1 for 0, NaN and infinity. The least is 2^-100: what is smaller stays small.
__device__ inline float factor_of(float most) {
  if (!(most > 0.0f && most <= 3.4028235e38f)) return 1.0f;
  const int exponent = static_cast<int>(__float_as_uint(most) >> 23) - 127;
  return __uint_as_float(static_cast<unsigned>(max(exponent - 13, -100) + 127) << 23);
}

/// Grid: rows.
static __global__ void __launch_bounds__(kHalfRowThreads) halve_rows(const __grid_constant__ HalfRowsView view) {
  after_previous();
  __shared__ BlockRoom room;
  const std::int64_t row = blockIdx.x, width = view.from.dims[1];
  if (view.count != nullptr && row >= *view.count) return;
  const float* from = view.from.at(row);
  float most = 0.0f;
  for (std::int64_t i = 4 * static_cast<std::int64_t>(threadIdx.x); i < width; i += 4 * kHalfRowThreads) {
    const float4 x = *reinterpret_cast<const float4*>(from + i);
    most = larger(most, larger(larger(fabsf(x.x), fabsf(x.y)), larger(fabsf(x.z), fabsf(x.w))));
  }
  const float factor = factor_of(block_max(most, room)), inverse = 1.0f / factor;
  if (threadIdx.x == 0) view.to.factors[row] = factor;
  __half* to = view.to.values + row * width;
  for (std::int64_t i = 4 * static_cast<std::int64_t>(threadIdx.x); i < width; i += 4 * kHalfRowThreads) {
    const float4 x = *reinterpret_cast<const float4*>(from + i);
    *reinterpret_cast<uint2*>(to + i) = make_uint2(pack_two<__half>(x.x * inverse, x.y * inverse), pack_two<__half>(x.z * inverse, x.w * inverse));
  }
}

// ---------------------------------------------------------------- products

struct HitStreamView {
  MatrixOfExperts first, second;       // second: of the gated product
  tensor::WeightFormat format = tensor::WeightFormat::fp8_block128;
  std::int64_t rows = 0, cols = 0;     // cols: a multiple of 16
  HalfRows x;                          // row of hit i: token[i], i where token is null
  const std::int32_t* token = nullptr;
  float* y = nullptr;                  // [hits, rows]
  float limit = 0;
  const RunOfExpert* runs = nullptr;   // [most_runs]; expert -1 after the last
  int most_runs = 0;
};

inline constexpr int kCodeWarps = 4, kCodeThreads = kCodeWarps * kWarp, kCodeColumns = 64;  // columns of a step

/// Formats whose scale is the same for 64 columns of a row.
constexpr bool streams_codes(tensor::WeightFormat format) {
  using tensor::WeightFormat;
  return format == WeightFormat::fp8_block128 || format == WeightFormat::fp8_block128_e8m0 || format == WeightFormat::fp8_row;
}

/// Sixteen codes that are read once.
__device__ inline uint4 stream_codes(const std::byte* from) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n" : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "l"(from));
  return out;
}
/// Four codes as two registers of two f16.
__device__ inline uint2 halves_of(unsigned codes) {
  const __half2_raw low = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes & 0xffffu), __NV_E4M3);
  const __half2_raw high = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes >> 16), __NV_E4M3);
  return {static_cast<unsigned>(low.x) | static_cast<unsigned>(low.y) << 16, static_cast<unsigned>(high.x) | static_cast<unsigned>(high.y) << 16};
}

/// What a tile's sums of the columns from `col` on are multiplied with: a number for 128 rows and columns. 1 where a row has its own.
__device__ inline float block_scale(tensor::WeightFormat format, const std::byte* scales, int col) {
  if (format == tensor::WeightFormat::fp8_block128) return __ldg(reinterpret_cast<const float*>(scales) + col / 128);
  if (format == tensor::WeightFormat::fp8_block128_e8m0) return e8m0_to_float(static_cast<std::uint8_t>(scales[col / 128]));
  return 1.0f;
}

/// A block has two tiles of 16 rows of the weights: 16 rows of both matrices of a gated product, or 32 of the one; each of its warps a
/// quarter of the columns. A lane's 16 bytes are 16 consecutive columns, for x as well, so that both agree on which column is which. Runs
/// have at most 8·kTiles hits. Grid: blocks of rows, runs (a block takes every gridDim.y-th).
template <bool kGated, int kTiles>
__global__ void __launch_bounds__(kCodeThreads, 3) stream_code_hits(const __grid_constant__ HitStreamView view) {
  after_previous();
  constexpr int kSteps = kTiles == 1 ? 4 : 2;  // that are in flight
  __shared__ float room[kCodeWarps][2][kTiles][4][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, quad = lane % 4, group = lane / 4;
  const int first_row = static_cast<int>(blockIdx.x) * (kGated ? 16 : 32), last_row = static_cast<int>(view.rows) - 1;
  const int cols = static_cast<int>(view.cols), steps = (cols + kCodeColumns - 1) / kCodeColumns, from = steps * warp / kCodeWarps, to = steps * (warp + 1) / kCodeWarps;
  const int scale_bytes = (cols + 127) / 128 * (view.format == tensor::WeightFormat::fp8_block128 ? 4 : 1);  // of 128 rows
  for (int at_run = static_cast<int>(blockIdx.y); at_run < view.most_runs; at_run += static_cast<int>(gridDim.y)) {
    const RunOfExpert run = view.runs[at_run];
    if (run.expert < 0) return;
    const std::byte *w[2][2], *scales[2];  // tile, half
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const MatrixOfExperts& matrix = kGated && tile == 1 ? view.second : view.first;
      const int first = first_row + (kGated ? 0 : 16 * tile);
      scales[tile] = matrix.scales_of(run.expert) + static_cast<std::int64_t>(min(first, last_row) / 128) * scale_bytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) w[tile][half] = matrix.data_of(run.expert) + static_cast<std::int64_t>(min(first + 8 * half + group, last_row)) * cols + 16 * quad;
    }
    const __half* x[kTiles];
    bool has[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int hit = 8 * n + group, at = run.first + min(hit, run.count - 1);
      has[n] = hit < run.count;
      x[n] = view.x.values + static_cast<std::int64_t>(view.token != nullptr ? view.token[at] : at) * cols + 16 * quad;
    }
    float sums[2][kTiles][4] = {};
#pragma unroll 1
    for (int at = from; at < to; at += kSteps) {
      uint4 a[kSteps][2][2], b[kSteps][kTiles][2];
      float scale[kSteps][2];
#pragma unroll
      for (int u = 0; u < kSteps; ++u) {
        const int col = kCodeColumns * (at + u);
        const bool here = at + u < to && col + 16 * quad < cols;
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
          for (int half = 0; half < 2; ++half) a[u][tile][half] = here ? stream_codes(w[tile][half] + col) : make_uint4(0, 0, 0, 0);
          scale[u][tile] = at + u < to ? block_scale(view.format, scales[tile], col) : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int part = 0; part < 2; ++part) b[u][n][part] = here && has[n] ? __ldg(reinterpret_cast<const uint4*>(x[n] + col) + part) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int u = 0; u < kSteps; ++u)
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          float part[kTiles][4] = {};
          const uint4 &up = a[u][tile][0], &low = a[u][tile][1];
          const unsigned upper[4] = {up.x, up.y, up.z, up.w}, lower[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
          for (int four = 0; four < 4; ++four) {
            const uint2 top = halves_of(upper[four]), bottom = halves_of(lower[four]);
            const unsigned both[4] = {top.x, bottom.x, top.y, bottom.y};
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              const uint4& columns = b[u][n][four / 2];
              multiply_add<__half>(part[n], both, four % 2 == 0 ? columns.x : columns.z, four % 2 == 0 ? columns.y : columns.w);
            }
          }
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[tile][n][i] += part[n][i] * scale[u][tile];
        }
    }
    __syncthreads();  // the run before has been read
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) room[warp][tile][n][i][lane] = sums[tile][n][i];
    __syncthreads();
    // The warps' quarters are added in their order: thread t has fragment t % 32, element t / 32.
    const int element = warp, rows[2] = {first_row + group + element / 2 * 8, first_row + group + element / 2 * 8 + (kGated ? 0 : 16)};
    float row_scale[2] = {1.0f, 1.0f};
    if (view.format == tensor::WeightFormat::fp8_row) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) row_scale[tile] = reinterpret_cast<const float*>((kGated && tile == 1 ? view.second : view.first).scales_of(run.expert))[min(rows[tile], last_row)];
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float values[2] = {};
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int from_warp = 0; from_warp < kCodeWarps; ++from_warp) values[tile] += room[from_warp][tile][n][element][lane];
      const int hit = 8 * n + 2 * quad + element % 2;
      if (hit >= run.count) continue;
      const std::int64_t own = run.first + hit;
      const float factor = view.x.factors[view.token != nullptr ? view.token[own] : own];
      values[0] *= factor * row_scale[0], values[1] *= factor * row_scale[1];
      float* y = view.y + own * view.rows;
      if constexpr (kGated) {
        if (rows[0] <= last_row) y[rows[0]] = gated(values[0], values[1], view.limit);
      } else {
        if (rows[0] <= last_row) y[rows[0]] = values[0];
        if (rows[1] <= last_row) y[rows[1]] = values[1];
      }
    }
  }
}

}  // namespace fathom::cuda
