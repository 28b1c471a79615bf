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
    inverse_rms.push_back(1.0 /
                          std::sqrt(dot(streams.at(t), streams.at(t), width) / static_cast<double>(width) + norm_eps));
  for (std::int64_t r = 0; r < fn.rows && tokens > 0; ++r) {
    dequantize_row(fn, r, row.data());
    for (std::int64_t t = 0; t < tokens; ++t)
      z.at(t)[r] = dot(row.data(), streams.at(t), width) * inverse_rms[static_cast<std::size_t>(t)];
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
    for (std::int64_t k = 0; k < c; ++k)
      sum += out[static_cast<std::size_t>(j * c + k)] = std::exp(logits[static_cast<std::size_t>(j * c + k)] - largest);
    for (std::int64_t k = 0; k < c; ++k)
      out[static_cast<std::size_t>(j * c + k)] = out[static_cast<std::size_t>(j * c + k)] / sum + eps;
  }
  return out;
}

/// dz back through fn and the norm: dfn += dz · yᵀ, dstreams += r · (dy - y · mean(dy · y)) with y = streams · r and dy
/// = fnᵀ · dz.
void mix_logits_backward(const Array& streams, const Weight& fn, double norm_eps, const Array& dz, Array& dstreams,
                         const Tensor& dfn) {
  const std::int64_t tokens = streams.dim(0), width = streams.dim(1) * streams.dim(2);
  Array y(Shape{tokens, width}), dy(Shape{tokens, width});
  std::vector<double> inverse_rms, row(static_cast<std::size_t>(width)), drow(static_cast<std::size_t>(width));
  for (std::int64_t t = 0; t < tokens; ++t) {
    inverse_rms.push_back(1.0 /
                          std::sqrt(dot(streams.at(t), streams.at(t), width) / static_cast<double>(width) + norm_eps));
    add_scaled(inverse_rms.back(), streams.at(t), y.at(t), width);
  }
  for (std::int64_t r = 0; r < fn.rows && tokens > 0; ++r) {
    dequantize_row(fn, r, row.data());
    std::fill(drow.begin(), drow.end(), 0.0);
    for (std::int64_t t = 0; t < tokens; ++t) {
      add_scaled(dz.at(t)[r], row.data(), dy.at(t), width);
      add_scaled(dz.at(t)[r], y.at(t), drow.data(), width);
    }
    add_to_row(dfn, r, drow.data());
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double mean = dot(dy.at(t), y.at(t), width) / static_cast<double>(width),
                 scale = inverse_rms[static_cast<std::size_t>(t)];
    for (std::int64_t i = 0; i < width; ++i) dstreams.at(t)[i] += scale * (dy.at(t)[i] - y.at(t)[i] * mean);
  }
}

/// One gate sigmoid(z · scale + base): its slope times `change` goes to dz, dscale and dbase.
void gate_backward(double z, double scale, double base, double change, double& dz, double& dscale, double& dbase) {
  const double s = sigmoid(z * scale + base), du = change * s * (1.0 - s);
  dz += du * scale, dscale += du * z, dbase += du;
}

/// d through m / (sum + eps) where `out` is the result; along rows or columns.
void divide_backward(const std::vector<double>& before, std::vector<double>& d, std::int64_t c, double eps, bool rows) {
  for (std::int64_t a = 0; a < c; ++a) {
    const auto at = [&](std::int64_t b) { return static_cast<std::size_t>(rows ? a * c + b : b * c + a); };
    double sum = eps, along = 0;
    for (std::int64_t b = 0; b < c; ++b) sum += before[at(b)];
    for (std::int64_t b = 0; b < c; ++b) along += d[at(b)] * before[at(b)] / sum;
    for (std::int64_t b = 0; b < c; ++b) d[at(b)] = (d[at(b)] - along) / sum;
  }
}

/// dcomb back to the logits of the softmax. `logits` [c, c].
std::vector<double> stochastic_backward(const std::vector<double>& logits, std::vector<double> d, std::int64_t c,
                                        std::int64_t iterations, double eps) {
  std::vector<std::vector<double>> before;  // each division's input: columns, rows, columns, rows, columns, …
  std::vector<double> matrix = softmax_rows(logits, c, eps);
  for (std::int64_t i = 0; i < 2 * std::max<std::int64_t>(iterations, 1) - 1; ++i) {
    before.push_back(matrix);
    i % 2 == 0 ? divide_columns(matrix, c, eps) : divide_rows(matrix, c, eps);
  }
  for (std::size_t i = before.size(); i > 0; --i) divide_backward(before[i - 1], d, c, eps, (i - 1) % 2 == 1);
  const std::vector<double> p = softmax_rows(logits, c, 0.0);
  for (std::int64_t j = 0; j < c; ++j) {
    const double along = dot(p.data() + j * c, d.data() + j * c, c);
    for (std::int64_t k = 0; k < c; ++k)
      d[static_cast<std::size_t>(j * c + k)] =
          p[static_cast<std::size_t>(j * c + k)] * (d[static_cast<std::size_t>(j * c + k)] - along);
  }
  return d;
}

