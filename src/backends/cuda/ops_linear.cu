// Family linear. Three ways to a product, by shape:
//  - few tokens: a weight is read once, 16 bytes or eight elements a load, dequantized in registers, summed in f32 with f32 activations;
//  - more tokens: cuBLASLt, with activations rounded to the weight's 16-bit type (f32 weights: as they are) and 8- and 4-bit weights
//    widened to bf16 a block of rows at a time in the workspace;
//  - what neither takes (unaligned rows, odd widths): a plain tiled kernel that reads any format at any address.
#include "backends/cuda/blas.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/device_math.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kFewTokens = 8;
constexpr Bytes kWidenedBytes = 96 * kMiB;  // of the workspace, beside what cuBLASLt has

/// G products out[t, g, :] = x[t, g, :] · W_g, where W_g is rows [first_row + g · row_step, + rows) of the weight: transposed (an output a row)
/// or as it lies (an output a column).
struct Product {
  WeightView weight;
  std::int64_t tokens = 0, groups = 1, rows = 0, first_row = 0, row_step = 0;
  bool by_column = false;
  const float* x = nullptr;
  float* out = nullptr;
  std::int64_t x_stride = 0, x_step = 0, out_stride = 0, out_step = 0;  // a token, a group
  const std::byte* bias = nullptr;                                      // [outputs], of one group only
  DType bias_type = DType::f32;
  bool accumulate = false;

  __host__ __device__ std::int64_t outputs() const { return by_column ? weight.cols : rows; }
  __host__ __device__ std::int64_t inputs() const { return by_column ? rows : weight.cols; }
};

/// Products of one x that are launched as one: a third of q, k and v alone does not keep the memory busy.
struct Together {
  static constexpr int kMost = 4;
  Product products[kMost];
  unsigned first_block[kMost] = {};
  int count = 0;
};

__device__ float bias_at(const Product& p, std::int64_t i) {
  if (p.bias == nullptr) return 0.0f;
  if (p.bias_type == DType::f32) return reinterpret_cast<const float*>(p.bias)[i];
  return p.bias_type == DType::f16 ? to_float(reinterpret_cast<const __half*>(p.bias)[i]) : to_float(reinterpret_cast<const __nv_bfloat16*>(p.bias)[i]);
}
__device__ void store(const Product& p, std::int64_t t, std::int64_t g, std::int64_t i, float sum) {
  float* out = p.out + t * p.out_stride + g * p.out_step + i;
  const float value = sum + bias_at(p, i);
  *out = p.accumulate ? *out + value : value;
}

// ---------------------------------------------------------------- any shape, format and address

constexpr int kTile = 32;

__global__ void __launch_bounds__(256) tiled_kernel(Product p) {
  __shared__ float xs[kTile][kTile + 1], ws[kTile][kTile + 1];  // [token][k], [output][k]
  const std::int64_t inputs = p.inputs(), outputs = p.outputs(), g = blockIdx.z;
  const std::int64_t first_token = static_cast<std::int64_t>(blockIdx.y) * kTile, first_output = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int column = static_cast<int>(threadIdx.x % kTile), line = static_cast<int>(threadIdx.x / kTile);  // 8 lines
  float sums[kTile / 8] = {};  // tokens line, line + 8, …, output `column`
  for (std::int64_t k = 0; k < inputs; k += kTile) {
    for (int i = line; i < kTile; i += 8) {
      const std::int64_t t = first_token + i, at = k + column;
      xs[i][column] = t < p.tokens && at < inputs ? p.x[t * p.x_stride + g * p.x_step + at] : 0.0f;
      const std::int64_t row = p.by_column ? k + i : first_output + i, col = p.by_column ? first_output + column : k + column;
      const bool here = row < p.rows && col < p.weight.cols;
      const float value = here ? load_weight(p.weight, p.first_row + g * p.row_step + row, col) : 0.0f;
      if (p.by_column) ws[column][i] = value;
      else ws[i][column] = value;
    }
    __syncthreads();
    const int depth = static_cast<int>(min(static_cast<std::int64_t>(kTile), inputs - k));  // not past the end: 0 · NaN is NaN
    for (int i = 0; i < depth; ++i) {
      const float w = ws[column][i];
#pragma unroll
      for (int m = 0; m < kTile / 8; ++m) sums[m] += xs[line + 8 * m][i] * w;
    }
    __syncthreads();
  }
  const std::int64_t output = first_output + column;
#pragma unroll
  for (int m = 0; m < kTile / 8; ++m) {
    const std::int64_t t = first_token + line + 8 * m;
    if (t < p.tokens && output < outputs) store(p, t, g, output, sums[m]);
  }
}

