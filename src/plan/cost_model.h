// The cost model: from records to seconds. Formulas and what they were fitted to: docs/cost-model.md.
// Pure arithmetic on records that are already there: no allocation that grows with the model, no strings, no Result.
#pragma once
#include "plan/answer.h"
#include "plan/engine_profile.h"
#include "plan/layout.h"
#include "plan/memory.h"
#include "plan/model_trace.h"
#include "plan/request.h"

namespace fathom::plan {

/// Bytes that the weights of one class take on one rank, by the format in use: streamed bytes follow from them.
struct WeightBytes {
  std::array<double, model::kWeightClassCount> per_element{};  // stored bytes an element, scales included
};
/// Averages over the table of a share; cache the result with the share.
WeightBytes weight_bytes(const model::WeightTable& share, const WeightFormatRule& rule);

/// What one estimate needs. Pointers are borrowed for the call.
struct CostInputs {
  const PlanRequest* request = nullptr;
  Layout layout;
  const WeightFormatRule* weights = nullptr;
  const KvFormat* kv = nullptr;          // inference
  const WeightBytes* bytes = nullptr;    // of the share's table under `weights`
  const ModelTrace* prefill = nullptr;   // inference
  const ModelTrace* decode = nullptr;    // inference
  const ModelTrace* train = nullptr;     // training
  std::int64_t batch = 1;                // chat: sequences; serve: users; training: ignored
  const MemoryPlan* memory = nullptr;    // kv_bytes_per_token, concurrent, chunk_tokens
};

/// Seconds of everything that the task answers. Never fails: what cannot run is the caller's to refuse.
TimeEstimate estimate_time(const CostInputs& inputs);

}  // namespace fathom::plan
