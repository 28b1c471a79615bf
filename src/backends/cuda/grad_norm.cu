// Family norm backwards, and the sums over rows that gradients of vectors are. With y = (x - mean) · scale (mean 0 where it is the RMS norm)
// and g = dout · weight: dx += scale · (g - mean(g) - y · mean(g · y)), dweight += the sum of dout · y, dbias += that of dout.
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

// ---------------------------------------------------------------- sums over rows

constexpr int kSumLines = 16;  // rows that a block reads at a time, 32 columns of each
constexpr std::int64_t kRowsOfSlice = 256, kMostSlices = 64;

__device__ float term_of(const ColumnSum& sum, std::int64_t row, std::int64_t column) {
  const float value = sum.values.row<const float>(row)[column];
  if (sum.scale == nullptr) return value;
  return value * (sum.x.row<const float>(row)[column] - (sum.mean != nullptr ? sum.mean[row] : 0.0f)) * sum.scale[row];
}

/// out[slice, column] (+)= the sum over `each` rows from slice · each on. Grid: blocks of 32 columns, slices.
__global__ void __launch_bounds__(kWarp* kSumLines) sum_columns(const __grid_constant__ ColumnSum sum, std::int64_t each, float* out, bool add) {
  __shared__ float room[kSumLines][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, line = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane, first = static_cast<std::int64_t>(blockIdx.y) * each;
  const std::int64_t last = min(first + each, sum.values.count);
  float total = 0.0f;
  if (column < sum.values.n) {
#pragma unroll 4
    for (std::int64_t row = first + line; row < last; row += kSumLines) total += term_of(sum, row, column);
  }
  room[line][lane] = total;
  __syncthreads();
  if (line != 0 || column >= sum.values.n) return;
  for (int i = 1; i < kSumLines; ++i) total += room[i][lane];
  float& to = out[blockIdx.y * sum.values.n + column];
  to = add ? to + total : total;
}

void launch_sum(Context& context, const ColumnSum& sum, std::int64_t slices, float* out, bool add) {
  const dim3 grid(static_cast<unsigned>(divide_up(sum.values.n, kWarp)), static_cast<unsigned>(slices));
  sum_columns<<<grid, kWarp * kSumLines, 0, context.stream>>>(sum, divide_up(sum.values.count, slices), out, add);
  context.launched();
}

// ---------------------------------------------------------------- norms

struct NormGradView {
  RowsView x, dout, dx;
  FloatVector weight;
  float eps = 0;
  bool layer = false, wants_dx = false;
  float *mean = nullptr, *scale = nullptr;  // [rows]
};

/// A block a row.
__global__ void norm_backward_kernel(const __grid_constant__ NormGradView view) {
  __shared__ BlockRoom room;
  const std::int64_t n = view.x.n;
  const auto width = static_cast<float>(n);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  for (std::int64_t row = blockIdx.x; row < view.x.count; row += gridDim.x) {
    const float *x = view.x.row<const float>(row), *dout = view.dout.row<const float>(row);
    float sum = 0.0f, squares = 0.0f;
    if (view.layer) {
      for (std::int64_t i = thread; i < n; i += threads) sum += x[i];
      sum = block_sum(sum, room);
    }
    const float mean = sum / width;
    for (std::int64_t i = thread; i < n; i += threads) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(block_sum(squares, room) / width + view.eps);
    if (thread == 0) view.mean[row] = mean, view.scale[row] = scale;
    if (!view.wants_dx) continue;
    float all = 0.0f, along = 0.0f;
    for (std::int64_t i = thread; i < n; i += threads) {
      const float g = dout[i] * (view.weight.data != nullptr ? view.weight[i] : 1.0f);
      all += g;
      along += g * ((x[i] - mean) * scale);
    }
    all = view.layer ? block_sum(all, room) / width : 0.0f;
    along = block_sum(along, room) / width;
    float* dx = view.dx.row<float>(row);
    for (std::int64_t i = thread; i < n; i += threads) {
      const float g = dout[i] * (view.weight.data != nullptr ? view.weight[i] : 1.0f);
      dx[i] += scale * (g - all - (x[i] - mean) * scale * along);
    }
  }
}

/// Makes dx; what the sums of dweight need.
ColumnSum launch_norm_backward(Context& context, const Tensor& x, const Tensor& weight, double eps, const Tensor& dout, const Tensor& dx, bool layer) {
  FATHOM_CHECK(x.shape == dout.shape && x.dtype == DType::f32 && dout.dtype == DType::f32);
  FATHOM_CHECK(!dx.defined() || (dx.shape == x.shape && dx.dtype == DType::f32), "gradients are f32");
  NormGradView view;
  view.x = rows_of(x);
  view.dout = rows_of(dout);
  view.dx = rows_of(dx);
  view.wants_dx = dx.defined();
  FATHOM_CHECK(!weight.defined() || weight.elements() == view.x.n);
  view.weight = vector_of(weight);
  view.eps = static_cast<float>(eps);
  view.layer = layer;
  view.mean = context.workspace.take<float>(view.x.count);
  view.scale = context.workspace.take<float>(view.x.count);
  if (view.x.count == 0 || view.x.n == 0) return {};
  const auto threads = static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(view.x.n, kWarp) * kWarp, kWarp, 512));
  norm_backward_kernel<<<grid_for(context, view.x.count, 1), threads, 0, context.stream>>>(view);
  context.launched();
  return {.values = view.dout, .x = view.x, .mean = view.mean, .scale = view.scale};
}

}  // namespace

