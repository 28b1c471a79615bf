// Spans of memory, and which of it was written to.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fathom::cuda {

struct Span {
  const float *begin, *end;
};
inline bool overlap(const Span& a, const Span& b) { return a.begin < b.end && b.begin < a.end; }

/// Floats that stages of a launch wrote without an answer, which its later stages must not read (stages.h). Memory that
/// is written over again is another's: a model's ops share an arena, so that may be a part of a range.
class FloatRanges {
 public:
  void add(const float* from, std::int64_t count) {
    remove(from, count);
    all_.push_back({from, from + count});
  }
  void remove(const float* from, std::int64_t count) {
    const Span gone{from, from + count};
    std::vector<Span> left;
    for (const Span& one : all_) {
      if (one.begin < std::min(one.end, gone.begin)) left.push_back({one.begin, std::min(one.end, gone.begin)});
      if (std::max(one.begin, gone.end) < one.end) left.push_back({std::max(one.begin, gone.end), one.end});
    }
    all_ = std::move(left);
  }
  /// Whether any of these is in it.
  bool overlaps(const float* from, std::int64_t count) const {
    return std::ranges::any_of(all_, [&](const Span& one) { return overlap(one, {from, from + count}); });
  }

 private:
  std::vector<Span> all_;  // without overlaps
};

}  // namespace fathom::cuda
