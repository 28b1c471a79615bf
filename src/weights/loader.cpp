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
struct PlaceOfPiece {
  Bytes offset = 0, bytes = 0;
};
PlaceOfPiece place_of(const TransferJob& job, const TransferPiece& piece) {
  if (job.repeats) return {0, static_cast<Bytes>(job.rows * job.cols) * static_cast<Bytes>(dtype_bytes(job.to))};
  const bool flat = job.contiguous() && !job.dequantizes();
  const Bytes unit = static_cast<Bytes>(flat ? 1 : job.cols) * static_cast<Bytes>(dtype_bytes(job.to));
  return {static_cast<Bytes>(piece.first) * unit, static_cast<Bytes>(piece.count) * unit};
}

Result<LoadedWeights> load_copied(const model::WeightTable& table, WeightPlan plan,
                                  std::span<const TensorSource> sources, tensor::Backend& backend,
                                  const LoadOptions& options) {
  LoadedWeights loaded;
  FATHOM_TRY_VOID(allocate_blocks(backend, std::move(plan), loaded));
  const std::byte *host = loaded.blocks().host, *host_end = host + loaded.plan.residence.host_bytes;
  const auto on_host = [&](const TransferJob& job) { return job.out >= host && job.out < host_end; };
  TransferPlan transfer = plan_transfer(make_jobs(table, options.storage, loaded.plan, sources, loaded.blocks()));
  std::unique_ptr<Stager> stager;
  if (!backend.host_addressable()) {
    Bytes most = 1;
    for (const TransferPiece& piece : transfer.pieces)
      most = std::max(most, place_of(transfer.jobs[piece.job], piece).bytes);
    for (std::size_t i = 0; i < transfer.tasks.size(); ++i)
      if (!on_host(transfer.jobs[transfer.pieces[i].job]))
        transfer.tasks[i].into = nullptr;  // nothing is read straight to its place
    FATHOM_TRY(stager,
               Stager::make(backend, std::min(kMostStaged, usable_threads(options.read.threads, transfer.tasks.size())),
                            most));
  }
  const auto consume = [&](std::size_t task, std::span<const std::byte> data,
                           std::span<const std::byte> scales) -> Status {
    const TransferPiece& piece = transfer.pieces[task];
    const TransferJob& job = transfer.jobs[piece.job];
    if (stager == nullptr || on_host(job)) return finish_piece(job, piece, data, scales, options.check_finite);
    const PlaceOfPiece place = place_of(job, piece);
    return stager->put(job.out + place.offset, place.bytes, [&](std::span<std::byte> out) {
      TransferJob staged = job;
      staged.out = reinterpret_cast<std::byte*>(reinterpret_cast<std::uintptr_t>(out.data()) -
                                                place.offset);  // so that the piece begins where `out` does
      return finish_piece(staged, piece, data, scales, options.check_finite);
    });
  };
  FATHOM_TRY(loaded.stats, read_all(transfer.files, transfer.tasks, options.read, consume));
  bind_weights(table, options.storage, loaded);
  return loaded;
}

bool is_whole(const model::Sharding& s) {
  return s.tp == 1 && s.ep == 1 && s.expert_tp == 1 && s.first_layer == 0 && s.last_layer < 0;
}

}  // namespace

WeightBlocks LoadedWeights::blocks() const {
  const auto data = [](const std::unique_ptr<tensor::Buffer>& buffer) {
    return buffer != nullptr ? buffer->data() : nullptr;
  };
  return {.device = data(arena), .host = data(host), .ring = data(ring)};
}

Status allocate_blocks(tensor::Backend& backend, WeightPlan plan, LoadedWeights& loaded) {
  loaded.plan = std::move(plan);
  const Residence& residence = loaded.plan.residence;
  FATHOM_TRY(loaded.arena, backend.allocate_buffer(loaded.plan.arena_bytes));
  if (residence.places > 0) {
    FATHOM_TRY(loaded.ring, backend.allocate_buffer(residence.ring_bytes()));
  }
  if (!residence.units.empty()) {
    FATHOM_TRY(loaded.host, backend.allocate_buffer(residence.host_bytes, tensor::Placement::kShared));
  }
  return {};
}

void bind_weights(const model::WeightTable& table, const StoragePolicy& policy, LoadedWeights& loaded) {
  const WeightPlan& plan = loaded.plan;
  const WeightBlocks blocks = loaded.blocks();
  loaded.set = model::WeightSet(table);
  if (!plan.residence.units.empty()) loaded.on_host = model::WeightSet(table);
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const model::WeightEntry& entry = table.entries()[i];
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    const auto bind = [&](tensor::Weight& weight, const std::byte* base) {
      const TensorOffsets& offsets = plan.tensors[static_cast<std::size_t>(weight.parameter)];
      const auto at = [&](Bytes offset) {
        return reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(base) + offset);
      };
      weight.format = plan.formats[i];
      weight.data = at(offsets.data);
      if (offsets.scales != kNotInArena) weight.scales = at(offsets.scales);
    };
    for (tensor::Weight& weight : loaded.set.experts(static_cast<model::WeightId>(i)))
      bind(weight, plan.seen(blocks, static_cast<std::size_t>(weight.parameter)));
    if (plan.residence.unit(static_cast<std::size_t>(entry.first_parameter)) < 0) continue;
    for (tensor::Weight& weight : loaded.on_host.experts(static_cast<model::WeightId>(i))) bind(weight, blocks.host);
  }
}

Result<LoadedWeights> load_weights(const model::WeightTable& table, const model::WeightTable& whole,
                                   const Checkpoint& checkpoint, tensor::Backend& backend, const LoadOptions& options) {
  FATHOM_TRY(WeightPlan plan, plan_weights(table, options.storage, options.mmap ? HostUnits{} : options.host));
  FATHOM_TRY(const std::vector<TensorSource> sources, resolve_tensors(table, options.storage, plan, checkpoint));
  if (!options.allow_extra) FATHOM_TRY_VOID(check_extra_tensors(whole, checkpoint));
  if (options.mmap) return load_mapped(table, std::move(plan), sources, options);
  return load_copied(table, std::move(plan), sources, backend, options);
}

Result<LoadedWeights> load_weights(const model::Architecture& architecture, const Path& path, tensor::Backend& backend,
                                   const LoadOptions& options) {
  FATHOM_TRY(const Checkpoint checkpoint, Checkpoint::open(path));
  if (is_whole(architecture.sharding()))
    return load_weights(architecture.weights(), architecture.weights(), checkpoint, backend, options);
  FATHOM_TRY(const std::unique_ptr<model::Architecture> whole, model::make_architecture(architecture.spec()));
  return load_weights(architecture.weights(), whole->weights(), checkpoint, backend, options);
}

}  // namespace fathom::weights
