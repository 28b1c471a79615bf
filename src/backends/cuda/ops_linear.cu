// Family linear. Three ways to a product, by shape: few tokens (linear_few.cu), more by cuBLASLt, and what neither takes (unaligned rows, odd
// widths) by a plain tiled kernel (linear_many.cu). Products of few tokens wait a moment for what goes with them: others of the same x, the
// norm that makes x, the gate or the sum that follows (waiting.cuh).
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/product.cuh"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

/// Whether eight elements at a time can be read from every row of the weight.
bool weight_in_eights(const WeightView& weight) {
  const std::int64_t eight = weight.format == WeightFormat::mxfp4 || is_int4(weight.format) ? 4 : is_plain(weight.format) ? 16 : 8;
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

/// Whether few tokens go the way of many: who takes few makes x anew in every block, which for wide x takes longer than the weights take to come.
/// (Where, is what calibrating an H200 showed: docs/gpu-notes.md.)
bool better_as_many(const Product& p) {
  constexpr std::int64_t kLeastColumns = 3072, kLeastOfX = 8192, kLeastElements = std::int64_t{1} << 22;
  const bool wide = p.weight.cols >= kLeastColumns && p.tokens > 1 && p.tokens * p.weight.cols >= kLeastOfX && p.rows * p.weight.cols >= kLeastElements;
  return wide && is_half(p.weight.format) && p.groups == 1 && !p.by_column && p.bias == nullptr && !p.accumulate && aligned_for_blas(p);
}
bool is_few(const Product& p) { return p.tokens <= kFewTokens && !better_as_many(p); }

/// Whether a product goes to launch_together: few tokens or some on matrix units, an output a row, in one group.
bool may_wait(const Context& context, const Product& p) {
  const bool few = p.tokens > 0 && is_few(p);
  return (few || can_use_some(context, p)) && p.rows > 0 && p.groups == 1 && !p.by_column && weight_in_eights(p.weight) && aligned_16(p.x, p.x_stride, p.x_step);
}
/// Whether one of many tokens goes to cuBLASLt, which can add something to it.
bool may_wait_many(const Product& p) {
  return !is_few(p) && p.rows > 0 && is_half(p.weight.format) && p.bias == nullptr && !p.accumulate && aligned_for_blas(p);
}
}  // namespace

void multiply_any(Context& context, const Product& p) {
  if (p.tokens == 0 || p.groups == 0 || p.outputs() == 0) return;
  FATHOM_CHECK(p.weight.format != WeightFormat::f64 && p.weight.format != WeightFormat::i64, "a weight that the cuda backend cannot multiply with");
  close_stages(context);
  context.workspace.reset();
  if (p.activations != Activations::kAsTheyAre) return multiply_rounded(context, p);
  const bool aligned_x = aligned_16(p.x, p.x_stride, p.x_step);
  const bool few = is_few(p);
  if (few && weight_in_eights(p.weight) && (p.by_column || aligned_x) && p.groups <= 65535) return launch_few(context, p);
  if (few || !aligned_for_blas(p)) return launch_tiled(context, p);
  Product left = p;
  if (p.bias != nullptr) {
    launch_bias(context, p);
    left.accumulate = true;
    left.bias = nullptr;
  }
  if (is_plain(p.weight.format) || p.groups == 1 || widens_whole(p)) return multiply_many(context, left);
  left.groups = 1;
  for (std::int64_t g = 0; g < p.groups; ++g) {  // rows that do not fit widened are, a group's before its product
    left.first_row = p.first_row + g * p.row_step;
    left.x = p.x + g * p.x_step;
    left.out = p.out + g * p.out_step;
    context.workspace.reset();
    multiply_many(context, left);
  }
}

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
                        .accumulate = args.accumulate,
                        .activations = rounds_activations(args.weight, tokens) ? args.weight.activations : Activations::kAsTheyAre};
  if (waiting_->has_parts()) launch_waiting();
  const bool rounds = product.activations != Activations::kAsTheyAre, waits = !rounds && may_wait(context_, product), many = !rounds && !waits && may_wait_many(product);
  waiting_->keep(context_, product, many || (waits && tokens > kFewTokens) ? type_of_half(product.weight.format) : DType::f32);
  if (rounds) {
    launch_waiting();
    close_stages(context_);
    if (product.bias == nullptr && !product.accumulate) waiting_->take_many(context_, product);
    else multiply_any(context_, product);
  } else if (waits) {
    waiting_->take(context_, product);
  } else if (many) {
    waiting_->take_many(context_, product);
  } else {
    launch_waiting();
    close_stages(context_);
    waiting_->write_norm_for(context_, product);
    multiply_any(context_, product);
  }
  const RoundedActivations& kept = context_.rounded;
  if (kept.x != nullptr && product.out < kept.x + (kept.tokens - 1) * kept.stride + kept.groups * kept.step + kept.width && kept.x < product.out + (tokens - 1) * product.out_stride + n) context_.rounded = {};
}

void CudaOps::grouped_linear(const GroupedLinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), groups = args.x.dim(1), k = args.weight.cols;
  FATHOM_CHECK(args.weight.rows == groups * args.group_rows && args.row_offset >= 0 && args.row_offset + args.rows <= args.group_rows);
  FATHOM_CHECK(args.x.dim(2) == (args.transposed ? args.rows : k) && args.out.dim(0) == tokens && args.out.dim(1) == groups);
  FATHOM_CHECK(args.out.dim(2) == (args.transposed ? k : args.rows));
  FATHOM_CHECK(args.x.dtype == DType::f32 && args.out.dtype == DType::f32, "activations are f32");
  const Product product{.weight = view_of(args.weight),
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
                        .out_step = args.out.strides[1]};
  if (waiting_->leave(context_, product) || waiting_->carry(context_, product)) return;
  flush();
  multiply_any(context_, product);
}

}  // namespace fathom::cuda
