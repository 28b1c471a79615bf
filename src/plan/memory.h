// Memory of one layout, to the byte where it can be: what each device holds, when, and how much room is left for
// caches.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "plan/layout.h"
#include "plan/request.h"

namespace fathom::plan {

/// Bytes on one device. allocated = what the framework's allocator peaks at; reserved = what it holds; total = what the
/// driver shows; capacity = usable bytes of the device by the catalog.
struct MemoryBreakdown {
  Bytes weights = 0, kv = 0, activations = 0, gradients = 0, optimizer = 0, workspace = 0, overhead = 0;
  Bytes allocated = 0, reserved = 0, total = 0, capacity = 0;
};

/// A moment of a pass or step, for the timeline: what is alive then.
struct MemoryMoment {
  const char* what = "";
  Bytes bytes = 0;
};  // "weights", "prefill", "decode", "forward", "backward", "step"

enum class MemoryCategory : std::uint8_t { kWeights, kKv, kActivations, kGradients, kOptimizer, kWorkspace, kOverhead };
std::string_view category_name(MemoryCategory category);

struct MemoryPlan {
  MemoryBreakdown bytes;  // of the fullest device
  int stage = 0;          // pipeline stage of the fullest device
  bool fits = false;
  Bytes over_bytes = 0;                                     // by how much it does not
  MemoryCategory over_category = MemoryCategory::kWeights;  // the one that crosses the line
  // caches, of the fullest device
  double kv_bytes_per_token = 0;     // growing, one sequence (tokens that share an entry count in part)
  double kv_bytes_per_sequence = 0;  // fixed, one sequence
  Bytes kv_room_bytes = 0;           // what this engine has for caches beside everything else
  std::int64_t concurrent = 0;   // sequences of the request's input + output that fit at once on one replica's share
  std::int64_t max_context = 0;  // input + output that fit at this batch
  std::int64_t batch_per_replica = 0;      // sequences on one attention replica: ceil(batch / (dp · dp_attention))
  std::int64_t chunk_tokens = 0;           // tokens of one prefill pass that the activations were sized for
  std::int64_t in_flight = 1;              // micro-batches alive at once on the first stage (training)
  Bytes host_bytes = 0;                    // in host memory, of one replica: offloaded states, Engram tables
  std::array<MemoryMoment, 4> timeline{};  // the first `moments` of them
  int moments = 0;
};

/// What the request's engine holds, doing the request's task on the request's device.
Result<const MemoryProfile*> memory_profile_of(const PlanRequest& request);
/// The request's cache format, or the engine's default.
Result<const KvFormat*> kv_format_of(const PlanRequest& request);

/// Never fails for a layout that validate_layout() accepted: errors are those of the model's share.
Result<MemoryPlan> plan_memory(const PlanRequest& request, const Layout& layout);

}  // namespace fathom::plan
