// Products with eight-bit activations (W8A8): rows of x are rounded a token, cuBLASLt multiplies codes of eight bits, and what comes out is
// multiplied with the scales of its token and its row. Shapes that cuBLASLt does not take go through a plain tiled kernel.
#include <type_traits>

#include "backends/cuda/blas.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/product.cuh"
#include "backends/cuda/rounded.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr Bytes kCodeBytes = 64 * kMiB, kSumBytes = 60 * kMiB;  // of the workspace (160 MiB), beside the 32 that cuBLASLt has
constexpr int kTile = 32, kThreads = 256;

/// A block rounds a row. Codes lie densely, `width` bytes a row: those behind the row's end are zero.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads) round_rows_kernel(const float* x, std::int64_t stride, int n, int width, std::uint8_t* codes, float* scales) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t token = blockIdx.x;
  const RoundedRow row = rounded_row<kFp8>(x + token * stride, n, room);
  if (threadIdx.x == 0) scales[token] = row.scale;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) codes[token * width + i] = i < n ? rounded_code<kFp8>(x[token * stride + i], row) : 0;
}

/// A block rounds a row, in place where `to` is x.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads) round_values_kernel(const float* x, std::int64_t stride, int n, float* to, std::int64_t to_stride) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t token = blockIdx.x;
  const RoundedRow row = rounded_row<kFp8>(x + token * stride, n, room);
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) to[token * to_stride + i] = rounded_value<kFp8>(x[token * stride + i], row);
}

/// sums[t, i] = codes of token t · codes of weight row i.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads) tiled_codes_kernel(const std::uint8_t* x, int width, const std::byte* w, std::int64_t tokens, std::int64_t rows, int cols, void* sums) {
  using Sum = std::conditional_t<kFp8, float, std::int32_t>;
  __shared__ Sum xs[kTile][kTile + 1], ws[kTile][kTile + 1];
  after_previous();
  const std::int64_t first_token = static_cast<std::int64_t>(blockIdx.y) * kTile, first_row = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int column = static_cast<int>(threadIdx.x % kTile), line = static_cast<int>(threadIdx.x / kTile);
  const auto value = [](std::uint8_t code) {
    if constexpr (kFp8) return e4m3_to_float(code);
    else return static_cast<Sum>(static_cast<std::int8_t>(code));
  };
  Sum acc[kTile / 8] = {};
  for (int k = 0; k < cols; k += kTile) {
    for (int i = line; i < kTile; i += 8) {
      const bool inside = k + column < cols;
      xs[i][column] = inside && first_token + i < tokens ? value(x[(first_token + i) * width + k + column]) : Sum{0};
      ws[i][column] = inside && first_row + i < rows ? value(static_cast<std::uint8_t>(w[(first_row + i) * cols + k + column])) : Sum{0};
    }
    __syncthreads();
    for (int i = 0; i < kTile; ++i)
#pragma unroll
      for (int m = 0; m < kTile / 8; ++m) acc[m] += xs[line + 8 * m][i] * ws[column][i];
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < kTile / 8; ++m) {
    const std::int64_t t = first_token + line + 8 * m, row = first_row + column;
    if (t < tokens && row < rows) static_cast<Sum*>(sums)[t * rows + row] = acc[m];
  }
}

/// Outputs of rows [first, first + rows) from their sums.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads) scale_kernel(Product p, const void* sums, const float* token_scales, std::int64_t first, std::int64_t rows) {
  after_previous();
  const auto* row_scales = reinterpret_cast<const float*>(p.weight.scales) + p.first_row + first;
  for (std::int64_t t = blockIdx.y; t < p.tokens; t += gridDim.y)
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows; i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
      const float sum = kFp8 ? static_cast<const float*>(sums)[t * rows + i] : static_cast<float>(static_cast<const std::int32_t*>(sums)[t * rows + i]);
      store(p, t, 0, first + i, sum * (token_scales[t] * row_scales[i]));
    }
}

template <bool kFp8>
void multiply(Context& context, Product p) {
  const std::int64_t k = p.weight.cols, width = divide_up(k, 16) * 16;
  const std::int64_t tokens = p.tokens, token_block = std::min(tokens, std::min<std::int64_t>(static_cast<std::int64_t>(kCodeBytes) / width, 32768));
  const std::int64_t row_block = std::min(p.rows, static_cast<std::int64_t>(kSumBytes) / (token_block * 4) / 16 * 16);
  FATHOM_CHECK(token_block > 0 && row_block > 0, "a weight has too many columns for the workspace");
  context.workspace.reset();
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  auto* codes = context.workspace.take<std::uint8_t>(token_block * width);
  float* scales = context.workspace.take<float>(token_block);
  std::uint32_t* sums = context.workspace.take<std::uint32_t>(token_block * row_block);
  const float* x = p.x;
  float* out = p.out;
  for (std::int64_t token = 0; token < tokens; token += token_block) {
    p.tokens = std::min(token_block, tokens - token);
    p.x = x + token * p.x_stride;
    p.out = out + token * p.out_stride;
    launch_early(context, &round_rows_kernel<kFp8>, dim3(static_cast<unsigned>(p.tokens)), dim3(kThreads), 0, p.x, p.x_stride, static_cast<int>(k), static_cast<int>(width), codes, scales);
    for (std::int64_t first = 0; first < p.rows; first += row_block) {
      const std::int64_t rows = std::min(row_block, p.rows - first);
      const std::byte* w = p.weight.data + (p.first_row + first) * k;
      const bool suits = k % 16 == 0 && rows % 16 == 0 && reinterpret_cast<std::uintptr_t>(w) % 16 == 0;
      const BlasProduct product{.tokens = p.tokens, .n = rows, .k = k, .type = kFp8 ? BlasType::e4m3 : BlasType::i8, .x = codes, .w = w, .out = sums, .x_stride = width, .w_stride = k, .out_stride = rows};
      if (!suits || !context.blas->multiply(context, product, room)) {
        const dim3 grid(static_cast<unsigned>(divide_up(rows, kTile)), static_cast<unsigned>(divide_up(p.tokens, kTile)));
        launch_early(context, &tiled_codes_kernel<kFp8>, grid, dim3(kThreads), 0, codes, static_cast<int>(width), w, p.tokens, rows, static_cast<int>(k), sums);
      }
      const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(divide_up(rows, kThreads), 64)), static_cast<unsigned>(p.tokens));
      launch_early(context, &scale_kernel<kFp8>, grid, dim3(kThreads), 0, p, sums, scales, first, rows);
    }
  }
}

}  // namespace

void round_values(Context& context, WeightFormat format, const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t n, float* out, std::int64_t out_stride) {
  if (rows == 0) return;
  auto* kernel = format == WeightFormat::fp8_row ? &round_values_kernel<true> : &round_values_kernel<false>;
  launch_early(context, kernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, x, x_stride, static_cast<int>(n), out, out_stride);
}

void multiply_rounded(Context& context, const Product& p) {
  if (p.weight.format == WeightFormat::fp8_row) multiply<true>(context, p);
  else multiply<false>(context, p);
}

}  // namespace fathom::cuda
