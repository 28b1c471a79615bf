// Products with eight-bit activations (W8A8). x becomes codes once for all products of it, at context.rounded_data; cuBLASLt multiplies codes
// and, on Hopper, with the scales of FP8 too. Else what comes out is multiplied with the scales of its token and its row where it lies; shapes
// that cuBLASLt does not take go through a plain tiled kernel. FP8 in blocks that it does not take is widened, x rounded in f32.
#include <type_traits>

#include "backends/cuda/blas.h"
#include "backends/cuda/codes_rounding.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/product.cuh"
#include "backends/cuda/rounded.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr Bytes kSumBytes = 56 * kMiB;   // of the workspace, beside what cuBLASLt has: sums that cannot lie in the output
constexpr Bytes kNearBytes = 36 * kMiB;  // of sums that are in the L2 cache yet when they are scaled
constexpr Bytes kValueBytes = 24 * kMiB;  // of x in f32, beside what multiply_many takes
constexpr std::int64_t kMostTokens = 65535, kRowsTogether = 256;  // at a time; multiples of these
static_assert(Blas::kWorkspaceBytes + kSumBytes + kMostTokens * kRowsTogether * 4 + kMiB <= kOpBytes && Blas::kWorkspaceBytes + kWidenedBytes + kValueBytes + kMiB <= kOpBytes);
static_assert(kTokensOfBlocks <= kFewTokens);
constexpr int kTile = 32, kCodesThreads = 256, kRoundedStretch = static_cast<int>(kRoundedColumns);

/// A block rounds a row, in place where `to` is x.
template <bool kFp8>
__global__ void __launch_bounds__(kCodesThreads) round_values_kernel(const float* x, std::int64_t stride, int n, float* to, std::int64_t to_stride) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t token = blockIdx.x;
  const RoundedRow row = rounded_row<kFp8>(x + token * stride, n, room);
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kCodesThreads) to[token * to_stride + i] = rounded_value<kFp8>(x[token * stride + i], row);
}
/// The same in stretches of 128, each a warp's.
__global__ void __launch_bounds__(kCodesThreads) round_stretches_kernel(const float* x, std::int64_t stride, int n, float* to, std::int64_t to_stride, bool powers) {
  after_previous();
  const std::int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int first = static_cast<int>(threadIdx.x) / kWarp * kRoundedStretch; first < n; first += kCodesThreads / kWarp * kRoundedStretch) {
    float values[kRoundedStretch / kWarp], most = 0.0f;
#pragma unroll
    for (int i = 0; i < kRoundedStretch / kWarp; ++i) {
      const int at = first + i * kWarp + lane;
      values[i] = at < n ? x[token * stride + at] : 0.0f;
      most = larger(most, fabsf(values[i]));
    }
    const RoundedRow row = rounded_of<true>(warp_max(most), powers);
#pragma unroll
    for (int i = 0; i < kRoundedStretch / kWarp; ++i)
      if (const int at = first + i * kWarp + lane; at < n) to[token * to_stride + at] = rounded_value<true>(values[i], row);
  }
}

/// sums[t, i] = codes of token t · codes of weight row i; rows of sums lie `stride` apart.
template <bool kFp8>
__global__ void __launch_bounds__(kCodesThreads) tiled_codes_kernel(const std::uint8_t* x, int width, const std::byte* w, std::int64_t tokens, std::int64_t rows, int cols, void* sums,
                                                               std::int64_t stride) {
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
    if (t < tokens && row < rows) static_cast<Sum*>(sums)[t * stride + row] = acc[m];
  }
}

/// Sums of rows [first, first + rows) of the weight: where they lie, and those of a token `stride` apart.
struct Sums {
  void* data = nullptr;
  std::int64_t stride = 0, first = 0, rows = 0;
};