/// Grids have 65535 blocks at most in y and z.
void launch_tiled(Context& context, Product p) {
  constexpr std::int64_t kMost = 65535;
  const std::int64_t tokens = p.tokens;
  const float* x = p.x;
  float* out = p.out;
  FATHOM_CHECK(p.groups <= kMost, "more groups than a grid has");
  for (std::int64_t first = 0; first < tokens; first += kMost * kTile) {
    p.tokens = std::min(tokens - first, kMost * kTile);
    p.x = x + first * p.x_stride;
    p.out = out + first * p.out_stride;
    const dim3 grid(static_cast<unsigned>(divide_up(p.outputs(), kTile)), static_cast<unsigned>(divide_up(p.tokens, kTile)), static_cast<unsigned>(p.groups));
    tiled_kernel<<<grid, 256, 0, context.stream>>>(p);
    context.launched();
  }
}

// ---------------------------------------------------------------- few tokens, an output a row

constexpr int kRowsAWarp = 4, kWarpsABlock = 8;
/// Loads of eight elements a row that a lane has in flight.
template <WeightFormat F>
inline constexpr int kAhead = F == WeightFormat::f32 ? 1 : F == WeightFormat::f16 || F == WeightFormat::bf16 ? 2 : 4;
template <WeightFormat F>
inline constexpr bool kScaled = F == WeightFormat::fp8_block128 || F == WeightFormat::mxfp4;

/// acc[row][token] += the products of eight columns from `col` on.
template <WeightFormat F, int kTokens>
__device__ void multiply_eight(const Product& p, const EightOf<F> (&eight)[kRowsAWarp], const std::int64_t (&rows)[kRowsAWarp], std::int64_t col,
                               const float* x, float (&acc)[kRowsAWarp][kTokens]) {
  float w[kRowsAWarp][8];
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    eight[r].widen(w[r]);
    if constexpr (kScaled<F>) {
      const float scale = weight_scale(p.weight.format, p.weight.scales, rows[r], col, p.weight.cols);
#pragma unroll
      for (int i = 0; i < 8; ++i) w[r][i] *= scale;
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const auto* from = reinterpret_cast<const float4*>(x + min(static_cast<std::int64_t>(t), p.tokens - 1) * p.x_stride + col);
    const float4 low = from[0], high = from[1];
    const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r)
#pragma unroll
      for (int i = 0; i < 8; ++i) acc[r][t] += w[r][i] * v[i];
  }
}

/// A warp has kRowsAWarp rows and every `splits`-th stretch of 256 columns of them; the warps that share rows are in one block and
/// add up in a fixed order.
template <WeightFormat F, int kTokens>
__global__ void __launch_bounds__(kWarpsABlock * kWarp) few_kernel(const __grid_constant__ Together all, int splits) {
  static_assert(kRowsAWarp * kTokens <= kWarp);
  __shared__ float room[kWarpsABlock][kRowsAWarp * kTokens];
  int which = 0;
  while (which + 1 < all.count && blockIdx.x >= all.first_block[which + 1]) ++which;
  const Product& p = all.products[which];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, split = warp % splits;
  const std::int64_t g = blockIdx.y, first = (static_cast<std::int64_t>(blockIdx.x - all.first_block[which]) * (kWarpsABlock / splits) + warp / splits) * kRowsAWarp;
  const std::int64_t cols = p.weight.cols, step = static_cast<std::int64_t>(splits) * kWarp * 8;
  const float* x = p.x + g * p.x_step;
  std::int64_t rows[kRowsAWarp];
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) rows[r] = p.first_row + g * p.row_step + min(first + r, p.rows - 1);
  float acc[kRowsAWarp][kTokens] = {};
  for (std::int64_t col = split * kWarp * 8 + lane * 8; col < cols; col += kAhead<F> * step) {
    EightOf<F> eight[kAhead<F>][kRowsAWarp];
#pragma unroll
    for (int a = 0; a < kAhead<F>; ++a)
#pragma unroll
      for (int r = 0; r < kRowsAWarp; ++r)
        if (col + a * step < cols) eight[a][r].read(p.weight.data, rows[r] * cols + col + a * step);
#pragma unroll
    for (int a = 0; a < kAhead<F>; ++a)
      if (col + a * step < cols) multiply_eight<F, kTokens>(p, eight[a], rows, col + a * step, x, acc);
  }
  float mine = 0.0f;  // lane t · kRowsAWarp + r keeps the sum of row r and token t
