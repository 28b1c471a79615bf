// Family experts: gated feed-forward and mixtures of experts. Routing is in route.cpp.
#include <algorithm>
#include <cmath>

#include "backends/reference/dequantize.h"
#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

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
}  // namespace

void ReferenceOps::swiglu(const SwigluArgs& args) {
  FATHOM_CHECK(args.gate.shape == args.up.shape && args.gate.shape == args.out.shape);
  Array gate = load(args.gate);
  const Array up = load(args.up);
  for (std::size_t i = 0; i < gate.values.size(); ++i) gate.values[i] = gated(gate.values[i], up.values[i], args.limit);
  store(args.out, gate);
}

void ReferenceOps::gelu(const GeluArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  Array x = load(args.x);
  const double root = std::sqrt(2.0 / M_PI);
  for (double& v : x.values) v = 0.5 * v * (1.0 + std::tanh(root * (v + 0.044715 * v * v * v)));
  store(args.out, x);
}

void ReferenceOps::experts(const ExpertsArgs& args) {
  const std::int64_t tokens = args.x.dim(0), h = args.x.dim(1), top_k = args.indices.dim(1);
  FATHOM_CHECK(args.out.shape == args.x.shape && args.weights.shape == args.indices.shape && args.indices.dim(0) == tokens);
  FATHOM_CHECK(args.gate.size() == args.up.size() && args.gate.size() == args.down.size());
  const Array x = load(args.x), weights = load(args.weights);
  const auto indices = load_ints(args.indices);
  Array out = args.accumulate ? load(args.out) : Array(args.out.shape);
  for (std::size_t e = 0; e < args.gate.size(); ++e) {
    struct Hit { std::int64_t token; double weight; };
    std::vector<Hit> hits;
    for (std::int64_t i = 0; i < tokens * top_k; ++i)
      if (indices[static_cast<std::size_t>(i)] == args.first_expert + static_cast<std::int64_t>(e)) hits.push_back({i / top_k, weights.values[static_cast<std::size_t>(i)]});
    if (hits.empty()) continue;
    const std::int64_t inner = args.gate[e].rows;
    FATHOM_CHECK(args.gate[e].cols == h && args.up[e].rows == inner && args.up[e].cols == h && args.down[e].rows == h && args.down[e].cols == inner);
    Array hidden(Shape{static_cast<std::int64_t>(hits.size()), inner});
    std::vector<double> gate_row(static_cast<std::size_t>(h)), up_row(static_cast<std::size_t>(h)), down_row(static_cast<std::size_t>(inner));
    for (std::int64_t i = 0; i < inner; ++i) {
      dequantize_row(args.gate[e], i, gate_row.data());
      dequantize_row(args.up[e], i, up_row.data());
      for (std::size_t n = 0; n < hits.size(); ++n) {
        const double* token = x.at(hits[n].token);
        hidden.at(static_cast<std::int64_t>(n))[i] = gated(dot(token, gate_row.data(), h), dot(token, up_row.data(), h), args.limit);
      }
    }
    for (std::int64_t i = 0; i < h; ++i) {
      dequantize_row(args.down[e], i, down_row.data());
      for (std::size_t n = 0; n < hits.size(); ++n)
        out.at(hits[n].token)[i] += hits[n].weight * dot(hidden.at(static_cast<std::int64_t>(n)), down_row.data(), inner);
    }
  }
  store(args.out, out);
}

}  // namespace fathom::reference