RowsView dense_rows(const float* data, std::int64_t count, std::int64_t n) {
  RowsView rows;
  rows.data = reinterpret_cast<std::byte*>(const_cast<float*>(data));
  rows.count = rows.dims[2] = count;
  rows.strides[2] = n * 4;
  rows.n = n;
  return rows;
}

float* parameter_of(const Tensor& gradient, std::int64_t elements) {
  if (!gradient.defined()) return nullptr;
  FATHOM_CHECK(gradient.dtype == DType::f32 && gradient.contiguous() && gradient.elements() == elements, "a parameter's gradient is f32, dense and of its shape");
  return gradient.as<float>();
}

void add_column_sums(Context& context, const ColumnSum& sum, float* out) {
  if (sum.values.count == 0 || sum.values.n == 0) return;
  const std::int64_t slices = std::clamp<std::int64_t>(sum.values.count / kRowsOfSlice, 1, kMostSlices);
  if (slices == 1) return launch_sum(context, sum, 1, out, true);
  const Workspace start = context.workspace;
  float* const parts = context.workspace.take<float>(slices * sum.values.n);
  launch_sum(context, sum, slices, parts, false);
  launch_sum(context, {.values = dense_rows(parts, slices, sum.values.n)}, 1, out, true);
  context.workspace = start;
}

void CudaGradOps::rms_norm_backward(const RmsNormGrad& args) {
  Context& context = begin();
  const ColumnSum sum = launch_norm_backward(context, args.f.x, args.f.weight, args.f.eps, args.dout, args.dx, false);
  if (args.dweight.defined()) add_column_sums(context, sum, parameter_of(args.dweight, args.dout.dim(args.dout.shape.rank - 1)));
}

void CudaGradOps::layer_norm_backward(const LayerNormGrad& args) {
  Context& context = begin();
  const std::int64_t n = args.dout.dim(args.dout.shape.rank - 1);
  const ColumnSum sum = launch_norm_backward(context, args.f.x, args.f.weight, args.f.eps, args.dout, args.dx, true);
  if (args.dweight.defined()) add_column_sums(context, sum, parameter_of(args.dweight, n));
  if (args.dbias.defined()) add_column_sums(context, {.values = rows_of(args.dout)}, parameter_of(args.dbias, n));
}

}  // namespace fathom::cuda
