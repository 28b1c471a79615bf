#include "weights/loader.h"

#include <algorithm>

#include "weights/mapped.h"
#include "weights/resolve.h"
#include "weights/stager.h"
#include "weights/transfer.h"
#include "weights/workers.h"

namespace fathom::weights {
namespace {

/// Where a finished piece lies among its job's bytes: dense, since pieces are rows or stretches of elements.
struct PlaceOfPiece { Bytes offset = 0, bytes = 0; };
PlaceOfPiece place_of(const TransferJob& job, const TransferPiece& piece) {
  const bool flat = job.contiguous() && !job.dequantizes();
  const Bytes unit = static_cast<Bytes>(flat ? 1 : job.cols) * static_cast<Bytes>(dtype_bytes(job.to));
  return {static_cast<Bytes>(piece.first) * unit, static_cast<Bytes>(piece.count) * unit};
}

Result<LoadedWeights> load_copied(const model::WeightTable& table, WeightPlan plan, std::span<const TensorSource> sources, tensor::Backend& backend, const LoadOptions& options) {
  LoadedWeights loaded;
  FATHOM_TRY(loaded.arena, backend.allocate_buffer(plan.arena_bytes));
  TransferPlan transfer = plan_transfer(make_jobs(table, options.storage, plan, sources, loaded.arena->data()));
  std::unique_ptr<Stager> stager;
  if (!backend.host_addressable()) {
    Bytes most = 1;
    for (const TransferPiece& piece : transfer.pieces) most = std::max(most, place_of(transfer.jobs[piece.job], piece).bytes);
    for (ReadTask& task : transfer.tasks) task.into = nullptr;  // nothing is read straight to its place
    FATHOM_TRY(stager, Stager::make(backend, std::min(kMostStaged, usable_threads(options.read.threads, transfer.tasks.size())), most));
  }
  const auto consume = [&](std::size_t task, std::span<const std::byte> data, std::span<const std::byte> scales) -> Status {
    const TransferPiece& piece = transfer.pieces[task];
    const TransferJob& job = transfer.jobs[piece.job];
    if (stager == nullptr) return finish_piece(job, piece, data, scales, options.check_finite);
    const PlaceOfPiece place = place_of(job, piece);
    return stager->put(job.out + place.offset, place.bytes, [&](std::span<std::byte> out) {
      TransferJob staged = job;
      staged.out = reinterpret_cast<std::byte*>(reinterpret_cast<std::uintptr_t>(out.data()) - place.offset);  // so that the piece begins where `out` does
      return finish_piece(staged, piece, data, scales, options.check_finite);
    });
  };
  FATHOM_TRY(loaded.stats, read_all(transfer.files, transfer.tasks, options.read, consume));
  loaded.set = bind_weights(table, options.storage, plan, loaded.arena->data());
  loaded.plan = std::move(plan);
  return loaded;
}

bool is_whole(const model::Sharding& s) { return s.tp == 1 && s.ep == 1 && s.expert_tp == 1 && s.first_layer == 0 && s.last_layer < 0; }

}  // namespace

model::WeightSet bind_weights(const model::WeightTable& table, const StoragePolicy& policy, const WeightPlan& plan, const std::byte* arena) {
  model::WeightSet set(table);
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const model::WeightEntry& entry = table.entries()[i];
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    for (tensor::Weight& weight : set.experts(static_cast<model::WeightId>(i))) {
      const TensorOffsets& offsets = plan.tensors[static_cast<std::size_t>(weight.parameter)];
      weight.format = plan.formats[i];
      weight.data = arena + offsets.data;
      if (offsets.scales != kNotInArena) weight.scales = arena + offsets.scales;
    }
  }
  return set;
}

Result<LoadedWeights> load_weights(const model::WeightTable& table, const model::WeightTable& whole, const Checkpoint& checkpoint, tensor::Backend& backend, const LoadOptions& options) {
  FATHOM_TRY(WeightPlan plan, plan_weights(table, options.storage));
  FATHOM_TRY(const std::vector<TensorSource> sources, resolve_tensors(table, options.storage, plan, checkpoint));
  if (!options.allow_extra) FATHOM_TRY_VOID(check_extra_tensors(whole, checkpoint));
  if (options.mmap) return load_mapped(table, std::move(plan), sources, options);
  return load_copied(table, std::move(plan), sources, backend, options);
}

Result<LoadedWeights> load_weights(const model::Architecture& architecture, const Path& path, tensor::Backend& backend, const LoadOptions& options) {
  FATHOM_TRY(const Checkpoint checkpoint, Checkpoint::open(path));
  if (is_whole(architecture.sharding())) return load_weights(architecture.weights(), architecture.weights(), checkpoint, backend, options);
  FATHOM_TRY(const std::unique_ptr<model::Architecture> whole, model::make_architecture(architecture.spec()));
  return load_weights(architecture.weights(), whole->weights(), checkpoint, backend, options);
}

}  // namespace fathom::weights
