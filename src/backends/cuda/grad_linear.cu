// Family linear backwards: dx += dout · W, dW += doutᵀ · x. Weights that are not f32 are widened to it a block of rows at a time where
// cuBLASLt then multiplies; elsewhere the plain kernel (grad_product.cu) reads them as they lie.
#include "backends/cuda/blas.h"
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kFewGradTokens = 16;  // up to here widening a weight costs more than the product

/// wide[r, c] = weight[first + r, c], dense. Grid: blocks of columns, rows.
__global__ void __launch_bounds__(256) widen_to_f32(WeightView weight, std::int64_t first, std::int64_t rows, float* wide) {
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y)
    for (std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; c < weight.cols; c += static_cast<std::int64_t>(gridDim.x) * blockDim.x)
      wide[r * weight.cols + c] = load_weight(weight, first + r, c);
}

/// p adds dout · W; its right side is the weight's. False: it does not fit cuBLASLt.
bool multiply_widened(Context& context, GradProduct p, const Weight& weight, std::byte* room) {
  const std::int64_t cols = weight.cols, block = std::min<std::int64_t>(weight.rows, static_cast<std::int64_t>(kWidenedBytes) / (4 * cols) / 4 * 4);
  if (p.rows <= kFewGradTokens || block == 0) return false;
  const float* const dout = p.left.data;
  const Workspace start = context.workspace;
  float* const wide = context.workspace.take<float>(block * cols);
  p.right = {};
  p.right.data = wide;
  p.right.index = 1;
  p.right.depth = cols;
  const bool fits = fits_blas(p);
  for (std::int64_t row = 0; fits && row < weight.rows; row += block) {
    p.depth = std::min(block, weight.rows - row);
    const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(divide_up(cols, 256), 64)), static_cast<unsigned>(std::min<std::int64_t>(p.depth, 8192)));
    widen_to_f32<<<grid, 256, 0, context.stream>>>(view_of(weight), row, p.depth, wide);
    context.launched();
    p.left.data = dout + row;
    launch_grad_product(context, p, room);
  }
  context.workspace = start;  // what follows on the stream may overwrite it
  return fits;
}

GradSide side_of(const Tensor& x, std::int64_t index, std::int64_t depth, std::int64_t group = 0) {
  GradSide side;
  side.data = x.as<float>();
  side.index = index;
  side.depth = depth;
  side.group = group;
  return side;
}

void check_f32(const Tensor& x) { FATHOM_CHECK(!x.defined() || x.dtype == DType::f32, "gradients are f32"); }

}  // namespace

void CudaGradOps::linear_backward(const LinearGrad& args) {
  Context& context = begin();
  const std::int64_t tokens = args.f.x.dim(0), n = args.f.weight.rows, k = args.f.weight.cols;
  FATHOM_CHECK(args.f.x.dim(1) == k && args.dout.dim(0) == tokens && args.dout.dim(1) == n);
  check_f32(args.dout), check_f32(args.dx);
  if (tokens == 0) return;
  std::byte* const room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  if (args.dx.defined()) {
    GradProduct p{.left = side_of(args.dout, args.dout.strides[0], 1), .rows = tokens, .columns = k, .depth = n, .out = args.dx.as<float>(), .out_stride = args.dx.strides[0]};
    p.right = weight_side(args.f.weight, 0, 0, true);
    if (p.right.data != nullptr || !multiply_widened(context, p, args.f.weight, room)) launch_grad_product(context, p, room);
  }
  if (args.dweight.defined()) {
    check_f32(args.f.x);
    const GradProduct p{.left = side_of(args.dout, 1, args.dout.strides[0]),
                        .right = side_of(args.f.x, 1, args.f.x.strides[0]),
                        .rows = n,
                        .columns = k,
                        .depth = tokens,
                        .out = parameter_of(args.dweight, n * k),
                        .out_stride = k};
    launch_grad_product(context, p, room);
  }
  if (args.dbias.defined()) add_column_sums(context, {.values = rows_of(args.dout)}, parameter_of(args.dbias, n));
}

void CudaGradOps::grouped_linear_backward(const GroupedLinearGrad& args) {
  Context& context = begin();
  const GroupedLinearArgs& f = args.f;
  const std::int64_t tokens = f.x.dim(0), groups = f.x.dim(1), k = f.weight.cols;
  FATHOM_CHECK(f.weight.rows == groups * f.group_rows && f.row_offset >= 0 && f.row_offset + f.rows <= f.group_rows);
  FATHOM_CHECK(f.x.dim(2) == (f.transposed ? f.rows : k) && args.dout.dim(2) == (f.transposed ? k : f.rows));
  check_f32(args.dout), check_f32(args.dx);
  if (tokens == 0 || groups == 0) return;
  std::byte* const room = context.workspace.take<std::byte>(static_cast<std::int64_t>(Blas::kWorkspaceBytes));
  if (args.dx.defined()) {
    GradProduct p{.left = side_of(args.dout, args.dout.strides[0], 1, args.dout.strides[1]),
                  .rows = tokens,
                  .columns = f.transposed ? f.rows : k,
                  .depth = f.transposed ? k : f.rows,
                  .groups = groups,
                  .out = args.dx.as<float>(),
                  .out_stride = args.dx.strides[0],
                  .out_group = args.dx.strides[1]};
    p.right = weight_side(f.weight, f.row_offset, f.group_rows, !f.transposed);
    launch_grad_product(context, p, room);
  }
  if (!args.dweight.defined()) return;
  check_f32(f.x);
  // The rows of a group: what its outputs (transposed: its inputs) change by, times the other side.
  const Tensor &of_rows = f.transposed ? f.x : args.dout, &of_columns = f.transposed ? args.dout : f.x;
  const GradProduct p{.left = side_of(of_rows, 1, of_rows.strides[0], of_rows.strides[1]),
                      .right = side_of(of_columns, 1, of_columns.strides[0], of_columns.strides[1]),
                      .rows = f.rows,
                      .columns = k,
                      .depth = tokens,
                      .groups = groups,
                      .out = parameter_of(args.dweight, f.weight.rows * k) + f.row_offset * k,
                      .out_stride = k,
                      .out_group = f.group_rows * k};
  launch_grad_product(context, p, room);
}

}  // namespace fathom::cuda
