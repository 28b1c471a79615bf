// Tracer: every op of a run with what it took and what a plan says it takes, as a trace that Chrome and Perfetto open.
// Backends are wrapped: each op is launched by itself, between two marks, and nothing is recorded or fused, so that a
// traced run is slower than it would be.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/files.h"
#include "measure/ranks.h"
#include "model/weight_table.h"
#include "plan/cost_op.h"
#include "tensor/backend.h"

namespace fathom::measure {

/// One op, or a pass around its ops.
struct TraceEvent {
  std::string name, shapes;  // "linear"; "[1, 4096] f32 × [11008, 4096] bf16 → [1, 11008]"
  int rank = 0, layer = -1;  // layer -1: before and after them
  bool pass = false;
  double start = 0, seconds = 0;  // start: of the machine's steady clock
  double bytes = 0, flops = 0;
  double predicted = -1;  // seconds; < 0: nothing to predict by
  std::int64_t tokens = 0;
};

class Tracer {
 public:
  /// Ops are priced by `pricer`, if there is one.
  explicit Tracer(std::optional<plan::OpPricer> pricer) : pricer_(std::move(pricer)) {}

  /// A backend that does what `inner` does and tells this tracer, which outlives it. `weights`: of the rank's share,
  /// for layers' numbers.
  std::unique_ptr<tensor::Backend> wrap(std::unique_ptr<tensor::Backend> inner, int rank,
                                        const model::WeightTable& weights);

  const plan::OpPricer* pricer() const { return pricer_ ? &*pricer_ : nullptr; }
  void add(std::vector<TraceEvent> events);
  std::vector<TraceEvent> events() const;
  /// Processes of one run bring their events to rank 0's; all of them call it, after the run.
  Status gather(tensor::Transport& transport);
  /// Trace Event Format: one process a rank, ops and passes as threads of it. Atomic.
  Status write(const Path& path) const;

 private:
  std::optional<plan::OpPricer> pricer_;
  mutable std::mutex guard_;
  std::vector<TraceEvent> events_;
};

/// For `device` of this machine under a layout.
Result<std::shared_ptr<Tracer>> make_tracer(const std::string& device, const engine::Spread& spread);

/// At the end of a run, when no rank steps any more: brings all events together and writes them. Null: does nothing.
Status finish_trace(const std::shared_ptr<Tracer>& tracer, const Launch& launch, const Path& path);

}  // namespace fathom::measure
