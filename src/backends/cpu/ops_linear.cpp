// Family linear: products with weights of any format.
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rounded.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
constexpr std::int64_t kBlockColumns = 512;  // of a transposed weight, in one task
constexpr std::int64_t kBlockDepth = 64;     // of its rows at a time

/// Pointers to x[t, g, :] for all t.
const float** token_rows(Scratch& scratch, const Tensor& x, std::int64_t offset) {
  const float** rows = scratch.take<const float*>(x.dim(0));
  for (std::int64_t t = 0; t < x.dim(0); ++t) rows[t] = x.as<float>() + t * x.strides[0] + offset;
  return rows;
}
}  // namespace

void CpuOps::linear(const LinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), n = args.weight.rows, k = args.weight.cols;
  FATHOM_CHECK(args.x.dim(1) == k && args.out.dim(0) == tokens && args.out.dim(1) == n && is_f32(args.x) &&
               is_f32(args.out));
  FATHOM_CHECK(can_multiply(args.weight.format), "the cpu backend cannot multiply with this format");
  Scratch& shared = fresh_shared();
  float* bias = nullptr;
  if (args.bias.defined()) {
    FATHOM_CHECK(args.bias.elements() == n && args.bias.contiguous());
    bias = args.bias.as<float>();
    if (!is_f32(args.bias))
      context_.kernels.widen(element_of(args.bias.dtype), args.bias.data, n, bias = shared.take<float>(n));
  }
  Product product{.weight = &args.weight,
                  .first_row = 0,
                  .rows = n,
                  .x = token_rows(shared, args.x, 0),
                  .m_count = tokens,
                  .out = args.out.as<float>(),
                  .out_stride = args.out.strides[0],
                  .bias = bias,
                  .accumulate = args.accumulate};
  if (!rounds_activations(args.weight, tokens)) return multiply(context_, {&product, 1});
  if (args.weight.format == WeightFormat::int8_row && k <= kMostCodes) return multiply_codes(context_, product);
  // As many tokens at a time as half of the workspace holds.
  const std::size_t mark = shared.used();
  const std::int64_t most =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(shared.left() / 2 / rounded_bytes(1, k)));
  for (std::int64_t t = 0; t < tokens; t += most) {
    Product part = product;
    part.m_count = std::min(most, tokens - t);
    part.x = round_rows(context_, shared, args.weight, product.x + t, part.m_count, k);
    part.out = product.out + t * product.out_stride;
    multiply(context_, {&part, 1});
    shared.rewind(mark);
  }
}

void CpuOps::grouped_linear(const GroupedLinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), groups = args.x.dim(1), k = args.weight.cols;
  FATHOM_CHECK(args.weight.rows == groups * args.group_rows && args.row_offset >= 0 &&
               args.row_offset + args.rows <= args.group_rows);
  FATHOM_CHECK(args.x.dim(2) == (args.transposed ? args.rows : k) && args.out.dim(0) == tokens &&
               args.out.dim(1) == groups);
  FATHOM_CHECK(args.out.dim(2) == (args.transposed ? k : args.rows) && is_f32(args.x) && is_f32(args.out));
  FATHOM_CHECK(can_multiply(args.weight.format), "the cpu backend cannot multiply with this format");
  if (tokens == 0) return;
  if (args.transposed) return grouped_transposed(args);
  Scratch& shared = fresh_shared();
  auto* products = shared.take<Product>(groups);
  for (std::int64_t g = 0; g < groups; ++g)
    products[g] = {.weight = &args.weight,
                   .first_row = g * args.group_rows + args.row_offset,
                   .rows = args.rows,
                   .x = token_rows(shared, args.x, g * args.x.strides[1]),
                   .m_count = tokens,
                   .out = args.out.as<float>() + g * args.out.strides[1],
                   .out_stride = args.out.strides[0]};
  multiply(context_, {products, static_cast<std::size_t>(groups)});
}

/// out[t, g, :] = sum over r of x[t, g, r] · row r of the group: blocks of columns, each thread its own.
void CpuOps::grouped_transposed(const GroupedLinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), groups = args.x.dim(1), k = args.weight.cols;
  const std::int64_t blocks = (k + kBlockColumns - 1) / kBlockColumns;
  const Kernels& kernels = context_.kernels;
  context_.pool.for_each(groups * blocks, [&](std::int64_t task, int thread) {
    Scratch& scratch = fresh(thread);
    const std::int64_t g = task / blocks, first = task % blocks * kBlockColumns,
                       width = std::min(kBlockColumns, k - first);
    const float** x = token_rows(scratch, args.x, g * args.x.strides[1]);
    float* widened = scratch.take<float>(kBlockDepth * width);
    float* panels = scratch.take<float>((width + kMaxPanelWidth) * kBlockDepth);
    Row* rows = scratch.take<Row>(kBlockDepth);
    float* out = args.out.as<float>() + g * args.out.strides[1] + first;
    for (std::int64_t r = 0; r < args.rows; r += kBlockDepth) {
      const std::int64_t depth = std::min(kBlockDepth, args.rows - r);
      const Element element =
          weight_rows(args.weight, g * args.group_rows + args.row_offset + r, depth, first, width, widened, rows);
      if (tokens <= kDirectRows) {
        kernels.combine_rows({.element = element,
                              .rows = rows,
                              .row_count = depth,
                              .n = width,
                              .p = x[0] + r,
                              .p_stride = args.x.strides[0],
                              .m_count = tokens,
                              .y = out,
                              .y_stride = args.out.strides[0],
                              .accumulate = r > 0});
        continue;
      }
      kernels.pack_straight({.element = element,
                             .rows = rows,
                             .row_count = depth,
                             .count = width,
                             .panels = panels,
                             .panel_depth = depth});
      kernels.panel_product({.a = x,
                             .a_offset = r,
                             .m_count = tokens,
                             .panels = panels,
                             .depth = depth,
                             .columns = width,
                             .c = out,
                             .c_stride = args.out.strides[0],
                             .accumulate = r > 0});
    }
    if (args.rows == 0)
      for (std::int64_t t = 0; t < tokens; ++t) std::fill_n(out + t * args.out.strides[0], width, 0.0f);
  });
}

}  // namespace fathom::cpu
