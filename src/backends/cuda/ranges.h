// Ranges of memory: which of it something was written to.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fathom::cuda {

/// Floats that stages of a launch wrote without an answer, which its later stages must not read (stages.h). Memory that
/// is written over again is another's: a model's ops share an arena, so that may be a part of a range.
class FloatRanges {
 public:
  void add(const float* from, std::int64_t count) {
    remove(from, count);
    all_.emplace_back(from, from + count);
  }
  void remove(const float* from, std::int64_t count) {
    const Range gone{from, from + count};
    std::vector<Range> left;
    for (const Range& one : all_) {
      if (one.first < std::min(one.second, gone.first)) left.emplace_back(one.first, std::min(one.second, gone.first));
      if (std::max(one.first, gone.second) < one.second)
        left.emplace_back(std::max(one.first, gone.second), one.second);
    }
    all_ = std::move(left);
  }
  /// Whether any of these is in it.
  bool overlaps(const float* from, std::int64_t count) const {
    return std::ranges::any_of(all_, [&](const Range& one) { return from < one.second && one.first < from + count; });
  }

 private:
  using Range = std::pair<const float*, const float*>;
  std::vector<Range> all_;  // without overlaps
};

}  // namespace fathom::cuda
