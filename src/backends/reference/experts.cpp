// Family experts: gated feed-forward and mixtures of experts. Routing is in route.cpp.
#include <algorithm>
#include <cmath>

#include "backends/reference/dequantize.h"
#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"
#include "backends/reference/rounded.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
/// silu(gate) · up with the limits of V4; comparisons are written so that NaN stays NaN.
double gated(double gate, double up, double limit) {
  if (limit > 0) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  return silu(gate) * up;
}

/// d(gated)/d(gate) and d(gated)/d(up); what was cut has no slope.
struct GatedSlopes {
  double gate, up;
};
GatedSlopes gated_slopes(double gate, double up, double limit) {
  const bool gate_cut = limit > 0 && gate > limit, up_cut = limit > 0 && (up > limit || up < -limit);
  if (gate_cut) gate = limit;
  if (up_cut) up = up > 0 ? limit : -limit;
  const double s = sigmoid(gate);
  return {.gate = gate_cut ? 0.0 : up * s * (1.0 + gate * (1.0 - s)), .up = up_cut ? 0.0 : silu(gate)};
}
}  // namespace

void ReferenceOps::swiglu(const SwigluArgs& args) {
  FATHOM_CHECK(args.gate.shape == args.up.shape && args.gate.shape == args.out.shape);
  Array gate = load(args.gate);
  const Array up = load(args.up);
  for (std::size_t i = 0; i < gate.values.size(); ++i) gate.values[i] = gated(gate.values[i], up.values[i], args.limit);
  store(args.out, gate);
}

void ReferenceGradOps::swiglu_backward(const SwigluGrad& args) {
  const Array gate = load(args.f.gate), up = load(args.f.up), dout = load(args.dout);
  Array dgate(gate.shape), dup(up.shape);
  for (std::size_t i = 0; i < gate.values.size(); ++i) {
    const GatedSlopes slopes = gated_slopes(gate.values[i], up.values[i], args.f.limit);
    dgate.values[i] = dout.values[i] * slopes.gate;
    dup.values[i] = dout.values[i] * slopes.up;
  }
  add_to(args.dgate, dgate);
  add_to(args.dup, dup);
}

void ReferenceOps::gelu(const GeluArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  Array x = load(args.x);
  const double root = std::sqrt(2.0 / M_PI);
  for (double& v : x.values) v = 0.5 * v * (1.0 + std::tanh(root * (v + 0.044715 * v * v * v)));
  store(args.out, x);
}

void ReferenceGradOps::gelu_backward(const GeluGrad& args) {
  const Array x = load(args.f.x), dout = load(args.dout);
  Array dx(x.shape);
  const double root = std::sqrt(2.0 / M_PI);
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    const double v = x.values[i], t = std::tanh(root * (v + 0.044715 * v * v * v));
    dx.values[i] = dout.values[i] * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * v * v));
  }
  add_to(args.dx, dx);
}

void ReferenceOps::experts(const ExpertsArgs& args) {
  const std::int64_t tokens = args.x.dim(0), h = args.x.dim(1), top_k = args.indices.dim(1);
  FATHOM_CHECK(args.out.shape == args.x.shape && args.weights.shape == args.indices.shape &&
               args.indices.dim(0) == tokens);
  FATHOM_CHECK(args.gate.size() == args.up.size() && args.gate.size() == args.down.size());
  Array x = load(args.x);
  const Array weights = load(args.weights);
  if (!args.gate.empty()) round_rows(args.gate[0], x);  // gate and up of all experts are stored alike
  const auto indices = load_ints(args.indices);
  Array out = args.accumulate ? load(args.out) : Array(args.out.shape);
  for (std::size_t e = 0; e < args.gate.size(); ++e) {
    struct Hit {
      std::int64_t token;
      double weight;
    };
    std::vector<Hit> hits;
    for (std::int64_t i = 0; i < tokens * top_k; ++i)
      if (indices[static_cast<std::size_t>(i)] == args.first_expert + static_cast<std::int64_t>(e))
        hits.push_back({i / top_k, weights.values[static_cast<std::size_t>(i)]});
    if (hits.empty()) continue;
    const std::int64_t inner = args.gate[e].rows;
    FATHOM_CHECK(args.gate[e].cols == h && args.up[e].rows == inner && args.up[e].cols == h && args.down[e].rows == h &&
                 args.down[e].cols == inner);
    Array hidden(Shape{static_cast<std::int64_t>(hits.size()), inner});
    std::vector<double> gate_row(static_cast<std::size_t>(h)), up_row(static_cast<std::size_t>(h)),
        down_row(static_cast<std::size_t>(inner));
    for (std::int64_t i = 0; i < inner; ++i) {
      dequantize_row(args.gate[e], i, gate_row.data());
      dequantize_row(args.up[e], i, up_row.data());
      for (std::size_t n = 0; n < hits.size(); ++n) {
        const double* token = x.at(hits[n].token);
        hidden.at(static_cast<std::int64_t>(n))[i] =
            gated(dot(token, gate_row.data(), h), dot(token, up_row.data(), h), args.limit);
      }
    }
    if (tensor::rounds_activations(args.down[e], tokens))
      for (std::size_t n = 0; n < hits.size(); ++n)
        round_activations(args.down[e], hidden.at(static_cast<std::int64_t>(n)), inner);
    for (std::int64_t i = 0; i < h; ++i) {
      dequantize_row(args.down[e], i, down_row.data());
      for (std::size_t n = 0; n < hits.size(); ++n)
        out.at(hits[n].token)[i] +=
            hits[n].weight * dot(hidden.at(static_cast<std::int64_t>(n)), down_row.data(), inner);
    }
  }
  store(args.out, out);
}

