#include <algorithm>
#include <memory>

#include "weights/generate.h"
#include "weights/stager.h"
#include "weights/synth.h"

namespace fathom::weights {
using model::WeightEntry;

namespace {

constexpr std::int64_t kPieceElements = std::int64_t{1} << 20;

// Rows [first, first + count) of this rank's share of one tensor.
struct FillPiece {
  std::uint32_t entry = 0;
  std::int64_t expert = 0, first = 0, count = 0;
};

std::vector<FillPiece> cut(const model::WeightTable& table, const StoragePolicy& policy) {
  std::vector<FillPiece> pieces;
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const WeightEntry& entry = table.entries()[i];
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    const std::int64_t step = std::max<std::int64_t>(1, kPieceElements / entry.cols);
    for (std::int64_t e = 0; e < entry.experts; ++e)
      for (std::int64_t r = 0; r < entry.rows; r += step)
        pieces.push_back({static_cast<std::uint32_t>(i), e, r, std::min(step, entry.rows - r)});
  }
  return pieces;
}

void fill_rows(const WeightGenerator& generator, const WeightEntry& entry, Bytes row, std::int64_t first,
               std::int64_t count, std::byte* out) {
  if (entry.cols == entry.full_cols) {
    generator.data(static_cast<std::uint64_t>((entry.first_row + first) * entry.full_cols),
                   {out + static_cast<Bytes>(first) * row, static_cast<Bytes>(count) * row});
    return;
  }
  for (std::int64_t r = first; r < first + count; ++r)
    generator.data(static_cast<std::uint64_t>((entry.first_row + r) * entry.full_cols + entry.first_col),
                   {out + static_cast<Bytes>(r) * row, row});
}

// All scales and zero points of a weight at once: they are few.
void fill_scales(const WeightGenerator& generator, const WeightEntry& entry, tensor::WeightFormat format,
                 std::byte* out) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  const auto up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t cols = up(entry.cols, layout.cols), first_col = entry.first_col / layout.cols;
  const Bytes row = static_cast<Bytes>(cols) * static_cast<Bytes>(dtype_bytes(layout.scale));
  for (std::int64_t r = 0; r < up(entry.rows, layout.rows); ++r)
    generator.scales(
        static_cast<std::uint64_t>((entry.first_row / layout.rows + r) * generator.scale_cols() + first_col),
        {out + static_cast<Bytes>(r) * row, row});
  if (!layout.zeros) return;
  std::byte* zeros = out + tensor::zeros_offset(format, entry.rows, entry.cols);
  for (std::int64_t r = 0; r < up(entry.rows, 8); ++r)
    generator.zeros(static_cast<std::uint64_t>((entry.first_row / 8 + r) * generator.scale_cols() + first_col),
                    {zeros + static_cast<Bytes>(r * cols) * 4, static_cast<Bytes>(cols) * 4});
}

}  // namespace

namespace {

/// Fills one rank's weights where they lie: on the device where that can draw them, else on the host, straight or
/// through a stager.
class Filler {
 public:
  Filler(const model::WeightTable& table, tensor::Backend& backend, const MemorySynthOptions& options,
         const WeightPlan& plan, const WeightBlocks& blocks)
      : table_(table), backend_(backend), options_(options), plan_(plan), blocks_(blocks) {}

  Result<int> run() {
    if (!backend_.host_addressable()) FATHOM_TRY_VOID(launch());
    std::vector<FillPiece> pieces = cut(table_, options_.storage);
    std::erase_if(pieces, [&](const FillPiece& piece) {
      return piece.entry < launched_.size() && launched_[piece.entry] && !(has_scales(piece) && piece.first == 0);
    });
    const int threads = usable_threads(options_.threads, pieces.size());
    if (!backend_.host_addressable()) {
      FATHOM_TRY(stager_, Stager::make(backend_, std::min(threads, kMostStaged), std::max<Bytes>(most(pieces), 1)));
    }
    const auto work = [&](WorkQueue& queue) -> Status {
      while (const auto number = queue.next()) {
        FATHOM_TRY_VOID(finish(pieces[*number]));
        queue.add_done(bytes_of(pieces[*number]));
      }
      return {};
    };
    Bytes total = 0;
    for (const FillPiece& piece : pieces) total += bytes_of(piece);
    FATHOM_TRY_VOID(run_workers(pieces.size(), total, threads, options_.progress, work));
    FATHOM_TRY_VOID(backend_.synchronize());
    return threads;
  }