/// Outputs from sums, which may lie in their places.
template <bool kFp8>
__global__ void __launch_bounds__(kCodesThreads) scale_kernel(Product p, Sums sums, const float* token_scales) {
  using Sum = std::conditional_t<kFp8, float, std::int32_t>;
  using Four = std::conditional_t<kFp8, float4, int4>;
  after_previous();
  const auto* row_scales = reinterpret_cast<const float*>(p.weight.scales) + p.first_row + sums.first;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kCodesThreads;
  const bool fours = sums.rows % 4 == 0 && sums.stride % 4 == 0 && p.out_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0;
  for (std::int64_t t = blockIdx.y; t < p.tokens; t += gridDim.y) {
    const float scale = token_scales[t];
    const auto* from = static_cast<const Sum*>(sums.data) + t * sums.stride;
    float* to = p.out + t * p.out_stride + sums.first;
    const auto made = [&](std::int64_t i, Sum sum) { return finished(p, t, 0, sums.first + i, static_cast<float>(sum) * (scale * row_scales[i])); };
    std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    if (!fours) {
      for (; i < sums.rows; i += step) to[i] = made(i, from[i]);
      continue;
    }
    for (i *= 4; i < sums.rows; i += 4 * step) {
      const Four four = *reinterpret_cast<const Four*>(from + i);
      *reinterpret_cast<float4*>(to + i) = make_float4(made(i, four.x), made(i + 1, four.y), made(i + 2, four.z), made(i + 3, four.w));
    }
  }
}

template <bool kFp8>
void multiply_then_scale(Context& context, const Product& p, const RoundCodes& codes) {
  const std::int64_t k = p.weight.cols;
  const bool in_place = !p.accumulate && reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0 && p.out_stride % 4 == 0;
  const std::int64_t blocks = divide_up(p.rows * p.tokens * 4, static_cast<std::int64_t>(in_place ? kNearBytes : kSumBytes)), row_block = std::min(p.rows, divide_up(divide_up(p.rows, blocks), kRowsTogether) * kRowsTogether);
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  float* apart = in_place ? nullptr : context.workspace.take<float>(p.tokens * row_block);
  for (std::int64_t first = 0; first < p.rows; first += row_block) {
    const std::int64_t rows = std::min(row_block, p.rows - first);
    const std::byte* w = p.weight.data + (p.first_row + first) * k;
    const Sums sums{.data = in_place ? p.out : apart, .stride = in_place ? p.out_stride : rows, .first = first, .rows = rows};
    const bool suits = k % 16 == 0 && rows % 16 == 0 && reinterpret_cast<std::uintptr_t>(w) % 16 == 0;
    const BlasProduct product{.tokens = p.tokens, .n = rows, .k = k, .type = kFp8 ? BlasType::e4m3 : BlasType::i8, .x = codes.codes, .w = w, .out = sums.data, .x_stride = codes.width,
                              .w_stride = k, .out_stride = sums.stride};
    if (!suits || !context.blas->multiply(context, product, room)) {
      const dim3 grid(static_cast<unsigned>(divide_up(rows, kTile)), static_cast<unsigned>(divide_up(p.tokens, kTile)));
      launch_early(context, &tiled_codes_kernel<kFp8>, grid, dim3(kCodesThreads), 0, codes.codes, codes.width, w, p.tokens, rows, static_cast<int>(k), sums.data, sums.stride);
    }
    const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(divide_up(rows, 4 * kCodesThreads), 64)), static_cast<unsigned>(p.tokens));
    launch_early(context, &scale_kernel<kFp8>, grid, dim3(kCodesThreads), 0, p, sums, codes.scales);
  }
}

// ---------------------------------------------------------------- scales by cuBLASLt

/// padded[i, j] of `stride` columns = scales[i, j] of `depths`, zeros behind them.
__global__ void __launch_bounds__(kCodesThreads) pad_scales(const float* scales, std::int64_t rows, std::int64_t depths, std::int64_t stride, float* padded) {
  after_previous();
  for_items(rows * stride, [&](std::int64_t i) { padded[i] = i % stride < depths ? scales[i / stride * depths + i % stride] : 0.0f; });
}

