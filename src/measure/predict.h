// What the planner says of running a model with Fathom on the machine at hand.
#pragma once
#include <memory>
#include <string>

#include "hardware/machine.h"
#include "model/spec.h"
#include "plan/answer.h"

namespace fathom::measure {

struct Workload {
  std::int64_t batch = 1, prompt = 512, generate = 128, chunk = 0;
};  // chunk: of a prompt, a pass; 0: the default

/// As many devices as `layout` spreads the model over (the host's CPU when cpu_only), engine fathom, task chat.
/// `weights`: native, bf16, f16, f32 as the engine holds them. `kernels`: timed on that device; without them its
/// calibration, if there is one, else what the catalog and the probe say of it.
Result<plan::PlanAnswer> predict(const hardware::Machine& machine, const model::ModelSpec& spec,
                                 const std::string& weights, const Workload& work, bool cpu_only,
                                 const std::optional<plan::KernelRates>& kernels = {}, const plan::Layout& layout = {});

/// This machine: the stored profile when it is of this machine and was measured, else a quick look now.
Result<hardware::Machine> known_machine();

}  // namespace fathom::measure
