// What the two halves of the memory plan share: everything resolved for one layout, and the sums of one pipeline stage.
#pragma once
#include <array>
#include <cstdint>

#include "plan/activations.h"
#include "plan/memory.h"
#include "plan/memory_profile.h"

namespace fathom::plan {

/// Resolved once for a layout; all pointers outlive the call.
struct MemoryInputs {
  const PlanRequest* request = nullptr;
  const Layout* layout = nullptr;
  const MemoryProfile* profile = nullptr;
  const ShareWeights* weights = nullptr;
  const ShareCache* cache = nullptr;         // inference
  const ActivationModel* prefill = nullptr;  // inference
  const ActivationModel* decode = nullptr;
  const ActivationModel* later = nullptr;            // later chunks, when they differ from the first
  const ActivationModel* train = nullptr;            // training
  const std::vector<std::uint8_t>* kinds = nullptr;  // of each layer
  std::int64_t batch_per_replica = 1;
  double context_bytes = 0, workspace_bytes = 0;  // of this device
  double communicators = 0;                       // groups of more than one rank that a device is in
};

/// One pipeline stage: sums over its layers and what sits at the ends. No heap.
struct StageSums {
  struct Growth {
    double ratio = 1, row_bytes = 0;
  };
  static constexpr std::size_t kMostRatios = 6;
  StageSums(const MemoryInputs& inputs, int stage);

  PartWeights parts;  // layers and ends
  Bytes weights = 0;  // parts.stored
  std::int64_t layers = 0;
  bool first = false, last = false;
  double cache_fixed = 0;  // bytes a sequence
  std::array<Growth, kMostRatios> growth_storage;
  std::size_t growths = 0;
  std::span<const Growth> growing() const { return {growth_storage.data(), growths}; }
};

Bytes to_bytes(double bytes);
/// The category that crosses the device's capacity when they are laid one on the other; the last one when none does.
MemoryCategory first_over(const MemoryBreakdown& bytes);

MemoryPlan plan_inference_memory(const MemoryInputs& inputs);
MemoryPlan plan_training_memory(const MemoryInputs& inputs);

}  // namespace fathom::plan
