// Which rows of a segment a token may see, written once for attention, its backward and the indexer.
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/ops.h"

namespace fathom::reference {

/// One row that a token sees: `name` is its position or entry number, `row` where it lies in the segment's tensors.
struct VisibleRow {
  std::int64_t name = 0;
  std::int64_t row = 0;
};

/// The first row of sequence `index` in a tensor of [max_entries(batch, ratio), …].
std::int64_t first_entry_row(const tensor::Batch& batch, std::size_t index, std::int64_t ratio);

/// Rows that token `token` (counted over the batch) of sequence `index` sees, in ascending order of their names, or in
/// the order of `segment.selected` when that is defined.
std::vector<VisibleRow> visible_rows(const tensor::KvSegment& segment, const tensor::Batch& batch, std::size_t index,
                                     std::int64_t token);

}  // namespace fathom::reference
