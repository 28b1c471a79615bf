// A closed loop of users on one attention replica: how prompts and decode steps share the device, as a fixed point.
#pragma once
#include "plan/cost_step.h"

namespace fathom::plan {

struct Loop {
  double users = 1;              // of one replica
  double input = 0, output = 1;  // tokens a request
  double capacity = 1e18;        // sequences whose caches fit at once on one replica
};

struct LoopResult {
  double ttft = 0, tpot = 0;       // seconds
  double requests_per_second = 0;  // of one replica
  double running = 0;              // sequences admitted, mean
  double decoding = 0;             // of them past their prompt, mean
  Parts parts{};                   // of a mean step
};

LoopResult solve_loop(const StepModel& model, const Loop& loop);

/// One static batch: the whole batch's prompts, then decode steps averaged over the contexts they go through.
struct StaticBatch {
  double prefill = 0, decode_step = 0;  // seconds; the second per token and sequence
  Parts prefill_parts{}, decode_parts{};
};
StaticBatch static_batch(const StepModel& model, double sequences, double input, double output);

}  // namespace fathom::plan