namespace {
/// All of a weight as doubles [rows, cols].
Array dequantize(const Weight& weight) {
  Array out(Shape{weight.rows, weight.cols});
  for (std::int64_t r = 0; r < weight.rows; ++r) dequantize_row(weight, r, out.at(r));
  return out;
}
}  // namespace

// With a = gate x, b = up x, m = gated(a, b), y = down m, w the token's weight: dw = dout · y, dy = w · dout, and the
// chain back.
void ReferenceGradOps::experts_backward(const ExpertsGrad& args) {
  const ExpertsArgs& f = args.f;
  const std::int64_t h = f.x.dim(1), top_k = f.indices.dim(1);
  const Array x = load(f.x), weights = load(f.weights), dout = load(args.dout);
  const auto indices = load_ints(f.indices);
  Array dx(f.x.shape), dweights(f.weights.shape);
  for (std::size_t e = 0; e < f.gate.size(); ++e) {
    if (std::find(indices.begin(), indices.end(), f.first_expert + static_cast<std::int64_t>(e)) == indices.end())
      continue;
    const std::int64_t inner = f.gate[e].rows;
    const Array gate = dequantize(f.gate[e]), up = dequantize(f.up[e]), down = dequantize(f.down[e]);
    Array dgate(gate.shape), dup(up.shape), ddown(down.shape);
    std::vector<double> a(static_cast<std::size_t>(inner)), b(a), m(a), dm(a);
    for (std::int64_t i = 0; i < f.indices.elements(); ++i) {
      if (indices[static_cast<std::size_t>(i)] != f.first_expert + static_cast<std::int64_t>(e)) continue;
      const std::int64_t t = i / top_k;
      const double weight = weights.values[static_cast<std::size_t>(i)];
      std::fill(dm.begin(), dm.end(), 0.0);
      for (std::int64_t n = 0; n < inner; ++n) {
        const auto at = static_cast<std::size_t>(n);
        a[at] = dot(gate.at(n), x.at(t), h), b[at] = dot(up.at(n), x.at(t), h), m[at] = gated(a[at], b[at], f.limit);
      }
      for (std::int64_t o = 0; o < h; ++o) {
        const double dy = weight * dout.at(t)[o];
        dweights.values[static_cast<std::size_t>(i)] += dout.at(t)[o] * dot(down.at(o), m.data(), inner);
        add_scaled(dy, m.data(), ddown.at(o), inner);
        add_scaled(dy, down.at(o), dm.data(), inner);
      }
      for (std::int64_t n = 0; n < inner; ++n) {
        const auto at = static_cast<std::size_t>(n);
        const GatedSlopes slopes = gated_slopes(a[at], b[at], f.limit);
        add_scaled(dm[at] * slopes.gate, x.at(t), dgate.at(n), h);
        add_scaled(dm[at] * slopes.up, x.at(t), dup.at(n), h);
        add_scaled(dm[at] * slopes.gate, gate.at(n), dx.at(t), h);
        add_scaled(dm[at] * slopes.up, up.at(n), dx.at(t), h);
      }
    }
    if (!args.dgate.empty()) add_to(args.dgate[e], dgate);
    if (!args.dup.empty()) add_to(args.dup[e], dup);
    if (!args.ddown.empty()) add_to(args.ddown[e], ddown);
  }
  add_to(args.dx, dx);
  add_to(args.dweights, dweights);
}

}  // namespace fathom::reference
