// Family loss: softmax cross entropy.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
constexpr std::int64_t kNotCounted = -100;

double log_sum_exp(const double* values, std::int64_t count) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, values[i]);
  for (std::int64_t i = 0; i < count; ++i) sum += std::exp(values[i] - largest);
  return largest + std::log(sum);
}
}  // namespace

void ReferenceOps::cross_entropy(const CrossEntropyArgs& args) {
  const std::int64_t tokens = args.logits.dim(0), vocabulary = args.logits.dim(1);
  FATHOM_CHECK(args.targets.elements() == tokens && args.losses.elements() == tokens);
  const auto targets = load_ints(args.targets);
  Array losses(Shape{tokens});
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t target = targets[static_cast<std::size_t>(t)];
    if (target == kNotCounted) continue;
    FATHOM_CHECK(target >= 0 && target < vocabulary, "a target outside the vocabulary");
    const Array logits = load_row(args.logits, t);
    *losses.at(t) = log_sum_exp(logits.at(0), vocabulary) - logits.at(0)[target];
  }
  store(args.losses, losses);
}

void ReferenceGradOps::cross_entropy_backward(const CrossEntropyGrad& args) {
  const std::int64_t tokens = args.f.logits.dim(0), vocabulary = args.f.logits.dim(1);
  const auto targets = load_ints(args.f.targets);
  const Array dlosses = load(args.dlosses);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t target = targets[static_cast<std::size_t>(t)];
    if (target == kNotCounted) continue;
    Array row = load_row(args.f.logits, t);
    const double total = log_sum_exp(row.at(0), vocabulary);
    for (std::int64_t v = 0; v < vocabulary; ++v)
      row.at(0)[v] = *dlosses.at(t) * (std::exp(row.at(0)[v] - total) - (v == target ? 1.0 : 0.0));
    add_to_row(args.dlogits, t, row.at(0));
  }
}

}  // namespace fathom::reference