/// The product with its scales as cuBLASLt is told of it.
BlasProduct scaled_product(const Product& p, const RoundCodes& codes) {
  const std::int64_t k = p.weight.cols;
  const auto* scales = reinterpret_cast<const float*>(p.weight.scales);
  BlasProduct product{.tokens = p.tokens, .n = p.rows, .k = k, .type = BlasType::e4m3, .x = codes.codes, .w = p.weight.data + p.first_row * k, .out = p.out, .x_stride = codes.width,
                      .w_stride = k, .out_stride = p.out_stride, .accumulate = p.accumulate, .added = p.added};
  product.scales = codes.kind.stretches ? BlasScales::blocks : BlasScales::rows;
  product.x_scales = codes.scales;
  product.w_scales = codes.kind.stretches ? scales + p.first_row / kRoundedStretch * divide_up(k, kRoundedStretch) : scales + p.first_row;
  return product;
}
/// Few tokens do better without scales, where cuBLASLt can split columns among multiprocessors.
bool wants_parts(const Product& p) { return p.weight.format == WeightFormat::fp8_row && (p.tokens <= 64 || (p.tokens <= 256 && p.weight.cols >= 8192)); }
bool at_sixteen(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }
bool can_scale(const Context& context, const Product& p, const BlasProduct& product) {
  const bool shapes = p.weight.format != WeightFormat::int8_row && p.weight.cols % 16 == 0 && p.rows % 16 == 0 && p.out_stride % 4 == 0;
  const bool whole = p.weight.format != WeightFormat::fp8_block128 || p.first_row % kRoundedStretch == 0;
  return shapes && whole && at_sixteen(product.w) && at_sixteen(product.w_scales) && at_sixteen(p.out) && !wants_parts(p) && context.compute_capability == 90 && context.blas->knows(product);
}
/// False: cuBLASLt would not after all; a bias is in the output already.
bool multiply_scaled(Context& context, Product& p, BlasProduct product) {
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  const std::int64_t depths = divide_up(p.weight.cols, kRoundedStretch), padded = divide_up(depths, 4) * 4, lines = divide_up(p.rows, kRoundedStretch);
  if (product.scales == BlasScales::blocks && padded != depths) {
    float* scales = context.workspace.take<float>(lines * padded);
    launch_early(context, &pad_scales, dim3(grid_for(context, lines * padded, kCodesThreads)), dim3(kCodesThreads), 0, product.w_scales, lines, depths, padded, scales);
    product.w_scales = scales;
  }
  if (p.bias != nullptr) {
    launch_bias(context, p);
    p.bias = nullptr, p.added = nullptr;
    p.accumulate = product.accumulate = true;
    product.added = nullptr;
  }
  return context.blas->multiply(context, product, room);
}

/// Weights are widened, x is rounded and stays f32: some tokens at a time.
void multiply_values(Context& context, Product p) {
  const std::int64_t k = p.weight.cols, width = divide_up(k, 4) * 4, most = static_cast<std::int64_t>(kValueBytes) / (width * 4), tokens = p.tokens;
  FATHOM_CHECK(most > 0, "a weight has too many columns for the workspace");
  const bool aligned = k % 8 == 0 && reinterpret_cast<std::uintptr_t>(p.weight.data) % 16 == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0 && p.out_stride % 4 == 0;
  const Weight weight{.format = p.weight.format, .rows = p.weight.rows, .cols = k, .activations = p.activations};
  const float* x = p.x;
  float* out = p.out;
  if (aligned && p.bias != nullptr) {
    launch_bias(context, p);
    p.accumulate = true;
    p.bias = nullptr;
  }
  for (std::int64_t token = 0; token < tokens; token += most) {
    context.workspace.reset();
    float* values = context.workspace.take<float>(std::min(most, tokens) * width);
    p.tokens = std::min(most, tokens - token);
    round_values(context, weight, x + token * p.x_stride, p.x_stride, p.tokens, k, values, width);
    Product part = p;
    part.x = values;
    part.x_stride = width;
    part.out = out + token * p.out_stride;
    if (part.added != nullptr) part.added += token * p.added_stride;
    context.rounded = {};  // these values take the place of others
    if (aligned) multiply_many(context, part);
    else launch_tiled(context, part);
  }
  context.rounded = {};
}

