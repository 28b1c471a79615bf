// How wide a figure's range is: by what it is and by how well its hardware and engine are known.
#pragma once
#include "plan/answer.h"

namespace fathom::plan {

enum class Metric : std::uint8_t { kTtft, kTpot, kPrefill, kDecode, kTrain };

/// value with the range that 90 % of measurements of that metric fell into when they were predicted without having been
/// seen (docs/cost-model.md has the figures).
Range with_range(double value, Metric metric, ProvenanceTier tier, bool engine_known);

}  // namespace fathom::plan