#pragma unroll
  for (int t = 0; t < kTokens; ++t)
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r) {
      const float sum = warp_sum(acc[r][t]);
      if (lane == t * kRowsAWarp + r) mine = sum;
    }
  if (splits > 1) {
    if (lane < kRowsAWarp * kTokens) room[warp][lane] = mine;
    __syncthreads();
    if (split != 0) return;
    if (lane < kRowsAWarp * kTokens)
      for (int s = 1; s < splits; ++s) mine += room[warp + s][lane];
  }
  const int t = lane / kRowsAWarp;
  const std::int64_t row = first + lane % kRowsAWarp;
  if (t < min(static_cast<std::int64_t>(kTokens), p.tokens) && row < p.rows) store(p, t, g, row, mine);
}

/// All of one shape but for their rows.
template <WeightFormat F>
void launch_few(Context& context, Together all) {
  const Product& p = all.products[0];
  const std::int64_t wanted = static_cast<std::int64_t>(context.multiprocessors) * 16;
  std::int64_t row_groups = 0;
  for (int i = 0; i < all.count; ++i) row_groups += divide_up(all.products[i].rows, kRowsAWarp);
  int splits = 1;
  while (splits < kWarpsABlock && row_groups * p.groups * splits < wanted && p.weight.cols > splits * kWarp * 8) splits *= 2;
  unsigned blocks = 0;
  for (int i = 0; i < all.count; ++i) {
    all.first_block[i] = blocks;
    blocks += static_cast<unsigned>(divide_up(divide_up(all.products[i].rows, kRowsAWarp), kWarpsABlock / splits));
  }
  const dim3 grid(blocks, static_cast<unsigned>(p.groups));
  constexpr int kThreads = kWarpsABlock * kWarp;
  if (p.tokens == 1) few_kernel<F, 1><<<grid, kThreads, 0, context.stream>>>(all, splits);
  else if (p.tokens == 2) few_kernel<F, 2><<<grid, kThreads, 0, context.stream>>>(all, splits);
  else if (p.tokens <= 4) few_kernel<F, 4><<<grid, kThreads, 0, context.stream>>>(all, splits);
  else few_kernel<F, 8><<<grid, kThreads, 0, context.stream>>>(all, splits);
  context.launched();
}

// ---------------------------------------------------------------- few tokens, an output a column

/// A lane has eight columns; the warps of a block share the rows and add up in a fixed order. One token at a time.
template <WeightFormat F>
__global__ void __launch_bounds__(kWarpsABlock * kWarp) few_columns_kernel(Product p) {
  __shared__ float room[kWarpsABlock][kWarp * 8 + 8];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t g = blockIdx.y, t = blockIdx.z, cols = p.weight.cols, col = (static_cast<std::int64_t>(blockIdx.x) * kWarp + lane) * 8;
  const float* x = p.x + t * p.x_stride + g * p.x_step;
  float acc[8] = {};
  if (col < cols) {
#pragma unroll 4
    for (std::int64_t r = warp; r < p.rows; r += kWarpsABlock) {
      const std::int64_t row = p.first_row + g * p.row_step + r;
      EightOf<F> eight;
      float w[8];
      eight.read(p.weight.data, row * cols + col);
      eight.widen(w);
      float v = x[r];
      if constexpr (kScaled<F>) {
        const float scale = weight_scale(p.weight.format, p.weight.scales, row, col, cols);
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] *= scale;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) acc[i] += v * w[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) room[warp][i * kWarp + lane] = acc[i];
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);  // one column of the block's 256 each
  float sum = 0.0f;
  for (int w = 0; w < kWarpsABlock; ++w) sum += room[w][i % 8 * kWarp + i / 8];
  const std::int64_t output = static_cast<std::int64_t>(blockIdx.x) * kWarp * 8 + i;
  if (output < cols) store(p, t, g, output, sum);
}

