#include "backends/cpu/cpu_grad_ops.h"

#include "backends/cpu/rows.h"
#include "base/math.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
constexpr std::int64_t kDepth = 256;   // of a panel
constexpr std::int64_t kColumns = 64;  // of the result in one task
constexpr std::int64_t kRows = 512;    // of the result in one task

}  // namespace

/// dx [T, k] += dout [T, n] · weight [n, k].
void CpuGradOps::add_dx(const LinearGrad& args) {
  const std::int64_t tokens = args.dout.dim(0), n = args.f.weight.rows, k = args.f.weight.cols;
  const std::int64_t columns = ceil_div(k, kColumns), groups = ceil_div(tokens, kRows);
  context_.pool.for_each(columns * groups, [&](std::int64_t task, int thread) {
    Scratch& scratch = context_.workspace.of(thread);
    scratch.reset();
    const std::int64_t k0 = task / groups * kColumns, kb = std::min(kColumns, k - k0), t0 = task % groups * kRows,
                       tb = std::min(kRows, tokens - t0);
    float *widened = scratch.take<float>(kDepth * kb), *panels = scratch.take<float>(kDepth * kMaxPanelWidth);
    Row* rows = scratch.take<Row>(kDepth);
    const float** dout = scratch.take<const float*>(tb);
    for (std::int64_t t = 0; t < tb; ++t) dout[t] = args.dout.as<float>() + (t0 + t) * args.dout.strides[0];
    for (std::int64_t at = 0; at < n; at += kDepth) {
      const std::int64_t depth = std::min(kDepth, n - at);
      const Element element = weight_rows(args.f.weight, at, depth, k0, kb, widened, rows);
      context_.kernels.pack_straight(
          {.element = element, .rows = rows, .row_count = depth, .count = kb, .panels = panels, .panel_depth = depth});
      context_.kernels.panel_product({.a = dout,
                                      .a_offset = at,
                                      .m_count = tb,
                                      .panels = panels,
                                      .depth = depth,
                                      .columns = kb,
                                      .c = args.dx.as<float>() + t0 * args.dx.strides[0] + k0,
                                      .c_stride = args.dx.strides[0],
                                      .accumulate = true});
    }
  });
}

/// dweight [n, k] += doutᵀ [n, T] · x [T, k]: the rows of the left-hand side are columns of dout.
void CpuGradOps::add_dweight(const LinearGrad& args) {
  const std::int64_t tokens = args.dout.dim(0), n = args.f.weight.rows, k = args.f.weight.cols;
  const std::int64_t columns = ceil_div(k, kColumns), groups = ceil_div(n, kRows);
  context_.pool.for_each(columns * groups, [&](std::int64_t task, int thread) {
    Scratch& scratch = context_.workspace.of(thread);
    scratch.reset();
    const std::int64_t k0 = task / groups * kColumns, kb = std::min(kColumns, k - k0), n0 = task % groups * kRows,
                       nb = std::min(kRows, n - n0);
    float* panels = scratch.take<float>(kDepth * kMaxPanelWidth);
    Row* rows = scratch.take<Row>(kDepth);
    const float** dout = scratch.take<const float*>(nb);
    for (std::int64_t at = 0; at < tokens; at += kDepth) {
      const std::int64_t depth = std::min(kDepth, tokens - at);
      for (std::int64_t t = 0; t < depth; ++t)
        rows[t] = reinterpret_cast<Row>(args.f.x.as<float>() + (at + t) * args.f.x.strides[0] + k0);
      for (std::int64_t i = 0; i < nb; ++i) dout[i] = args.dout.as<float>() + at * args.dout.strides[0] + n0 + i;
      context_.kernels.pack_straight({.element = Element::kF32,
                                      .rows = rows,
                                      .row_count = depth,
                                      .count = kb,
                                      .panels = panels,
                                      .panel_depth = depth});
      context_.kernels.panel_product({.a = dout,
                                      .a_step = args.dout.strides[0],
                                      .m_count = nb,
                                      .panels = panels,
                                      .depth = depth,
                                      .columns = kb,
                                      .c = args.dweight.as<float>() + n0 * args.dweight.strides[0] + k0,
                                      .c_stride = args.dweight.strides[0],
                                      .accumulate = true});
    }
  });
}

/// dbias [n] += the sum of dout over tokens.
void CpuGradOps::add_dbias(const LinearGrad& args) {
  const std::int64_t tokens = args.dout.dim(0), n = args.dout.dim(1);
  for_ranges(context_.pool, n, tokens, [&](std::int64_t first, std::int64_t last, int) {
    float* to = args.dbias.as<float>() + first;
    for (std::int64_t t = 0; t < tokens; ++t)
      context_.kernels.add(to, args.dout.as<float>() + t * args.dout.strides[0] + first, to, last - first);
  });
}

void CpuGradOps::linear_backward(const LinearGrad& args) {
  const std::int64_t tokens = args.dout.dim(0), n = args.f.weight.rows, k = args.f.weight.cols;
  FATHOM_CHECK(args.dout.dim(1) == n && is_f32(args.dout) && can_multiply(args.f.weight.format));
  if (tokens == 0) return;
  if (args.dx.defined()) {
    FATHOM_CHECK(args.dx.dim(0) == tokens && args.dx.dim(1) == k && is_f32(args.dx));
    add_dx(args);
  }
  if (args.dweight.defined()) {
    FATHOM_CHECK(args.f.x.dim(0) == tokens && args.f.x.dim(1) == k && is_f32(args.f.x) && is_f32(args.dweight));
    FATHOM_CHECK(args.dweight.elements() == n * k);
    add_dweight(args);
  }
  if (args.dbias.defined()) {
    FATHOM_CHECK(args.dbias.elements() == n && is_f32(args.dbias));
    add_dbias(args);
  }
}

}  // namespace fathom::cpu