 private:
  const WeightEntry& entry_of(const FillPiece& piece) const { return table_.entries()[piece.entry]; }
  const TensorOffsets& offsets_of(const FillPiece& piece) const { return plan_.tensors[parameter_of(piece)]; }
  std::size_t parameter_of(const FillPiece& piece) const {
    return static_cast<std::size_t>(entry_of(piece).first_parameter + piece.expert);
  }
  std::byte* home_of(const FillPiece& piece) const { return plan_.home(blocks_, parameter_of(piece)); }
  bool has_scales(const FillPiece& piece) const { return offsets_of(piece).scales != kNotInArena; }
  bool on_device(const FillPiece& piece) const { return piece.entry < launched_.size() && launched_[piece.entry]; }
  Bytes row_bytes(const FillPiece& piece) const {
    return tensor::weight_row_bytes(plan_.formats[piece.entry], entry_of(piece).cols);
  }
  Bytes scales_of(const FillPiece& piece) const {
    return scale_bytes(plan_.formats[piece.entry], entry_of(piece).rows, entry_of(piece).cols);
  }
  Bytes bytes_of(const FillPiece& piece) const {
    return on_device(piece) ? scales_of(piece) : static_cast<Bytes>(piece.count) * row_bytes(piece);
  }
  Bytes most(const std::vector<FillPiece>& pieces) const {
    Bytes bytes = 0;
    for (const FillPiece& piece : pieces)
      bytes = std::max({bytes, bytes_of(piece), has_scales(piece) ? scales_of(piece) : 0});
    return bytes;
  }
  WeightGenerator generator(const FillPiece& piece) const {
    return WeightGenerator(entry_of(piece), piece.expert, plan_.formats[piece.entry], options_.seed,
                           experts_beside(table_, entry_of(piece)));
  }

  // What the device can draw by itself, entry after entry.
  Status launch() {
    launched_.assign(table_.entries().size(), false);
    for (std::size_t i = 0; i < table_.entries().size(); ++i) {
      const WeightEntry& entry = table_.entries()[i];
      if (entry.tied_to >= 0 || !options_.storage.wants(entry)) continue;
      bool all = true;
      for (std::int64_t e = 0; e < entry.experts && all; ++e) {
        const FillPiece whole{static_cast<std::uint32_t>(i), e, 0, entry.rows};
        auto fill = generator(whole).fill(entry.first_row, entry.first_col, entry.rows, entry.cols);
        if (!fill) {
          all = false;
          break;
        }
        fill->out = home_of(whole) + offsets_of(whole).data;  // a device that draws can also write to the host's memory
        all = backend_.fill_random(*fill);
      }
      launched_[i] = all;
    }
    return backend_.synchronize();
  }

  Status finish(const FillPiece& piece) {
    const WeightGenerator made = generator(piece);
    const WeightEntry& entry = entry_of(piece);
    const Bytes row = row_bytes(piece);
    if (!on_device(piece)) {
      const Bytes first = static_cast<Bytes>(piece.first) * row;
      FATHOM_TRY_VOID(
          put(piece, offsets_of(piece).data + first, static_cast<Bytes>(piece.count) * row, [&](std::byte* out) {
            WeightEntry rows = entry;  // that begin where the piece does
            rows.first_row += piece.first;
            fill_rows(made, rows, row, 0, piece.count, out);
          }));
    }
    if (!has_scales(piece) || piece.first != 0) return {};
    return put(piece, offsets_of(piece).scales, scales_of(piece),
               [&](std::byte* out) { fill_scales(made, entry, plan_.formats[piece.entry], out); });
  }

  template <class Fill>
  Status put(const FillPiece& of, Bytes offset, Bytes bytes, const Fill& fill) {
    std::byte* const to = home_of(of) + offset;
    if (stager_ != nullptr && plan_.residence.unit(parameter_of(of)) < 0)
      return stager_->put(to, bytes, [&](std::span<std::byte> piece) -> Status {
        fill(piece.data());
        return {};
      });
    fill(to);
    return {};
  }

  const model::WeightTable& table_;
  tensor::Backend& backend_;
  const MemorySynthOptions& options_;
  const WeightPlan& plan_;
  WeightBlocks blocks_;
  std::unique_ptr<Stager> stager_;
  std::vector<bool> launched_;  // by entry
};

}  // namespace

Result<LoadedWeights> synthesize_in_memory(const model::WeightTable& table, tensor::Backend& backend,
                                           const MemorySynthOptions& options) {
  LoadedWeights made;
  FATHOM_TRY(WeightPlan plan, plan_weights(table, options.storage, options.host));
  FATHOM_TRY_VOID(allocate_blocks(backend, std::move(plan), made));
  FATHOM_TRY(const int threads, Filler(table, backend, options, made.plan, made.blocks()).run());
  bind_weights(table, options.storage, made);
  made.stats = {.threads = threads};
  return made;
}

}  // namespace fathom::weights
