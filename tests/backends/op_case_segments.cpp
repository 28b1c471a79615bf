#include "backends/op_case_segments.h"

#include <algorithm>
#include <limits>

namespace fathom::test {
using namespace tensor;  // NOLINT: the vocabulary
using Kind = KvSegment::Kind;

Chunks chunks(std::initializer_list<std::array<std::int32_t, 3>> list) {
  Chunks out;
  for (const auto& [slot, tokens, past] : list)
    out.push_back({.slot = slot, .first_token = 0, .tokens = tokens, .past = past});
  return out;
}
std::int64_t slots_of(const Chunks& sequences) {
  std::int64_t slots = 1;
  for (const Sequence& sequence : sequences) slots = std::max<std::int64_t>(slots, sequence.slot + 1);
  return slots + 1;  // one more than is used
}

std::pair<std::int64_t, std::int64_t> names_seen(const SegmentSpec& spec, std::int64_t past, std::int64_t position) {
  const std::int64_t window_start = spec.window > 0 ? std::max<std::int64_t>(0, position + 1 - spec.window) : 0;
  if (spec.kind == Kind::kCache) return {0, position + 1};
  if (spec.kind == Kind::kFresh) return {std::max(past, window_start), position + 1};
  if (spec.kind == Kind::kRingPast) return {std::max({std::int64_t{0}, window_start, past - spec.rows_per_slot}), past};
  return {0, (position + 1) / spec.ratio};
}

RowUse rows_used(const SegmentSpec& spec, const Batch& batch, std::int64_t slots) {
  RowUse use;
  std::int64_t first_entry = 0;
  for (const Sequence& sequence : batch.sequences) {
    for (std::int64_t i = 0; i < sequence.tokens; ++i) {
      const auto [first, end] = names_seen(spec, sequence.past, sequence.past + i);
      for (std::int64_t name = first; name < end; ++name) {
        const std::int64_t slot_row = sequence.slot * spec.rows_per_slot;
        if (spec.kind == Kind::kFresh)
          use.seen.insert(sequence.first_token + name - sequence.past);
        else if (spec.kind == Kind::kFreshEntries)
          use.seen.insert(first_entry + name);
        else
          use.seen.insert(slot_row + (spec.kind == Kind::kRingPast ? name % spec.rows_per_slot : name));
      }
    }
    first_entry += max_entries(sequence.tokens, spec.ratio);
  }
  use.rows = spec.kind == Kind::kFresh          ? batch.tokens
             : spec.kind == Kind::kFreshEntries ? first_entry
                                                : slots * spec.rows_per_slot;
  return use;
}

Fill only_rows(const RowUse& use, std::int64_t row_elements, Fill fill) {
  std::vector<bool> seen(static_cast<std::size_t>(use.rows), false);
  for (const std::int64_t row : use.seen) seen[static_cast<std::size_t>(row)] = true;
  return [=](Random& random, std::int64_t i) {
    const double value = fill(random, i);
    return seen[static_cast<std::size_t>(i / row_elements)] ? value : std::numeric_limits<double>::quiet_NaN();
  };
}

Tensor make_selected(CaseRun& run, const SegmentSpec& spec, const Batch& batch) {
  std::vector<std::int64_t> all;
  for (const Sequence& sequence : batch.sequences)
    for (std::int64_t i = 0; i < sequence.tokens; ++i) {
      const auto [first, end] = names_seen(spec, sequence.past, sequence.past + i);
      std::vector<std::int64_t> names;
      for (std::int64_t name = first; name < end; ++name) names.push_back(name);
      for (std::size_t n = names.size(); n > 1; --n)
        std::swap(names[n - 1], names[static_cast<std::size_t>(run.random.below(static_cast<std::int64_t>(n)))]);
      names.resize(std::min(names.size(), static_cast<std::size_t>(spec.selected)));
      std::sort(names.begin(), names.end());
      names.resize(static_cast<std::size_t>(spec.selected), -1);
      all.insert(all.end(), names.begin(), names.end());
    }
  return run.ints(DType::i32, {batch.tokens, spec.selected}, all);
}

}  // namespace fathom::test
