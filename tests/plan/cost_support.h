// A request with what the cost model needs to price it, for tests that change hardware or engine underneath.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "plan/cost_model.h"

namespace fathom::plan {

struct Priced {
  PlanRequest request;
  CostInputs inputs;
  Curves curves;
  EngineProfile engine;

  TimeEstimate time() {
    inputs.request = &request;
    return estimate_time(inputs, curves, engine);
  }
};

/// Parses a request, lets the planner complete its layout, and collects traces. Fails the test on an error.
inline std::unique_ptr<Priced> priced(const std::string& line) {
  auto made = std::make_unique<Priced>();
  std::string id;
  auto request = parse_request(line, id);
  EXPECT_TRUE(request.has_value()) << (request ? "" : error_text(request.error()));
  if (!request) return nullptr;
  made->request = std::move(*request);
  const auto answer = make_plan(made->request);
  EXPECT_TRUE(answer.has_value()) << (answer ? "" : error_text(answer.error()));
  if (!answer) return nullptr;
  const Candidate& best = answer->best;
  CostInputs& in = made->inputs;
  in.layout = best.layout;
  in.weights = best.weights;
  in.kv = best.kv;
  in.batch = best.batch;
  in.concurrent = std::max<std::int64_t>(1, best.memory.concurrent);
  const auto sharding = sharding_of(best.layout);
  in.share = *made->request.model->share_weights(sharding, *best.weights);
  if (is_training(made->request.task)) {
    in.train = *made->request.model->trace(sharding, Phase::kTrain);
  } else {
    in.prefill = *made->request.model->trace(sharding, Phase::kPrefill);
    in.decode = *made->request.model->trace(sharding, Phase::kDecode);
  }
  made->curves = find_curves(**curve_tables(), made->request.cluster);
  made->engine = *made->request.engine;
  return made;
}

}  // namespace fathom::plan