template <WeightFormat F>
void launch_few_columns(Context& context, const Product& p) {
  const dim3 grid(static_cast<unsigned>(divide_up(p.weight.cols, kWarp * 8)), static_cast<unsigned>(p.groups), static_cast<unsigned>(p.tokens));
  few_columns_kernel<F><<<grid, kWarpsABlock * kWarp, 0, context.stream>>>(p);
  context.launched();
}

void launch_together(Context& context, const Together& all) {
  switch (all.products[0].weight.format) {
    case WeightFormat::f32: return launch_few<WeightFormat::f32>(context, all);
    case WeightFormat::f16: return launch_few<WeightFormat::f16>(context, all);
    case WeightFormat::bf16: return launch_few<WeightFormat::bf16>(context, all);
    case WeightFormat::mxfp4: return launch_few<WeightFormat::mxfp4>(context, all);
    default: return launch_few<WeightFormat::fp8_block128>(context, all);
  }
}

void launch_few_of_any(Context& context, const Product& p) {
  if (!p.by_column) return launch_together(context, {.products = {p}, .count = 1});
  switch (p.weight.format) {
    case WeightFormat::f32: return launch_few_columns<WeightFormat::f32>(context, p);
    case WeightFormat::f16: return launch_few_columns<WeightFormat::f16>(context, p);
    case WeightFormat::bf16: return launch_few_columns<WeightFormat::bf16>(context, p);
    case WeightFormat::mxfp4: return launch_few_columns<WeightFormat::mxfp4>(context, p);
    default: return launch_few_columns<WeightFormat::fp8_block128>(context, p);
  }
}

// ---------------------------------------------------------------- many tokens

/// Blocks for a kernel whose y strides over rows and whose threads have four columns each.
dim3 grid_of_rows(std::int64_t rows, std::int64_t n) {
  return {static_cast<unsigned>(std::min<std::int64_t>(divide_up(n, 4 * 256), 1024)), static_cast<unsigned>(std::min<std::int64_t>(rows, 32768)), 1};
}

/// rounded[t, g, i] = x[t, g, i], dense; `rows` of t and g. Rows of x start at multiples of 16 bytes, n is a multiple of 4.
template <class T>
__global__ void __launch_bounds__(256) round_kernel(const float* x, std::int64_t x_stride, std::int64_t x_step, std::int64_t rows, std::int64_t groups, std::int64_t n, T* rounded) {
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float* from = x + row / groups * x_stride + row % groups * x_step;
    T* to = rounded + row * n;
    for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4; i < n; i += static_cast<std::int64_t>(gridDim.x) * blockDim.x * 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      alignas(8) const T four[4] = {from_float<T>(v.x), from_float<T>(v.y), from_float<T>(v.z), from_float<T>(v.w)};
      *reinterpret_cast<uint2*>(to + i) = *reinterpret_cast<const uint2*>(four);
    }
  }
}

/// wide[r, c] = weight[first + r, c] in bf16, dense: eight columns a thread.
template <WeightFormat F>
__global__ void widen_kernel(WeightView weight, std::int64_t first, std::int64_t rows, __nv_bfloat16* wide) {
  const std::int64_t eights = weight.cols / 8;
  for_items(rows * eights, [&](std::int64_t item) {
    const std::int64_t row = first + item / eights, col = item % eights * 8;
    EightOf<F> eight;
    float w[8];
    eight.read(weight.data, row * weight.cols + col);
    eight.widen(w);
    const float scale = weight_scale(weight.format, weight.scales, row, col, weight.cols);
    alignas(16) __nv_bfloat162 packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) packed[i] = __floats2bfloat162_rn(w[2 * i] * scale, w[2 * i + 1] * scale);
    *reinterpret_cast<uint4*>(wide + item * 8) = *reinterpret_cast<const uint4*>(packed);
  });
}

