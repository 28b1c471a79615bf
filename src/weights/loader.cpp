#include "weights/loader.h"

#include <new>

#include "base/strings.h"
#include "weights/mapped.h"
#include "weights/resolve.h"
#include "weights/transfer.h"

namespace fathom::weights {
namespace {

Result<LoadedWeights> load_copied(const model::WeightTable& table, WeightPlan plan, std::span<const TensorSource> sources, tensor::Backend& backend, const LoadOptions& options) {
  LoadedWeights loaded;
  FATHOM_TRY(loaded.arena, backend.allocate_buffer(plan.arena_bytes));
  // Memory that the host cannot write gets everything at once from a copy in host memory.
  const std::unique_ptr<std::byte[]> staging(backend.host_addressable() ? nullptr : new (std::nothrow) std::byte[plan.arena_bytes]);
  if (!backend.host_addressable() && staging == nullptr) return fail_environment("weights.no_staging", {{"bytes", format_bytes(plan.arena_bytes)}});
  const TransferPlan transfer = plan_transfer(make_jobs(table, options.storage, plan, sources, staging ? staging.get() : loaded.arena->data()));
  const auto consume = [&](std::size_t task, std::span<const std::byte> data, std::span<const std::byte> scales) {
    const TransferPiece& piece = transfer.pieces[task];
    return finish_piece(transfer.jobs[piece.job], piece, data, scales, options.check_finite);
  };
  FATHOM_TRY(loaded.stats, read_all(transfer.files, transfer.tasks, options.read, consume));
  if (staging) FATHOM_TRY_VOID(backend.upload(loaded.arena->data(), {staging.get(), plan.arena_bytes}));
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