/// A gradient that nobody sent is zero.
Array load_or_zero(const Tensor& x, Shape shape) { return x.defined() ? load(x) : Array(shape); }

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

void ReferenceGradOps::hyper_mix_backward(const HyperMixGrad& args) {
  const HyperMixArgs& f = args.f;
  const std::int64_t tokens = f.streams.dim(0), c = f.streams.dim(1), h = f.streams.dim(2), logits = (2 + c) * c;
  const Array streams = load(f.streams), base = load(f.base), scale = load(f.scale),
              z = mix_logits(streams, f.fn, f.norm_eps);
  const Array dcollapsed = load_or_zero(args.dcollapsed, {tokens, h}), dpost = load_or_zero(args.dpost, {tokens, c}),
              dcomb = load_or_zero(args.dcomb, {tokens, c, c});
  Array dstreams(f.streams.shape), dz(z.shape), dbase(Shape{logits}), dscale(Shape{3});
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < c; ++j) {
      const double pre = sigmoid(z.at(t)[j] * *scale.at(0) + *base.at(j)) + f.eps;
      add_scaled(pre, dcollapsed.at(t), dstreams.at(t, j), h);
      gate_backward(z.at(t)[j], *scale.at(0), *base.at(j), dot(dcollapsed.at(t), streams.at(t, j), h), dz.at(t)[j],
                    *dscale.at(0), *dbase.at(j));
      gate_backward(z.at(t)[c + j], *scale.at(1), *base.at(c + j), 2.0 * dpost.at(t)[j], dz.at(t)[c + j], *dscale.at(1),
                    *dbase.at(c + j));
    }
    std::vector<double> matrix;
    for (std::int64_t i = 2 * c; i < logits; ++i) matrix.push_back(z.at(t)[i] * *scale.at(2) + *base.at(i));
    const auto du = stochastic_backward(matrix, {dcomb.at(t), dcomb.at(t) + c * c}, c, f.iterations, f.eps);
    for (std::int64_t i = 0; i < c * c; ++i) {
      const double change = du[static_cast<std::size_t>(i)];
      dz.at(t)[2 * c + i] += change * *scale.at(2);
      *dscale.at(2) += change * z.at(t)[2 * c + i];
      *dbase.at(2 * c + i) += change;
    }
  }
  mix_logits_backward(streams, f.fn, f.norm_eps, dz, dstreams, args.dfn);
  add_to(args.dstreams, dstreams);
  add_to(args.dbase, dbase);
  add_to(args.dscale, dscale);
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

void ReferenceGradOps::hyper_merge_backward(const HyperMergeGrad& args) {
  const std::int64_t tokens = args.f.streams.dim(0), c = args.f.streams.dim(1), h = args.f.streams.dim(2);
  const Array x = load(args.f.x), streams = load(args.f.streams), post = load(args.f.post), comb = load(args.f.comb),
              dout = load(args.dout);
  Array dx(x.shape), dstreams(streams.shape), dpost(post.shape), dcomb(comb.shape);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t k = 0; k < c; ++k) {
      add_scaled(post.at(t)[k], dout.at(t, k), dx.at(t), h);
      dpost.at(t)[k] = dot(x.at(t), dout.at(t, k), h);
      for (std::int64_t j = 0; j < c; ++j) {
        add_scaled(comb.at(t, j)[k], dout.at(t, k), dstreams.at(t, j), h);
        dcomb.at(t, j)[k] = dot(streams.at(t, j), dout.at(t, k), h);
      }
    }
  add_to(args.dx, dx);
  add_to(args.dstreams, dstreams);
  add_to(args.dpost, dpost);
  add_to(args.dcomb, dcomb);
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

void ReferenceGradOps::hyper_head_backward(const HyperHeadGrad& args) {
  const HyperHeadArgs& f = args.f;
  const std::int64_t tokens = f.streams.dim(0), c = f.streams.dim(1), h = f.streams.dim(2);
  const Array streams = load(f.streams), base = load(f.base), scale = load(f.scale),
              z = mix_logits(streams, f.fn, f.norm_eps), dout = load(args.dout);
  Array dstreams(f.streams.shape), dz(z.shape), dbase(Shape{c}), dscale(Shape{1});
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < c; ++j) {
      add_scaled(sigmoid(z.at(t)[j] * *scale.at(0) + *base.at(j)) + f.eps, dout.at(t), dstreams.at(t, j), h);
      gate_backward(z.at(t)[j], *scale.at(0), *base.at(j), dot(dout.at(t), streams.at(t, j), h), dz.at(t)[j],
                    *dscale.at(0), *dbase.at(j));
    }
  mix_logits_backward(streams, f.fn, f.norm_eps, dz, dstreams, args.dfn);
  add_to(args.dstreams, dstreams);
  add_to(args.dbase, dbase);
  add_to(args.dscale, dscale);
}

}  // namespace fathom::reference
