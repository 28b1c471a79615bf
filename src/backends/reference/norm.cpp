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
    for (std::int64_t i = 0; i < d; ++i)
      row[i] *= scale * (args.weight.defined() ? weight.values[static_cast<std::size_t>(i)] : 1.0);
  }
  store(args.out, x);
}

// With r = 1 / sqrt(mean(x²) + eps) and g = dout · weight: dx = r · (g - x · r² · mean(g · x)), dweight = sum of dout ·
// x · r.
void ReferenceGradOps::rms_norm_backward(const RmsNormGrad& args) {
  const Array x = load(args.f.x), dout = load(args.dout);
  const std::int64_t d = args.f.x.dim(args.f.x.shape.rank - 1), rows = d > 0 ? args.f.x.elements() / d : 0;
  const Array weight = args.f.weight.defined() ? load(args.f.weight) : Array();
  Array dx(args.f.x.shape), dweight(Shape{d});
  std::vector<double> g(static_cast<std::size_t>(d));
  for (std::int64_t r = 0; r < rows; ++r) {
    const double *row = x.values.data() + r * d, *drow = dout.values.data() + r * d;
    const double scale = 1.0 / std::sqrt(dot(row, row, d) / static_cast<double>(d) + args.f.eps);
    for (std::int64_t i = 0; i < d; ++i) {
      g[static_cast<std::size_t>(i)] = drow[i] * (args.f.weight.defined() ? *weight.at(i) : 1.0);
      *dweight.at(i) += drow[i] * row[i] * scale;
    }
    const double mean = dot(g.data(), row, d) / static_cast<double>(d);
    for (std::int64_t i = 0; i < d; ++i)
      dx.values[static_cast<std::size_t>(r * d + i)] =
          scale * (g[static_cast<std::size_t>(i)] - row[i] * scale * scale * mean);
  }
  add_to(args.dx, dx);
  add_to(args.dweight, dweight);
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

// With y = (x - mean) · s and g = dout · weight: dx = s · (g - mean(g) - y · mean(g · y)).
void ReferenceGradOps::layer_norm_backward(const LayerNormGrad& args) {
  const Array x = load(args.f.x), dout = load(args.dout), weight = load(args.f.weight);
  const std::int64_t d = args.f.x.dim(args.f.x.shape.rank - 1), rows = d > 0 ? args.f.x.elements() / d : 0;
  const auto n = static_cast<double>(d);
  Array dx(args.f.x.shape), dweight(Shape{d}), dbias(Shape{d});
  for (std::int64_t r = 0; r < rows; ++r) {
    const double *row = x.values.data() + r * d, *drow = dout.values.data() + r * d;
    double mean = 0, variance = 0, mean_g = 0, mean_gy = 0;
    for (std::int64_t i = 0; i < d; ++i) mean += row[i] / n;
    for (std::int64_t i = 0; i < d; ++i) variance += (row[i] - mean) * (row[i] - mean) / n;
    const double scale = 1.0 / std::sqrt(variance + args.f.eps);
    for (std::int64_t i = 0; i < d; ++i) {
      const double y = (row[i] - mean) * scale, g = drow[i] * *weight.at(i);
      mean_g += g / n, mean_gy += g * y / n;
      *dweight.at(i) += drow[i] * y, *dbias.at(i) += drow[i];
    }
    for (std::int64_t i = 0; i < d; ++i)
      dx.values[static_cast<std::size_t>(r * d + i)] =
          scale * (drow[i] * *weight.at(i) - mean_g - (row[i] - mean) * scale * mean_gy);
  }
  add_to(args.dx, dx);
  add_to(args.dweight, dweight);
  add_to(args.dbias, dbias);
}

}  // namespace fathom::reference
