// Offload of a run: whether the weights fit, and if not, what leaves the device, by rates that are measured a moment
// before.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "engine/crew.h"
#include "measure/ranks.h"
#include "plan/offload.h"
#include "weights/storage.h"

namespace fathom::measure {

/// What a person asked for.
struct OffloadWishes {
  std::string
      memory;  // "24GiB": of the device, as if it had no more; "least": all that can leave it does; "": as it is
  std::string way = "auto";  // auto, layers, experts, cpu-experts, none
};

/// The work that it is chosen for: one prompt, then so many tokens.
struct OffloadWork {
  std::int64_t prompt = 512, generate = 128;
};

/// What was decided, and by what.
struct OffloadReport {
  Bytes needed = 0, room = 0;  // of the device, with all weights there; what this run may take of it
  plan::OffloadCase problem;
  plan::OffloadPlan plan;
  bool compared = false;  // the host's rates were measured, so that both ways have times
  int host_threads = 0;   // 0: nothing is computed on the host
};
/// One sentence: what stays in host memory, how it is used and why.
std::string offload_text(const OffloadReport& report);

/// What makes a rank's weights and engine: units for the loader, options for the engine.
struct OffloadChoice {
  std::optional<OffloadReport> report;  // nothing: all weights are on the device
  weights::HostUnits units;
  engine::OffloadOptions options;
};

/// What is known when a rank is about to load its weights.
struct OffloadInputs {
  model::Architecture* architecture = nullptr;
  tensor::Backend* backend = nullptr;
  weights::StoragePolicy storage;
  engine::EngineOptions engine;
  const engine::Seat* seat = nullptr;
  OffloadWork work;
  std::string weights = "native", isa;  // as the plan and the host's backend are told
  int threads = 0;
  bool mmap = false;
};
/// Decides, and reserves the device's memory for weights, caches and activations in one block. Errors:
/// "measure.offload_none" (it does not fit, and "none" was asked for), "measure.offload_rest" (caches and activations
/// alone do not), "measure.gpu_memory" (not a size), "measure.offload_mmap", those of plan_offload and of the backend.
Result<OffloadChoice> prepare_memory(const OffloadInputs& inputs, const OffloadWishes& wishes);

}  // namespace fathom::measure
