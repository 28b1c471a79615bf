// Which rows of a segment a token may see, and where they lie.
#pragma once
#include <algorithm>

#include "tensor/ops.h"

namespace fathom::cpu {

/// Names (positions or entry numbers) [first, end); empty when first >= end.
struct Names {
  std::int64_t first = 0, end = 0;
};

/// One segment as one sequence of a batch sees it.
class SegmentOfSequence {
 public:
  SegmentOfSequence(const tensor::KvSegment& segment, const tensor::Batch& batch, std::size_t index)
      : segment_(segment), sequence_(batch.sequences[index]) {
    using Kind = tensor::KvSegment::Kind;
    const std::int64_t slot_row = sequence_.slot * segment.rows_per_slot;
    switch (segment.kind) {
      case Kind::kCache:
      case Kind::kEntries:
      case Kind::kRingPast:
        base_ = slot_row;
        break;
      case Kind::kFresh:
        base_ = sequence_.first_token - sequence_.past;
        break;
      case Kind::kFreshEntries:
        FATHOM_CHECK(sequence_.past == 0, "fresh entries know no past");
        for (std::size_t s = 0; s < index; ++s) base_ += tensor::max_entries(batch.sequences[s].tokens, segment.ratio);
        break;
    }
  }

  /// What the token at `position` sees.
  Names visible(std::int64_t position) const {
    using Kind = tensor::KvSegment::Kind;
    const std::int64_t past = sequence_.past,
                       window_start =
                           segment_.window > 0 ? std::max<std::int64_t>(0, position - segment_.window + 1) : 0;
    switch (segment_.kind) {
      case Kind::kCache:
        return {0, position + 1};
      case Kind::kFresh:
        return {std::max(window_start, past), position + 1};
      case Kind::kRingPast:
        return {std::max({window_start, past - segment_.rows_per_slot, std::int64_t{0}}), past};
      case Kind::kEntries:
      case Kind::kFreshEntries:
        return {0, (position + 1) / segment_.ratio};
    }
    FATHOM_CHECK(false);
  }

  /// The row of a visible name in the segment's tensors.
  std::int64_t row(std::int64_t name) const {
    if (segment_.kind == tensor::KvSegment::Kind::kRingPast) return base_ + name % segment_.rows_per_slot;
    return base_ + name;
  }

  const tensor::KvSegment& segment() const { return segment_; }
  const tensor::Sequence& sequence() const { return sequence_; }

 private:
  const tensor::KvSegment& segment_;
  const tensor::Sequence& sequence_;
  std::int64_t base_ = 0;
};

}  // namespace fathom::cpu
