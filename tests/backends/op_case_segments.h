// What cases of attention, of caches and of the indexer share: batches, which rows a token sees, and data that holds
// NaN elsewhere.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <set>
#include <utility>
#include <vector>

#include "backends/op_case_run.h"

namespace fathom::test {

using Chunks = std::vector<tensor::Sequence>;
/// Sequences by (slot, tokens, past); first_token is filled in by CaseRun::batch.
Chunks chunks(std::initializer_list<std::array<std::int32_t, 3>> list);
/// Slots that a cache for them has: one more than is used.
std::int64_t slots_of(const Chunks& sequences);

struct SegmentSpec {
  tensor::KvSegment::Kind kind = tensor::KvSegment::Kind::kFresh;
  std::int64_t rows_per_slot = 0, window = 0, ratio = 1, selected = 0;
};

/// Names (positions or entries) [first, second) that a token at `position` sees.
std::pair<std::int64_t, std::int64_t> names_seen(const SegmentSpec& spec, std::int64_t past, std::int64_t position);

/// Rows of a segment's tensors that some token sees, and how many rows there are.
struct RowUse {
  std::set<std::int64_t> seen;
  std::int64_t rows = 0;
};
RowUse rows_used(const SegmentSpec& spec, const tensor::Batch& batch, std::int64_t slots);
/// `fill` in the rows that are seen, NaN in the others.
Fill only_rows(const RowUse& use, std::int64_t row_elements, Fill fill);
/// [T, n]: for each token some of the rows it sees, ascending, then -1.
tensor::Tensor make_selected(CaseRun& run, const SegmentSpec& spec, const tensor::Batch& batch);

}  // namespace fathom::test
