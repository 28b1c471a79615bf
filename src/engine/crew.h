// Crew: engines of all ranks of a run, made at once. Rank 0's is handed out and steps the others with it.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"

namespace fathom::engine {

/// What an engine is made of.
struct EngineParts {
  std::unique_ptr<model::Architecture> architecture;
  std::unique_ptr<tensor::Backend> backend;
  weights::LoadedWeights weights;
  EngineOptions options;
  OffloadOptions offload;
};
/// Makes a rank's parts; called on the thread (or in the process) that will step it, for all ranks at once.
using PartsMaker = std::function<Result<EngineParts>(const Seat& seat)>;

/// One rank alone.
Result<std::unique_ptr<Engine>> start_alone(const PartsMaker& make);
/// The ranks of `spread` as threads of this process; `ends` are their transports, by rank. The engine of rank 0; the
/// threads end with it. An error of one rank's maker is the answer, whichever it was.
Result<std::unique_ptr<Engine>> start_threads(const Spread& spread,
                                              std::vector<std::shared_ptr<tensor::Transport>> ends,
                                              const PartsMaker& make);
/// This process is one rank. Rank 0: its engine. Others: follow until rank 0 lets them go, then null.
Result<std::unique_ptr<Engine>> start_process(const Spread& spread, std::shared_ptr<tensor::Transport> transport,
                                              const PartsMaker& make);

}  // namespace fathom::engine