/// out[t, i] = bias[i], or that is added: before a product that adds to out.
__global__ void __launch_bounds__(256) bias_kernel(Product p) {
  for (std::int64_t t = blockIdx.y; t < p.tokens; t += gridDim.y)
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.outputs(); i += static_cast<std::int64_t>(gridDim.x) * blockDim.x)
      store(p, t, 0, i, 0.0f);
}

template <class T>
void round_to(Context& context, const Product& p, std::int64_t first, std::int64_t tokens, T* rounded) {
  const std::int64_t n = p.inputs(), rows = tokens * p.groups;
  round_kernel<T><<<grid_of_rows(rows, n), 256, 0, context.stream>>>(p.x + first * p.x_stride, p.x_stride, p.x_step, rows, p.groups, n, rounded);
  context.launched();
}
void widen_to(Context& context, const WeightView& weight, std::int64_t first, std::int64_t rows, __nv_bfloat16* wide) {
  const unsigned grid = grid_for(context, rows * weight.cols / 8, 256);
  if (weight.format == WeightFormat::mxfp4) widen_kernel<WeightFormat::mxfp4><<<grid, 256, 0, context.stream>>>(weight, first, rows, wide);
  else widen_kernel<WeightFormat::fp8_block128><<<grid, 256, 0, context.stream>>>(weight, first, rows, wide);
  context.launched();
}

bool is_plain(WeightFormat format) { return format == WeightFormat::f32 || format == WeightFormat::f16 || format == WeightFormat::bf16; }

/// Tokens [token, token + tokens) by rows [row, row + rows) of the weight.
struct Part { std::int64_t token, tokens, row, rows; };

/// By cuBLASLt, from x and w as they are prepared for this part; by the tiled kernel where that knows no way.
void multiply_part(Context& context, const Product& p, const Part& part, const void* x, const void* w, BlasType type, std::byte* room) {
  Product rest = p;
  rest.tokens = part.tokens, rest.rows = part.rows, rest.first_row += part.row;
  rest.x += part.token * p.x_stride;
  rest.out += part.token * p.out_stride + (p.by_column ? 0 : part.row);
  const bool as_it_is = type == BlasType::f32;
  const BlasProduct product{.tokens = rest.tokens,
                            .n = rest.outputs(),
                            .k = rest.inputs(),
                            .batch = p.groups,
                            .type = type,
                            .transposed = !p.by_column,
                            .x = x,
                            .w = w,
                            .out = rest.out,
                            .x_stride = as_it_is ? p.x_stride : p.groups * p.inputs(),
                            .w_stride = p.weight.cols,
                            .out_stride = p.out_stride,
                            .x_step = as_it_is ? p.x_step : p.inputs(),
                            .w_step = p.row_step * p.weight.cols,
                            .out_step = p.out_step,
                            .accumulate = p.accumulate};
  if (!context.blas->multiply(context, product, room)) launch_tiled(context, rest);
}

/// Tokens [first, first + tokens) of x, rounded, at context.rounded_data: those that are there already stay.
void round_once(Context& context, const Product& p, std::int64_t first, std::int64_t tokens, BlasType type) {
  const RoundedActivations wanted{.x = p.x + first * p.x_stride, .tokens = tokens, .groups = p.groups, .width = p.inputs(), .stride = p.x_stride, .step = p.x_step,
                                  .type = type == BlasType::bf16 ? DType::bf16 : DType::f16};
  context.product_type = wanted.type;
  if (context.rounded == wanted) return;
  context.rounded = wanted;
  if (type == BlasType::bf16) round_to(context, p, first, tokens, reinterpret_cast<__nv_bfloat16*>(context.rounded_data));
  else round_to(context, p, first, tokens, reinterpret_cast<__half*>(context.rounded_data));
}

