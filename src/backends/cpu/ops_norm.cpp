// Families norm and rope, and the elementwise half of experts: row by row.
#include <cmath>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
/// Calls norm(row) for every innermost row.
template <class Norm>
void norm_rows(ThreadPool& pool, const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
               const Tensor& out, Norm norm) {
  FATHOM_CHECK(x.shape == out.shape && is_f32(x) && is_f32(out));
  const RowsOfTensor from(x), to(out);
  FATHOM_CHECK(!weight.defined() || (weight.elements() == from.n() && weight.contiguous()));
  FATHOM_CHECK(!bias.defined() || (bias.elements() == from.n() && bias.contiguous()));
  NormRow row{.eps = static_cast<float>(eps), .n = from.n()};
  if (weight.defined()) row.weight = weight.data, row.weight_element = element_of(weight.dtype);
  if (bias.defined()) row.bias = bias.data, row.bias_element = element_of(bias.dtype);
  if (from.n() == 0) return;
  for_ranges(pool, from.rows(), 2 * from.n(), [&](std::int64_t first, std::int64_t last, int) {
    NormRow mine = row;
    for (std::int64_t i = first; i < last; ++i) {
      mine.x = from.floats(i);
      mine.out = to.floats(i);
      norm(mine);
    }
  });
}
}  // namespace

void CpuOps::rms_norm(const RmsNormArgs& args) {
  norm_rows(context_.pool, args.x, args.weight, {}, args.eps, args.out, context_.kernels.rms_norm);
}

void CpuOps::layer_norm(const LayerNormArgs& args) {
  norm_rows(context_.pool, args.x, args.weight, args.bias, args.eps, args.out, context_.kernels.layer_norm);
}

void CpuOps::rotary(const RotaryArgs& args) {
  const std::int64_t n = args.positions.dim(0), half = args.inverse_frequency.dim(0);
  FATHOM_CHECK(args.cos.shape == (Shape{n, half}) && args.sin.shape == args.cos.shape && is_f32(args.cos) &&
               is_f32(args.sin));
  FATHOM_CHECK(args.positions.dtype == DType::i32 && is_f32(args.inverse_frequency));
  const auto* positions = args.positions.as<std::int32_t>();
  const auto* frequency = args.inverse_frequency.as<float>();
  const RowsOfTensor cosines(args.cos), sines(args.sin);
  for_ranges(context_.pool, n, 16 * half, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto position =
          static_cast<float>(std::max<std::int32_t>(positions[t * args.positions.strides[0]], 0));  // -1: angle 0
      float *cos = cosines.floats(t), *sin = sines.floats(t);
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = position * frequency[i];  // rounded to f32 as transformers has it, then exact
        cos[i] = static_cast<float>(std::cos(angle) * args.scale);
        sin[i] = static_cast<float>(std::sin(angle) * args.scale);
      }
    }
  });
}

void CpuOps::rope(const RopeArgs& args) {
  const std::int64_t n = args.x.dim(0), heads = args.x.dim(1), half = args.cos.dim(1);
  FATHOM_CHECK(args.x.shape.rank == 3 && args.cos.dim(0) == n && args.sin.shape == args.cos.shape && is_f32(args.x) &&
               is_f32(args.cos) && is_f32(args.sin));
  FATHOM_CHECK(args.first_dim >= 0 && args.first_dim + 2 * half <= args.x.dim(2));
  const RowsOfTensor x(args.x), cos(args.cos), sin(args.sin);
  for_ranges(context_.pool, n * heads, 4 * half, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i)
      context_.kernels.rotate({.x = x.floats(i) + args.first_dim,
                               .cos = cos.floats(i / heads),
                               .sin = sin.floats(i / heads),
                               .half = half,
                               .interleaved = args.interleaved,
                               .sign = args.inverse ? -1.0f : 1.0f});
  });
}

void CpuOps::swiglu(const SwigluArgs& args) {
  FATHOM_CHECK(args.gate.shape == args.up.shape && args.gate.shape == args.out.shape && is_f32(args.gate) &&
               is_f32(args.up) && is_f32(args.out));
  const RowsOfTensor gate(args.gate), up(args.up), out(args.out);
  for_ranges(context_.pool, gate.rows(), 4 * gate.n(), [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i)
      context_.kernels.swiglu(gate.floats(i), up.floats(i), static_cast<float>(args.limit), out.floats(i), gate.n());
  });
}

void CpuOps::gelu(const GeluArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape && is_f32(args.x) && is_f32(args.out));
  const RowsOfTensor x(args.x), out(args.out);
  for_ranges(context_.pool, x.rows(), 4 * x.n(), [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) context_.kernels.gelu(x.floats(i), out.floats(i), x.n());
  });
}

}  // namespace fathom::cpu
