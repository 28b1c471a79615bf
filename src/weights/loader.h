// Checkpoint to memory: one arena, exactly as planned, filled as a stream and converted on the way in.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "model/architecture.h"
#include "tensor/backend.h"
#include "weights/checkpoint.h"
#include "weights/read_engine.h"
#include "weights/storage.h"

namespace fathom::weights {

struct LoadOptions {
  StoragePolicy storage;
  HostUnits host{};  // not with mmap
  /// Weights point into the mapped files, nothing is copied: for models beyond memory. Every tensor must be stored as
  /// planned and not be cut by columns; else weights.mmap_needs_copy, which names the first that is not. Data is then
  /// aligned to its element only.
  bool mmap = false;
  bool check_finite =
      false;  // NaN or infinity anywhere is weights.not_finite, naming tensor and element; costs a pass over the data
  bool allow_extra = false;  // tensors that the model does not know are passed over (see check_extra_tensors)
  ReadOptions read;
};

/// The weights of one rank and the memory they lie in. Move-only; `set` points into `arena`, or into `files` with mmap.
struct LoadedWeights {
  std::unique_ptr<tensor::Buffer> arena;  // plan.arena_bytes; null with mmap
  std::unique_ptr<tensor::Buffer> host,
      ring;  // of plan.residence: kShared and kDevice; null without units, without places
  std::vector<MappedFile> files;
  model::WeightSet set;      // as ops on the device find them; parts that the storage policy leaves out have no data
  model::WeightSet on_host;  // with units: theirs, as the host finds them; others have no data
  WeightPlan plan;
  ReadStats stats;

  WeightBlocks blocks() const;
};
/// The blocks that `plan` asks for. Errors: those of allocate_buffer.
Status allocate_blocks(tensor::Backend& backend, WeightPlan plan, LoadedWeights& loaded);
/// Sets `set` and `on_host`.
void bind_weights(const model::WeightTable& table, const StoragePolicy& policy, LoadedWeights& loaded);

/// Loads what `architecture` needs (its rank's share) from a folder or file. Weights live in backend.allocate_buffer
/// memory. Errors: those of Checkpoint::open, plan_weights, resolve_tensors, check_extra_tensors, allocate_buffer
/// (asked for before anything is read), reading; weights.interrupted when progress says so.
Result<LoadedWeights> load_weights(const model::Architecture& architecture, const Path& path, tensor::Backend& backend,
                                   const LoadOptions& options = {});

/// The same from a table. `whole` is the table of the unsplit model, by which extra tensors are told.
Result<LoadedWeights> load_weights(const model::WeightTable& table, const model::WeightTable& whole,
                                   const Checkpoint& checkpoint, tensor::Backend& backend,
                                   const LoadOptions& options = {});

}  // namespace fathom::weights