/// p has no bias any more.
void multiply_many(Context& context, const Product& p) {
  const bool plain = is_plain(p.weight.format);
  const BlasType type = p.weight.format == WeightFormat::f32 ? BlasType::f32 : p.weight.format == WeightFormat::f16 ? BlasType::f16 : BlasType::bf16;
  const std::int64_t width = p.groups * p.inputs(), element = type == BlasType::f32 ? 4 : 2;
  const std::int64_t tokens_that_fit = static_cast<std::int64_t>(kRoundedBytes) / (width * 2), rows_that_fit = static_cast<std::int64_t>(kWidenedBytes) / (p.weight.cols * 2) / 8 * 8;
  const std::int64_t token_block = type == BlasType::f32 ? p.tokens : std::min(p.tokens, tokens_that_fit), row_block = plain ? p.rows : std::min(p.rows, rows_that_fit);
  if (token_block == 0 || row_block == 0 || (p.by_column && row_block < p.rows)) return launch_tiled(context, p);
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  std::byte* rounded = context.rounded_data;
  __nv_bfloat16* wide = plain ? nullptr : context.workspace.take<__nv_bfloat16>(row_block * p.weight.cols);
  for (std::int64_t token = 0; token < p.tokens; token += token_block) {
    const std::int64_t tokens = std::min(token_block, p.tokens - token);
    const void* x = type == BlasType::f32 ? static_cast<const void*>(p.x + token * p.x_stride) : rounded;
    if (type != BlasType::f32) round_once(context, p, token, tokens, type);
    for (std::int64_t row = 0; row < p.rows; row += row_block) {
      const std::int64_t rows = std::min(row_block, p.rows - row);
      const void* w = plain ? static_cast<const void*>(p.weight.data + (p.first_row + row) * p.weight.cols * element) : wide;
      if (!plain) widen_to(context, p.weight, p.first_row + row, rows, wide);
      multiply_part(context, p, {token, tokens, row, rows}, x, w, type, room);
    }
  }
}

// ---------------------------------------------------------------- the choice

/// Whether eight elements at a time can be read from every row of the weight.
bool weight_in_eights(const WeightView& weight) {
  const std::int64_t eight = weight.format == WeightFormat::mxfp4 ? 4 : is_plain(weight.format) ? 16 : 8;
  return weight.cols % 8 == 0 && reinterpret_cast<std::uintptr_t>(weight.data) % static_cast<std::uintptr_t>(eight) == 0;
}
bool aligned_16(const void* data, std::int64_t stride, std::int64_t step) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0 && step % 4 == 0;
}

/// Whether cuBLASLt gets operands at multiples of 16 bytes.
bool aligned_for_blas(const Product& p) {
  const bool weights = p.weight.cols % 8 == 0 && reinterpret_cast<std::uintptr_t>(p.weight.data) % 16 == 0;
  return weights && p.inputs() % 8 == 0 && aligned_16(p.x, p.x_stride, p.x_step) && aligned_16(p.out, p.out_stride, p.out_step);
}

void multiply_any(Context& context, const Product& p) {
  if (p.tokens == 0 || p.groups == 0 || p.outputs() == 0) return;
  FATHOM_CHECK(p.weight.format != WeightFormat::f64 && p.weight.format != WeightFormat::i64, "a weight that the cuda backend cannot multiply with");
  context.workspace.reset();
  const bool aligned_x = aligned_16(p.x, p.x_stride, p.x_step);
  if (p.tokens <= kFewTokens && weight_in_eights(p.weight) && (p.by_column || aligned_x) && p.groups <= 65535) return launch_few_of_any(context, p);
  if (p.tokens <= kFewTokens || !aligned_for_blas(p)) return launch_tiled(context, p);
  Product left = p;
  if (p.bias != nullptr) {
    bias_kernel<<<grid_of_rows(p.tokens, p.outputs()), 256, 0, context.stream>>>(p);
    context.launched();
    left.accumulate = true;
    left.bias = nullptr;
  }
  if (is_plain(p.weight.format) || p.groups == 1) return multiply_many(context, left);
  left.groups = 1;
  for (std::int64_t g = 0; g < p.groups; ++g) {  // a group's rows are widened before its product
    left.first_row = p.first_row + g * p.row_step;
    left.x = p.x + g * p.x_step;
    left.out = p.out + g * p.out_step;
    context.workspace.reset();
    multiply_many(context, left);
  }
}

