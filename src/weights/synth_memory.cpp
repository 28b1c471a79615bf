#include <memory>
#include <new>

#include "weights/generate.h"
#include "weights/synth.h"

namespace fathom::weights {
using model::WeightEntry;

namespace {

constexpr std::int64_t kPieceElements = std::int64_t{1} << 20;

// Rows [first, first + count) of this rank's share of one tensor.
struct Piece {
  std::uint32_t entry = 0;
  std::int64_t expert = 0, first = 0, count = 0;
};

std::vector<Piece> cut(const model::WeightTable& table, const StoragePolicy& policy) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const WeightEntry& entry = table.entries()[i];
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    const std::int64_t step = std::max<std::int64_t>(1, kPieceElements / entry.cols);
    for (std::int64_t e = 0; e < entry.experts; ++e)
      for (std::int64_t r = 0; r < entry.rows; r += step) pieces.push_back({static_cast<std::uint32_t>(i), e, r, std::min(step, entry.rows - r)});
  }
  return pieces;
}

void fill_rows(const WeightGenerator& generator, const WeightEntry& entry, Bytes row, std::int64_t first, std::int64_t count, std::byte* out) {
  if (entry.cols == entry.full_cols) {
    generator.data(static_cast<std::uint64_t>((entry.first_row + first) * entry.full_cols), {out + static_cast<Bytes>(first) * row, static_cast<Bytes>(count) * row});
    return;
  }
  for (std::int64_t r = first; r < first + count; ++r)
    generator.data(static_cast<std::uint64_t>((entry.first_row + r) * entry.full_cols + entry.first_col), {out + static_cast<Bytes>(r) * row, row});
}

// All scales and zero points of a weight at once: they are few.
void fill_scales(const WeightGenerator& generator, const WeightEntry& entry, tensor::WeightFormat format, std::byte* out) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  const auto up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t cols = up(entry.cols, layout.cols), first_col = entry.first_col / layout.cols;
  const Bytes row = static_cast<Bytes>(cols) * static_cast<Bytes>(dtype_bytes(layout.scale));
  for (std::int64_t r = 0; r < up(entry.rows, layout.rows); ++r)
    generator.scales(static_cast<std::uint64_t>((entry.first_row / layout.rows + r) * generator.scale_cols() + first_col), {out + static_cast<Bytes>(r) * row, row});
  if (!layout.zeros) return;
  std::byte* zeros = out + tensor::zeros_offset(format, entry.rows, entry.cols);
  for (std::int64_t r = 0; r < up(entry.rows, 8); ++r)
    generator.zeros(static_cast<std::uint64_t>((entry.first_row / 8 + r) * generator.scale_cols() + first_col), {zeros + static_cast<Bytes>(r * cols) * 4, static_cast<Bytes>(cols) * 4});
}

}  // namespace

Result<LoadedWeights> synthesize_in_memory(const model::WeightTable& table, tensor::Backend& backend, const MemorySynthOptions& options) {
  LoadedWeights made;
  FATHOM_TRY(made.plan, plan_weights(table, options.storage));
  FATHOM_TRY(made.arena, backend.allocate_buffer(made.plan.arena_bytes));
  const std::unique_ptr<std::byte[]> staging(backend.host_addressable() ? nullptr : new (std::nothrow) std::byte[made.plan.arena_bytes]);
  if (!backend.host_addressable() && staging == nullptr) return fail_environment("weights.no_staging", {{"bytes", format_bytes(made.plan.arena_bytes)}});
  std::byte* arena = staging ? staging.get() : made.arena->data();
  const std::vector<Piece> pieces = cut(table, options.storage);
  const int threads = usable_threads(options.threads, pieces.size());
  const auto work = [&](WorkQueue& queue) -> Status {
    while (const auto number = queue.next()) {
      const Piece& piece = pieces[*number];
      const WeightEntry& entry = table.entries()[piece.entry];
      const tensor::WeightFormat format = made.plan.formats[piece.entry];
      const TensorOffsets& offsets = made.plan.tensors[static_cast<std::size_t>(entry.first_parameter + piece.expert)];
      const WeightGenerator generator(entry, piece.expert, format, options.seed, experts_beside(table, entry));
      const Bytes row = tensor::weight_row_bytes(format, entry.cols);
      fill_rows(generator, entry, row, piece.first, piece.count, arena + offsets.data);
      if (offsets.scales != kNotInArena && piece.first == 0) fill_scales(generator, entry, format, arena + offsets.scales);
      queue.add_done(static_cast<Bytes>(piece.count) * row);
    }
    return {};
  };
  FATHOM_TRY_VOID(run_workers(pieces.size(), made.plan.tensor_bytes, threads, options.progress, work));
  if (staging) FATHOM_TRY_VOID(backend.upload(made.arena->data(), {staging.get(), made.plan.arena_bytes}));
  made.set = bind_weights(table, options.storage, made.plan, made.arena->data());
  made.stats = {.threads = threads};
  return made;
}

}  // namespace fathom::weights
