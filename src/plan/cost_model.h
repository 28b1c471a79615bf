// The cost model: from records to seconds. Formulas and what they were fitted to: docs/cost-model.md.
// Pure arithmetic on records that are already there: lowering a trace is done once and kept; after that no allocation,
// no strings, no Result.
#pragma once
#include "plan/answer.h"
#include "plan/calibration.h"
#include "plan/cost_curves.h"
#include "plan/engine_profile.h"
#include "plan/layout.h"
#include "plan/memory.h"
#include "plan/model_trace.h"
#include "plan/request.h"

namespace fathom::plan {

/// Bytes that the weights of one class take on one rank, by the format in use: streamed bytes follow from them.
struct WeightBytes {
  std::array<double, model::kWeightClassCount>
      per_element{};  // stored bytes an element, scales included; 0: class is absent
};
/// Averages over the table of a share. Kept with the share (ShareWeights::bytes).
WeightBytes weight_bytes(const model::WeightTable& share, const WeightFormatRule& rule);

/// What one estimate needs. Pointers are borrowed for the call; traces, weights and formats must outlive the process'
/// plans (those of PlanModel and formats() do), since what was lowered from them is kept by their addresses.
struct CostInputs {
  const PlanRequest* request = nullptr;
  Layout layout;
  const WeightFormatRule* weights = nullptr;
  const KvFormat* kv = nullptr;         // inference
  const ShareWeights* share = nullptr;  // of sharding_of(layout) under `weights`
  const ModelTrace* prefill = nullptr;  // inference
  const ModelTrace* decode = nullptr;   // inference
  const ModelTrace* resume = nullptr;   // inference on a calibrated device: after earlier tokens
  const ModelTrace* train = nullptr;    // training
  std::int64_t batch = 1;               // chat: sequences; serve: users overall; training: ignored
  std::int64_t concurrent = 0;          // serve: sequences that fit at once on one attention replica; 0: no limit
};

/// The tables that inference of this request is priced by; null: curves. Engines that run other kernels, CPUs whose
/// kernels were just timed, and training have none.
std::shared_ptr<const Calibration> calibration_for(const PlanRequest& request);

/// Seconds of everything that the task answers. Never fails: what cannot run is the caller's to refuse.
TimeEstimate estimate_time(const CostInputs& inputs);

/// The same with curves and a profile other than the built-in ones: for calibration and for the fit.
TimeEstimate estimate_time(const CostInputs& inputs, const Curves& curves, const EngineProfile& engine);

}  // namespace fathom::plan
