// Ranks of a run: how they were started, how a model is spread over them, and the engine that drives them.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "engine/crew.h"
#include "plan/layout.h"

namespace fathom::measure {

/// What a person asked for. Not said: as many ranks as mpirun or srun started, or as the layout's sizes multiply to, or
/// one; and of the layouts that agree with what was said, the plan's best.
struct RankWishes {
  int ranks = 0, gpus = 0;            // 0: not said. gpus: ranks with a GPU each
  std::optional<int> tp, pp, ep, dp;  // dp: replicas of attention that share their experts
};

/// The ranks of this run.
struct Launch {
  int count = 1;
  std::shared_ptr<tensor::Transport> process;  // this process is one of them; null: they are threads of this one
  /// Not rank 0: prints nothing, and ends when rank 0 does.
  bool follows() const { return process != nullptr && process->rank() > 0; }
};
/// Joins the ranks that mpirun or srun started, if any. Errors: "ranks.count" and "ranks.gpus_device" (wishes that
/// contradict), those of mpi.
Result<Launch> find_launch(const RankWishes& wishes, const std::string& device);

/// The work that a layout is chosen for.
struct SpreadWork {
  std::string device = "cpu", weights = "native";
  std::int64_t batch = 1, prompt = 512, generate = 128;
};
/// Rank 0 chooses, the others are told. Errors: "ranks.product" (sizes that do not multiply to the ranks), those of the
/// plan and check_spread.
Result<engine::Spread> choose_spread(const Launch& launch, const RankWishes& wishes, const model::ModelSpec& spec,
                                     const SpreadWork& work);

/// "tp 2 · pp 2", with what is 1 left out; "" for one rank.
std::string spread_text(const engine::Spread& spread);
/// As the plan speaks of it.
plan::Layout layout_of(const engine::Spread& spread);

/// What `rank` holds, with the plan's stages.
model::Sharding sharding_of(const model::ModelSpec& spec, const engine::Seat& seat);
/// Which device of this machine is the rank's own, and how many threads: its share of those asked for (0: of all).
tensor::BackendOptions backend_options(const engine::Seat& seat, int threads, const std::string& isa);

/// The engine of rank 0; null when this process followed another's to the end.
Result<std::unique_ptr<engine::Engine>> start_engine(const Launch& launch, const engine::Spread& spread,
                                                     const engine::PartsMaker& make);

}  // namespace fathom::measure
