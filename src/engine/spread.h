// Spread: how the ranks of a run share a model, and what falls to each of them.
#pragma once
#include <memory>
#include <vector>

#include "model/architecture.h"
#include "tensor/transport.h"

namespace fathom::engine {

/// tp · dp · pp ranks, numbered with tp innermost, then dp, then pp. Attention, dense feed-forward and vocabulary are
/// split tp ways in each of dp replicas, which have sequences of their own (slot s lives on replica s mod dp); routed
/// experts are shared by the tp · dp ranks of a stage: ep ways whole experts, tp · dp / ep ways within experts. Layers
/// are cut into pp stages.
struct Spread {
  int tp = 1, pp = 1, dp = 1, ep = 1;
  int ranks() const { return tp * pp * dp; }
  int expert_tp() const { return tp * dp / ep; }
  int tensor_rank(int rank) const { return rank % tp; }
  int replica(int rank) const { return rank / tp % dp; }
  int stage(int rank) const { return rank / tp / dp; }
  bool operator==(const Spread&) const = default;
};

/// Layers [first, last) of each stage.
struct StageLayers {
  std::int64_t first = 0, last = 0;
};
/// As even as can be, the earlier stages holding one more.
std::vector<StageLayers> even_stages(std::int64_t layers, int pp);

/// Errors: "ranks.layers" (more stages than layers), "ranks.experts" (ep of a model without experts, or one that does
/// not divide the ranks of a stage). What does not divide within the model is an error of make_architecture.
Status check_spread(const model::ModelSpec& spec, const Spread& spread);

/// What rank number `rank` holds. `stages`: of pp entries; empty: even_stages.
model::Sharding sharding_of(const model::ModelSpec& spec, const Spread& spread, int rank,
                            const std::vector<StageLayers>& stages = {});
/// The groups that rank number `rank` belongs to.
tensor::GroupMembers groups_of(const Spread& spread, int rank);

/// An engine's place among the ranks of its run.
struct Seat {
  Spread spread;
  int rank = 0;
  std::shared_ptr<tensor::Transport> transport;  // null: one rank alone
  bool alone() const { return spread.ranks() == 1; }
};

}  // namespace fathom::engine
