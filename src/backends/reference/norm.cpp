// Family norm: RMS norm (Zhang & Sennrich 2019) and layer norm (Ba et al. 2016).
#include <cmath>

#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary

void ReferenceOps::rms_norm(const RmsNormArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  Array x = load(args.x);
  const std::int64_t d = args.x.dim(args.x.shape.rank - 1), rows = d > 0 ? args.x.elements() / d : 0;
  const Array weight = args.weight.defined() ? load(args.weight) : Array();
  FATHOM_CHECK(!args.weight.defined() || args.weight.elements() == d);
  for (std::int64_t r = 0; r < rows; ++r) {
    double* row = x.values.data() + r * d;
    const double scale = 1.0 / std::sqrt(dot(row, row, d) / static_cast<double>(d) + args.eps);
    for (std::int64_t i = 0; i < d; ++i) row[i] *= scale * (args.weight.defined() ? weight.values[static_cast<std::size_t>(i)] : 1.0);
  }
  store(args.out, x);
}

void ReferenceOps::layer_norm(const LayerNormArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  Array x = load(args.x);
  const std::int64_t d = args.x.dim(args.x.shape.rank - 1), rows = d > 0 ? args.x.elements() / d : 0;
  const Array weight = load(args.weight), bias = load(args.bias);
  FATHOM_CHECK(args.weight.elements() == d && args.bias.elements() == d);
  for (std::int64_t r = 0; r < rows; ++r) {
    double* row = x.values.data() + r * d;
    double mean = 0, variance = 0;
    for (std::int64_t i = 0; i < d; ++i) mean += row[i] / static_cast<double>(d);
    for (std::int64_t i = 0; i < d; ++i) variance += (row[i] - mean) * (row[i] - mean) / static_cast<double>(d);
    const double scale = 1.0 / std::sqrt(variance + args.eps);
    for (std::int64_t i = 0; i < d; ++i) row[i] = (row[i] - mean) * scale * *weight.at(i) + *bias.at(i);
  }
  store(args.out, x);
}

}  // namespace fathom::reference