/// Whether a product goes to few_kernel, an output a row, in one group.
bool may_wait(const Product& p) {
  return p.tokens > 0 && p.tokens <= kFewTokens && p.rows > 0 && p.groups == 1 && !p.by_column && weight_in_eights(p.weight) && aligned_16(p.x, p.x_stride, p.x_step);
}
bool overlap(const float* a, std::int64_t a_count, const float* b, std::int64_t b_count) { return a < b + b_count && b < a + a_count; }
/// Whether `p` may run beside `other`: the same x, and neither writes what the other reads or writes.
bool goes_with(const Product& p, const Product& other) {
  if (p.x != other.x || p.x_stride != other.x_stride || p.tokens != other.tokens || p.weight.format != other.weight.format || p.weight.cols != other.weight.cols) return false;
  const auto span = [](const Product& q) { return (q.tokens - 1) * q.out_stride + q.rows; };
  return !overlap(p.out, span(p), other.out, span(other)) && !overlap(p.out, span(p), p.x, (p.tokens - 1) * p.x_stride + p.weight.cols);
}

}  // namespace

struct CudaOps::Waiting { Together products; };

void CudaOps::linear(const LinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), n = args.weight.rows, k = args.weight.cols;
  FATHOM_CHECK(args.x.dim(1) == k && args.out.dim(0) == tokens && args.out.dim(1) == n);
  FATHOM_CHECK(!args.bias.defined() || args.bias.elements() == n);
  FATHOM_CHECK(args.x.dtype == DType::f32 && args.out.dtype == DType::f32, "activations are f32");
  const Product product{.weight = view_of(args.weight),
                          .tokens = tokens,
                          .rows = n,
                          .x = args.x.as<float>(),
                          .out = args.out.as<float>(),
                          .x_stride = args.x.strides[0],
                          .out_stride = args.out.strides[0],
                          .bias = args.bias.defined() ? args.bias.data : nullptr,
                          .bias_type = args.bias.dtype,
                          .accumulate = args.accumulate};
  const bool waits = may_wait(product);
  Together& waiting = waiting_->products;
  bool together = waits && waiting.count < Together::kMost;
  for (int i = 0; together && i < waiting.count; ++i) together = goes_with(product, waiting.products[i]);
  if (!together) launch_waiting();
  if (waits) waiting.products[waiting.count++] = product;
  else multiply_any(context_, product);
  const RoundedActivations& kept = context_.rounded;
  if (kept.x != nullptr && overlap(product.out, (tokens - 1) * product.out_stride + n, kept.x, (kept.tokens - 1) * kept.stride + kept.groups * kept.step + kept.width)) context_.rounded = {};
}

/// What waits for others of its x is launched: every other op, and whoever looks at results, comes through here first.
void CudaOps::flush() {
  launch_waiting();
  context_.rounded = {};
}

void CudaOps::launch_waiting() {
  Together& waiting = waiting_->products;
  if (waiting.count == 0) return;
  launch_together(context_, waiting);
  waiting.count = 0;
}

CudaOps::CudaOps(Context& context, tensor::ActivationMemory& memory) : context_(context), memory_(memory), waiting_(std::make_unique<Waiting>()) {}
CudaOps::~CudaOps() = default;

void CudaOps::grouped_linear(const GroupedLinearArgs& args) {
  flush();
  const std::int64_t tokens = args.x.dim(0), groups = args.x.dim(1), k = args.weight.cols;
  FATHOM_CHECK(args.weight.rows == groups * args.group_rows && args.row_offset >= 0 && args.row_offset + args.rows <= args.group_rows);
  FATHOM_CHECK(args.x.dim(2) == (args.transposed ? args.rows : k) && args.out.dim(0) == tokens && args.out.dim(1) == groups);
  FATHOM_CHECK(args.out.dim(2) == (args.transposed ? k : args.rows));
  FATHOM_CHECK(args.x.dtype == DType::f32 && args.out.dtype == DType::f32, "activations are f32");
  multiply_any(context_, {.weight = view_of(args.weight),
                          .tokens = tokens,
                          .groups = groups,
                          .rows = args.rows,
                          .first_row = args.row_offset,
                          .row_step = args.group_rows,
                          .by_column = args.transposed,
                          .x = args.x.as<float>(),
                          .out = args.out.as<float>(),
                          .x_stride = args.x.strides[0],
                          .x_step = args.x.strides[1],
                          .out_stride = args.out.strides[0],
                          .out_step = args.out.strides[1]});
}

}  // namespace fathom::cuda
