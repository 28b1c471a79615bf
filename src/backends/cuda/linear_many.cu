// Products of many tokens: cuBLASLt, with activations rounded to the weight's 16-bit type (f32 weights: as they are) and 8- and 4-bit
// weights widened to bf16 a block of rows at a time in the workspace; and a plain tiled kernel that reads any format at any address.


#include "backends/cuda/blas.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

// ---------------------------------------------------------------- any shape, format and address

constexpr int kTile = 32;

__global__ void __launch_bounds__(256) tiled_kernel(Product p, DType out_type) {
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
    if (t >= p.tokens || output >= outputs) continue;
    if (out_type == DType::f32) store(p, t, g, output, sums[m]);
    else if (out_type == DType::bf16) reinterpret_cast<__nv_bfloat16*>(p.out)[t * p.out_stride + output] = from_float<__nv_bfloat16>(sums[m]);
    else reinterpret_cast<__half*>(p.out)[t * p.out_stride + output] = from_float<__half>(sums[m]);
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

/// Some rows of a weight: `each` from `first` on, and as many `step` further on for every group more.
struct RowsOfGroups { std::int64_t first, each, step, groups; };

/// wide[g, r, c] = weight[first + g · step + r, c] in bf16, dense: eight columns a thread.
template <WeightFormat F>
__global__ void widen_kernel(WeightView weight, RowsOfGroups rows, __nv_bfloat16* wide) {
  const auto eights = static_cast<unsigned>(weight.cols / 8), each = static_cast<unsigned>(rows.each);
  for_items(rows.groups * rows.each * eights, [&](std::int64_t index) {
    const auto item = static_cast<unsigned>(index), at = item / eights;  // kWidenedBytes are far from 2^32 elements, and divide fast
    const std::int64_t row = rows.first + at / each * rows.step + at % each, col = item % eights * 8;
    EightOf<F> eight;
    float w[8];
    eight.read(weight.data, row * weight.cols + col);
    eight.widen(w);
    if constexpr (F == WeightFormat::int4_group128) add_zero(weight, row, col, w);
    const float scale = weight_scale(weight.format, weight.scales, row, col, weight.cols);
    alignas(16) __nv_bfloat162 packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) packed[i] = __floats2bfloat162_rn(w[2 * i] * scale, w[2 * i + 1] * scale);
    *reinterpret_cast<uint4*>(wide + index * 8) = *reinterpret_cast<const uint4*>(packed);
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
void widen_to(Context& context, const WeightView& weight, const RowsOfGroups& rows, __nv_bfloat16* wide) {
  const unsigned grid = grid_for(context, rows.groups * rows.each * weight.cols / 8, 256);
  if (weight.format == WeightFormat::mxfp4) widen_kernel<WeightFormat::mxfp4><<<grid, 256, 0, context.stream>>>(weight, rows, wide);
  else if (weight.format == WeightFormat::int8_row) widen_kernel<WeightFormat::int8_row><<<grid, 256, 0, context.stream>>>(weight, rows, wide);
  else if (is_int4(weight.format)) widen_kernel<WeightFormat::int4_group128><<<grid, 256, 0, context.stream>>>(weight, rows, wide);
  else widen_kernel<WeightFormat::fp8_block128><<<grid, 256, 0, context.stream>>>(weight, rows, wide);
  context.launched();
}

/// Tokens [token, token + tokens) by rows [row, row + rows) of the weight.
struct Part { std::int64_t token, tokens, row, rows; };

/// Grids have 65535 blocks at most in y and z.
void launch_tiled(Context& context, Product p, DType out_type) {
  constexpr std::int64_t kMost = 65535;
  const std::int64_t tokens = p.tokens;
  const float* x = p.x;
  float* out = p.out;
  FATHOM_CHECK(p.groups <= kMost, "more groups than a grid has");
  for (std::int64_t first = 0; first < tokens; first += kMost * kTile) {
    p.tokens = std::min(tokens - first, kMost * kTile);
    p.x = x + first * p.x_stride;
    p.out = out + first * p.out_stride / (out_type == DType::f32 ? 1 : 2);
    const dim3 grid(static_cast<unsigned>(divide_up(p.outputs(), kTile)), static_cast<unsigned>(divide_up(p.tokens, kTile)), static_cast<unsigned>(p.groups));
    tiled_kernel<<<grid, 256, 0, context.stream>>>(p, out_type);
    context.launched();
  }
}

/// By cuBLASLt, from x and w as they are prepared for this part; by the tiled kernel where that knows no way.
void multiply_part(Context& context, const Product& p, const Part& part, const void* x, const void* w, BlasType type, DType out_type, std::byte* room) {
  Product rest = p;
  rest.tokens = part.tokens, rest.rows = part.rows, rest.first_row += part.row;
  rest.x += part.token * p.x_stride;
  const std::int64_t first_out = part.token * p.out_stride + (p.by_column ? 0 : part.row);
  rest.out += out_type == DType::f32 ? first_out : first_out / 2;
  if (p.added != nullptr) rest.added += part.token * p.added_stride + part.row;
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
                            .w_step = (is_plain(p.weight.format) ? p.row_step : p.rows) * p.weight.cols,
                            .out_step = p.out_step,
                            .accumulate = p.accumulate,
                            .rounded = out_type != DType::f32,
                            .added = rest.added};
  if (!context.blas->multiply(context, product, room)) launch_tiled(context, rest, out_type);
}

RoundedActivations rounded_of(const Product& p, std::int64_t first, std::int64_t tokens, BlasType type) {
  return {.x = p.x + first * p.x_stride, .tokens = tokens, .groups = p.groups, .width = p.inputs(), .stride = p.x_stride, .step = p.x_step,
          .type = type == BlasType::bf16 ? DType::bf16 : DType::f16};
}

/// Tokens [first, first + tokens) of x, rounded, at context.rounded_data: those that are there already stay.
void round_once(Context& context, const Product& p, std::int64_t first, std::int64_t tokens, BlasType type) {
  const RoundedActivations wanted = rounded_of(p, first, tokens, type);
  context.product_type = wanted.type;
  if (context.rounded == wanted) return;
  context.rounded = wanted;
  if (type == BlasType::bf16) round_to(context, p, first, tokens, reinterpret_cast<__nv_bfloat16*>(context.rounded_data));
  else round_to(context, p, first, tokens, reinterpret_cast<__half*>(context.rounded_data));
}

/// The out is f32, or of the weight's type in the place of f32 rows.
void multiply_many(Context& context, const Product& p, DType out_type) {
  const bool plain = is_plain(p.weight.format);
  const BlasType type = p.weight.format == WeightFormat::f32 ? BlasType::f32 : p.weight.format == WeightFormat::f16 ? BlasType::f16 : BlasType::bf16;
  const std::int64_t width = p.groups * p.inputs(), element = type == BlasType::f32 ? 4 : 2;
  const std::int64_t tokens_that_fit = static_cast<std::int64_t>(kRoundedBytes) / (width * 2), rows_that_fit = static_cast<std::int64_t>(kWidenedBytes) / (p.weight.cols * 2) / 8 * 8;
  const std::int64_t token_block = type == BlasType::f32 ? p.tokens : std::min(p.tokens, tokens_that_fit), row_block = plain ? p.rows : std::min(p.rows, rows_that_fit);
  const bool whole = plain || row_block == p.rows, grouped = !plain && p.groups > 1;
  if (token_block == 0 || row_block == 0 || (p.by_column && !whole) || (grouped && !widens_whole(p))) return launch_tiled(context, p, out_type);
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  std::byte* rounded = context.rounded_data;
  __nv_bfloat16* wide = plain ? nullptr : context.workspace.take<__nv_bfloat16>(p.groups * row_block * p.weight.cols);
  for (std::int64_t token = 0; token < p.tokens; token += token_block) {
    const std::int64_t tokens = std::min(token_block, p.tokens - token);
    const void* x = type == BlasType::f32 ? static_cast<const void*>(p.x + token * p.x_stride) : rounded;
    if (type != BlasType::f32) round_once(context, p, token, tokens, type);
    for (std::int64_t row = 0; row < p.rows; row += row_block) {
      const std::int64_t rows = std::min(row_block, p.rows - row);
      const void* w = plain ? static_cast<const void*>(p.weight.data + (p.first_row + row) * p.weight.cols * element) : wide;
      if (!plain) widen_to(context, p.weight, {p.first_row + row, rows, p.row_step, p.groups}, wide);
      multiply_part(context, p, {token, tokens, row, rows}, x, w, type, out_type, room);
    }
  }
}

}  // namespace

void launch_tiled(Context& context, Product p) { launch_tiled(context, p, DType::f32); }

bool widens_whole(const Product& p) { return p.groups * p.rows * p.weight.cols * 2 <= static_cast<std::int64_t>(kWidenedBytes); }
void multiply_many(Context& context, const Product& p) { multiply_many(context, p, DType::f32); }
void multiply_many_rounded(Context& context, const Product& p) {
  context.workspace.reset();
  multiply_many(context, p, p.weight.format == WeightFormat::bf16 ? DType::bf16 : DType::f16);
}

PartialSums multiply_in_parts(Context& context, const Product& p) {
  // Where cuBLASLt would cut them too, to keep the multiprocessors busy, and add them up in a launch of its own.
  constexpr std::int64_t kMostRows = 8192, kLeastColumns = 2048, kParts = 2;
  if (!is_half(p.weight.format) || p.groups != 1 || p.by_column || p.bias != nullptr || p.accumulate || p.activations != Activations::kAsTheyAre) return {};
  const bool dense = p.out_stride == p.rows && p.added_stride == p.rows && p.rows % 8 == 0;
  if (p.added == nullptr || !dense || p.rows > kMostRows || p.weight.cols < kLeastColumns || p.weight.cols % (8 * kParts) != 0) return {};
  if (p.tokens * p.weight.cols * 2 > static_cast<std::int64_t>(kRoundedBytes)) return {};
  const BlasType type = p.weight.format == WeightFormat::bf16 ? BlasType::bf16 : BlasType::f16;
  context.workspace.reset();
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  auto* parts = context.workspace.take<float>(kParts * p.tokens * p.rows);
  const std::int64_t own = p.weight.cols / kParts;
  const BlasProduct product{.tokens = p.tokens, .n = p.rows, .k = own, .batch = kParts, .type = type, .x = context.rounded_data, .w = weights_of(p), .out = parts,
                            .x_stride = p.weight.cols, .w_stride = p.weight.cols, .out_stride = p.rows, .x_step = own, .w_step = own, .out_step = p.tokens * p.rows};
  if (!context.blas->knows(product)) return {};
  round_once(context, p, 0, p.tokens, type);
  if (!context.blas->multiply(context, product, room)) return {};
  return {.parts = parts, .count = kParts, .tokens = p.tokens, .n = p.rows, .added = p.added, .out = p.out};
}

bool lies_in_one(const Product* products) {
  const Product &gate = products[0], &up = products[1];
  return is_half(gate.weight.format) && weights_of(up) == weights_of(gate) + 2 * gate.rows * gate.weight.cols && gate.tokens * gate.weight.cols * 2 <= static_cast<std::int64_t>(kRoundedBytes);
}

void multiply_gate_and_up(Context& context, const Product* products) {
  Product both = products[0];
  both.rows *= 2, both.out_stride *= 2;
  multiply_many_rounded(context, both);
}

bool multiply_together(Context& context, const Product* products, int count) {
  const Product& p = products[0];
  const bool half = is_half(p.weight.format);
  const std::int64_t w_step = weights_of(products[1]) - weights_of(p), out_step = products[1].out - p.out;
  if (!half || p.tokens * p.weight.cols * 2 > static_cast<std::int64_t>(kRoundedBytes) || w_step <= 0 || w_step % 16 != 0 || out_step <= 0 || out_step % 4 != 0) return false;
  for (int i = 0; i < count; ++i) {
    const Product& own = products[i];
    if (own.groups != 1 || own.by_column || own.bias != nullptr || own.added != nullptr || own.accumulate || own.activations != Activations::kAsTheyAre) return false;
    if (weights_of(own) - weights_of(p) != i * w_step || own.out - p.out != i * out_step) return false;
  }
  const BlasType type = p.weight.format == WeightFormat::bf16 ? BlasType::bf16 : BlasType::f16;
  context.workspace.reset();
  std::byte* room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  const BlasProduct product{.tokens = p.tokens, .n = p.rows, .k = p.weight.cols, .batch = count, .type = type, .x = context.rounded_data, .w = weights_of(p), .out = p.out,
                            .x_stride = p.weight.cols, .w_stride = p.weight.cols, .out_stride = p.out_stride, .x_step = 0, .w_step = w_step / 2, .out_step = out_step};
  if (!context.blas->knows(product)) return false;
  round_once(context, p, 0, p.tokens, type);
  return context.blas->multiply(context, product, room);
}

const std::byte* rounded_rows(Context& context, const Product& p) {
  const BlasType type = p.weight.format == WeightFormat::bf16 ? BlasType::bf16 : BlasType::f16;
  RoundedActivations beside = rounded_of(p, 0, p.tokens, type);
  beside.beside = true;
  if (context.rounded == beside) return context.rounded_data + kRoundedBytes / 2;
  round_once(context, p, 0, p.tokens, type);
  return context.rounded_data;
}

void launch_bias(Context& context, const Product& p) {
  bias_kernel<<<grid_of_rows(p.tokens, p.outputs()), 256, 0, context.stream>>>(p);
  context.launched();
}

}  // namespace fathom::cuda
