#include "backends/reference/visible.h"

#include <algorithm>

#include "backends/reference/elements.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary
using Kind = KvSegment::Kind;

std::int64_t first_entry_row(const Batch& batch, std::size_t index, std::int64_t ratio) {
  std::int64_t row = 0;
  for (std::size_t s = 0; s < index; ++s) row += max_entries(batch.sequences[s].tokens, ratio);
  return row;
}

std::vector<VisibleRow> visible_rows(const KvSegment& segment, const Batch& batch, std::size_t index,
                                     std::int64_t token) {
  const Sequence& sequence = batch.sequences[index];
  const std::int64_t past = sequence.past, position = past + token - sequence.first_token;
  const std::int64_t slot_row = sequence.slot * segment.rows_per_slot;
  const std::int64_t window_start = segment.window > 0 ? std::max<std::int64_t>(0, position - segment.window + 1) : 0;
  const std::int64_t closed = (position + 1) / segment.ratio;

  std::int64_t first = 0, end = 0;  // names [first, end) are visible
  switch (segment.kind) {
    case Kind::kCache:
      first = 0, end = position + 1;
      break;
    case Kind::kFresh:
      first = std::max(window_start, past), end = position + 1;
      break;
    case Kind::kRingPast:
      first = std::max(window_start, past - segment.rows_per_slot), end = past;
      break;
    case Kind::kEntries:
      first = 0, end = closed;
      break;
    case Kind::kFreshEntries:
      FATHOM_CHECK(past == 0, "fresh entries know no past");
      first = 0, end = closed;
      break;
  }
  first = std::max<std::int64_t>(first, 0);
  const auto row_of = [&](std::int64_t name) -> std::int64_t {
    switch (segment.kind) {
      case Kind::kCache:
      case Kind::kEntries:
        FATHOM_CHECK(name < segment.rows_per_slot, "a cache is too small");
        return slot_row + name;
      case Kind::kFresh:
        return sequence.first_token + name - past;
      case Kind::kRingPast:
        return slot_row + name % segment.rows_per_slot;
      case Kind::kFreshEntries:
        return first_entry_row(batch, index, segment.ratio) + name;
    }
    FATHOM_CHECK(false);
  };

  std::vector<VisibleRow> rows;
  if (!segment.selected.defined()) {
    for (std::int64_t name = first; name < end; ++name) rows.push_back({name, row_of(name)});
    return rows;
  }
  for (const std::int64_t name : load_ints(segment.selected.rows(token, 1)))
    if (name >= first && name < end) rows.push_back({name, row_of(name)});
  return rows;
}

}  // namespace fathom::reference