/// At most kFewTokens of blocks: x is rounded and stays f32, weights are widened as they are read.
void multiply_few(Context& context, Product p) {
  const std::int64_t k = p.weight.cols, width = divide_up(k, 4) * 4;
  auto* values = reinterpret_cast<float*>(context.rounded_data + kRoundedBytes) - p.tokens * width;  // behind the codes, which stay
  round_values(context, {.format = p.weight.format, .rows = p.weight.rows, .cols = k, .activations = p.activations}, p.x, p.x_stride, p.tokens, k, values, width);
  p.x = values;
  p.x_stride = width;
  p.activations = Activations::kAsTheyAre;
  multiply_any(context, p);
}

}  // namespace

void round_values(Context& context, const Weight& weight, const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t n, float* out, std::int64_t out_stride) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows));
  if (rounds_in_groups(weight)) {
    launch_early(context, &round_stretches_kernel, grid, dim3(kCodesThreads), 0, x, x_stride, static_cast<int>(n), out, out_stride, weight.activations == Activations::kPerGroupOfPowers);
    return;
  }
  auto* kernel = weight.format == WeightFormat::fp8_row ? &round_values_kernel<true> : &round_values_kernel<false>;
  launch_early(context, kernel, grid, dim3(kCodesThreads), 0, x, x_stride, static_cast<int>(n), out, out_stride);
}

void multiply_rounded(Context& context, const Product& all) {
  const bool blocks = all.weight.format == WeightFormat::fp8_block128;
  const DType type = all.weight.format == WeightFormat::int8_row ? DType::i8 : DType::f8e4m3;
  const CodesKind kind{.stretches = blocks, .powers = all.activations == Activations::kPerGroupOfPowers};
  const std::int64_t most = std::min(codes_that_fit(all.weight.cols), kMostTokens);
  FATHOM_CHECK(most > 0, "a weight has too many columns for the workspace");
  std::int64_t count = 0;
  for (std::int64_t token = 0; token < all.tokens; token += count) {
    context.workspace.reset();
    Product p = all;
    count = std::min(most, all.tokens - token);
    if (blocks && count >= kTokensOfBlocks) count = count / kTokensOfBlocks * kTokensOfBlocks;
    p.tokens = count;
    p.x += token * p.x_stride;
    p.out += token * p.out_stride;
    if (p.added != nullptr) p.added += token * p.added_stride;
    if (blocks && count < kTokensOfBlocks) {
      multiply_few(context, p);
      continue;
    }
    const RoundCodes codes = codes_at_rounded_data(context, p.x, p.x_stride, p.tokens, p.weight.cols, type, kind);
    const BlasProduct scaled = scaled_product(p, codes);
    const bool scales = can_scale(context, p, scaled);
    if (scales || !blocks) {
      const RoundedActivations wanted = codes_of(codes);
      if (!(context.rounded == wanted)) round_codes(context, codes);
      context.rounded = wanted;
      context.product_type = type;
      context.codes_kind = kind;
    }
    if (scales && multiply_scaled(context, p, scaled)) continue;
    if (scales) context.workspace.reset();
    if (blocks) multiply_values(context, p);
    else if (type == DType::f8e4m3) multiply_then_scale<true>(context, p, codes);
    else multiply_then_scale<false>(context, p, codes);
  }
}

}  // namespace fathom::cuda
