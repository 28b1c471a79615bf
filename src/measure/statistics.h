// What is made of repeated timings.
#pragma once
#include <algorithm>
#include <vector>

#include "base/result.h"

namespace fathom::measure {

/// The middle one, of an even number the upper; there is at least one.
inline double median(std::vector<double> values) {
  FATHOM_CHECK(!values.empty());
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace fathom::measure
