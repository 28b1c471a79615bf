#include "measure/predict.h"

#include "hardware/probe.h"
#include "plan/engine_profile.h"
#include "plan/request.h"

namespace fathom::measure {

Result<plan::PlanAnswer> predict(const hardware::Machine& machine, const model::ModelSpec& spec,
                                 const std::string& weights, const Workload& work, bool cpu_only,
                                 const std::optional<plan::KernelRates>& kernels, const plan::Layout& layout) {
  plan::PlanRequest request;
  FATHOM_TRY(request.model, plan::plan_model_from_config(spec.config_json));
  FATHOM_TRY(request.cluster, plan::machine_cluster(machine, cpu_only));
  request.cluster.devices = layout.devices();
  if (layout.devices() > 1)
    request.layout = {
        .tp = layout.tp, .pp = layout.pp, .dp = 1, .dp_attention = layout.dp_attention, .ep = layout.ep, .cp = 1};
  request.cluster.device.kernels = kernels;
  request.task = plan::Task::kChat;
  FATHOM_TRY(request.engine, plan::find_engine("fathom"));
  FATHOM_TRY(request.weights, plan::find_weight_format(weights == "f16"   ? "fp16"
                                                       : weights == "f32" ? "fp32"
                                                                          : weights));
  request.batch = work.batch;
  request.input = work.prompt;
  request.output = work.generate;
  request.prefill_chunk = work.chunk;
  return plan::make_plan(request);
}

Result<hardware::Machine> known_machine() {
  FATHOM_TRY(auto stored, hardware::load_profile());
  if (stored && stored->measured) return std::move(*stored);
  hardware::ProbeOptions options;
  options.effort = hardware::Effort::kDefault;
  options.measure_disks = false;
  return hardware::probe(options);
}

}  // namespace fathom::measure
