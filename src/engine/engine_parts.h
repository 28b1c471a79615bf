// What planning and running an engine share: where things lie, and what a rank's part of a pass is.
#pragma once
#include <span>
#include <vector>

#include "engine/engine.h"

namespace fathom::engine {

inline Bytes aligned(Bytes bytes) {
  return (bytes + tensor::kArenaAlignment - 1) / tensor::kArenaAlignment * tensor::kArenaAlignment;
}
/// Most rows of logits of one pass.
inline std::int64_t logit_rows(const EngineOptions& options) {
  return options.logit_rows > 0 ? options.logit_rows : options.slots;
}
/// The run's options as a replica sees them: its own slots.
EngineOptions local_options(const EngineOptions& options, const Spread& spread);

/// Where each cache tensor begins in one block, and how long the block is.
struct CacheLayout {
  std::vector<Bytes> offsets;
  Bytes total = 0;
};
CacheLayout lay_out_cache(const model::CacheSpec& spec, const EngineOptions& local);
model::CacheSet view_cache(const model::CacheSpec& spec, const EngineOptions& local, const CacheLayout& layout,
                           std::byte* base);
/// Bytes of the small tables that every pass fills in: ids, positions, wanted rows, sequences.
Bytes table_bytes(const EngineOptions& local);
/// The architecture's constants, copied to `base` (null: only placed); `used` grows.
std::vector<tensor::Tensor> place_constants(const model::Architecture& architecture, std::byte* base, Bytes& used);

/// What head() gave on each rank becomes [rows of all replicas, vocabulary], replica after replica, on rank 0; other
/// ranks may get nothing. `rows`: of each replica.
tensor::Value collect_logits(model::Pass& pass, tensor::Value logits, std::int64_t vocabulary,
                             std::span<const std::int64_t> rows);

/// Whether a rank can choose tokens: rank 0, and those that would otherwise have to be told what it chose.
inline bool chooses_tokens(const Spread& spread, int rank) { return rank == 0 || (spread.dp == 1 && spread.pp == 1); }

/// Tells the ranks that follow that there is nothing more to do.
void let_go(tensor::Transport& transport);

}  // namespace fathom::engine
