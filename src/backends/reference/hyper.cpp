// Family hyper: manifold-constrained hyper-connections (DeepSeek-V4 §2.2).
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/reference/dequantize.h"
#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

/// z[t, :] = fn · flatten(streams[t]) / rms(flatten(streams[t])).
Array mix_logits(const Array& streams, const Weight& fn, double norm_eps) {
  const std::int64_t tokens = streams.dim(0), width = streams.dim(1) * streams.dim(2);
  FATHOM_CHECK(fn.cols == width);
  Array z(Shape{tokens, fn.rows});
  std::vector<double> row(static_cast<std::size_t>(width)), inverse_rms;
  for (std::int64_t t = 0; t < tokens; ++t)
    inverse_rms.push_back(1.0 / std::sqrt(dot(streams.at(t), streams.at(t), width) / static_cast<double>(width) + norm_eps));
  for (std::int64_t r = 0; r < fn.rows && tokens > 0; ++r) {
    dequantize_row(fn, r, row.data());
    for (std::int64_t t = 0; t < tokens; ++t) z.at(t)[r] = dot(row.data(), streams.at(t), width) * inverse_rms[static_cast<std::size_t>(t)];
  }
  return z;
}

void divide_rows(std::vector<double>& m, std::int64_t c, double eps) {
  for (std::int64_t j = 0; j < c; ++j) {
    double sum = eps;
    for (std::int64_t k = 0; k < c; ++k) sum += m[static_cast<std::size_t>(j * c + k)];
    for (std::int64_t k = 0; k < c; ++k) m[static_cast<std::size_t>(j * c + k)] /= sum;
  }
}

void divide_columns(std::vector<double>& m, std::int64_t c, double eps) {
  for (std::int64_t k = 0; k < c; ++k) {
    double sum = eps;
    for (std::int64_t j = 0; j < c; ++j) sum += m[static_cast<std::size_t>(j * c + k)];
    for (std::int64_t j = 0; j < c; ++j) m[static_cast<std::size_t>(j * c + k)] /= sum;
  }
}

/// Softmax of each row of a [c, c] matrix, plus eps.
std::vector<double> softmax_rows(const std::vector<double>& logits, std::int64_t c, double eps) {
  std::vector<double> out(logits.size());
  for (std::int64_t j = 0; j < c; ++j) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::int64_t k = 0; k < c; ++k) largest = std::max(largest, logits[static_cast<std::size_t>(j * c + k)]);
    for (std::int64_t k = 0; k < c; ++k) sum += out[static_cast<std::size_t>(j * c + k)] = std::exp(logits[static_cast<std::size_t>(j * c + k)] - largest);
    for (std::int64_t k = 0; k < c; ++k) out[static_cast<std::size_t>(j * c + k)] = out[static_cast<std::size_t>(j * c + k)] / sum + eps;
  }
  return out;
}

}  // namespace

void ReferenceOps::hyper_mix(const HyperMixArgs& args) {
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2);
  FATHOM_CHECK(args.fn.rows == (2 + c) * c && args.base.elements() == args.fn.rows && args.scale.elements() == 3);
  const Array streams = load(args.streams), base = load(args.base), scale = load(args.scale);
  const Array z = mix_logits(streams, args.fn, args.norm_eps);
  Array collapsed(Shape{tokens, h}), post(Shape{tokens, c}), comb(Shape{tokens, c, c});
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < c; ++j) {
      const double pre = sigmoid(z.at(t)[j] * *scale.at(0) + *base.at(j)) + args.eps;
      add_scaled(pre, streams.at(t, j), collapsed.at(t), h);
      post.at(t)[j] = 2.0 * sigmoid(z.at(t)[c + j] * *scale.at(1) + *base.at(c + j));
    }
    std::vector<double> matrix;
    for (std::int64_t i = 2 * c; i < (2 + c) * c; ++i) matrix.push_back(z.at(t)[i] * *scale.at(2) + *base.at(i));
    matrix = softmax_rows(matrix, c, args.eps);
    divide_columns(matrix, c, args.eps);
    for (std::int64_t i = 1; i < args.iterations; ++i) {
      divide_rows(matrix, c, args.eps);
      divide_columns(matrix, c, args.eps);
    }
    std::copy(matrix.begin(), matrix.end(), comb.at(t));
  }
  store(args.collapsed, collapsed);
  store(args.post, post);
  store(args.comb, comb);
}

void ReferenceOps::hyper_merge(const HyperMergeArgs& args) {
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2);
  FATHOM_CHECK(args.out.shape == args.streams.shape && args.x.shape == (Shape{tokens, h}));
  const Array x = load(args.x), streams = load(args.streams), post = load(args.post), comb = load(args.comb);
  Array out(args.out.shape);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t k = 0; k < c; ++k) {
      add_scaled(post.at(t)[k], x.at(t), out.at(t, k), h);
      for (std::int64_t j = 0; j < c; ++j) add_scaled(comb.at(t, j)[k], streams.at(t, j), out.at(t, k), h);
    }
  store(args.out, out);
}

void ReferenceOps::hyper_head(const HyperHeadArgs& args) {
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2);
  FATHOM_CHECK(args.fn.rows == c && args.base.elements() == c && args.scale.elements() == 1);
  const Array streams = load(args.streams), base = load(args.base), scale = load(args.scale);
  const Array z = mix_logits(streams, args.fn, args.norm_eps);
  Array out(Shape{tokens, h});
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < c; ++j)
      add_scaled(sigmoid(z.at(t)[j] * *scale.at(0) + *base.at(j)) + args.eps, streams.at(t, j), out.at(t), h);
  store(args.out, out);
}

}  // namespace fathom::reference
