#include "plan/cost_ranges.h"

#include <array>

namespace fathom::plan {
namespace {

struct Width {
  double below, above;
};  // measured / predicted time, 5th and 95th percentile of rows held out

/// By metric, for hardware with curves of its own.
constexpr std::array<Width, 5> kWidths{{{0.65, 2.5}, {0.68, 1.38}, {0.78, 1.3}, {0.7, 1.22}, {0.76, 1.32}}};

}  // namespace

Range with_range(double value, Metric metric, ProvenanceTier tier, bool engine_known) {
  Width width = kWidths[static_cast<std::size_t>(metric)];
  double more = tier == ProvenanceTier::kDefault ? 1.6 : tier == ProvenanceTier::kMeasuredSibling ? 1.15 : 1;
  if (!engine_known) more *= 1.35;
  return {value, value * width.below / more, value * width.above * more};
}

}  // namespace fathom::plan
