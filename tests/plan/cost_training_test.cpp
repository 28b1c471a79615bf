// Training steps: pipeline bubbles in closed form, and what recompute, adapters and sharding may and may not change.
#include "plan/cost_training.h"

#include "cost_support.h"

namespace fathom::plan {
namespace {

/// A stage of one product of 1 ms forward and 2 ms backward, without links, states or host.
TrainModel stage(int pp, int vp, std::int64_t micro_batches, const EngineProfile& engine) {
  TrainModel m;
  m.engine = &engine;
  m.layout.pp = pp;
  m.layout.vp = vp;
  m.layout.micro_batches = micro_batches;
  m.rates.stream = m.rates.elementwise = 1e15;
  m.rates.product.fill(1e15);
  m.tokens = m.sequence = 1000;
  Kernel k;
  k.kind = Kernel::Kind::kProduct;
  k.flops.per_token = 1e9;
  m.forward.kernels = {k};
  k.backward = true;
  m.backward.kernels = {k, k};
  return m;
}

TEST(CostTraining, BubblesAreThoseOfOneForwardOneBackward) {
  EngineProfile engine;
  engine.training = {};
  engine.training.step_host = 0;
  for (const int pp : {1, 2, 4, 8})
    for (const int vp : {1, 2, 5})
      for (const std::int64_t m : {1, 4, 32})
        EXPECT_NEAR(train_step(stage(pp, vp, m, engine)).step, (static_cast<double>(m) + (pp - 1.0) / vp) * 3e-3, 1e-9)
            << pp << " " << vp << " " << m;
}

TEST(CostTraining, FullRecomputeAddsOneForward) {
  EngineProfile engine;
  TrainModel m = stage(1, 1, 8, engine);
  m.layout.recompute = Recompute::kFull;
  EXPECT_NEAR(train_step(m).step, 8 * 4e-3, 1e-9);
}

TEST(CostTraining, PartialRecomputeIsInBetween) {
  EngineProfile engine;
  TrainModel m = stage(1, 1, 8, engine);
  m.layout.recompute = Recompute::kFull;
  m.layout.recompute_share = 0.25;
  EXPECT_NEAR(train_step(m).step, 8 * 3.25e-3, 1e-9);
}

TEST(CostTraining, ExpertsGetTheTokensOfAllTheirRanks) {
  EngineProfile engine;
  TrainModel m = stage(1, 1, 1, engine);
  Kernel experts;
  experts.kind = Kernel::Kind::kExperts;
  experts.experts_total = 64;
  experts.experts_per_token = 4;
  experts.expert_flops = 1e9;
  m.forward.kernels = {experts};
  m.backward.kernels.clear();
  m.rates.expert_stream = 1e30;
  for (const int ep : {1, 8, 64}) {
    m.layout.ep = ep;
    m.forward.kernels[0].experts_here = 64.0 / ep;
    EXPECT_NEAR(train_step(m).step, 1000 * 4 * 1e9 / 1e15, 1e-6) << ep;  // balanced: a rank's own tokens' worth
  }
}

std::string train(const std::string& rest) {
  return R"({"model": "r1-distill-llama-70b", "hardware": "h100-sxm5-80gb", "gpus": 64, "engine": "megatron", "weights": "bf16", "compute": "bf16", "seq": 4096, "micro_batch": 1, )" +
         rest + "}";
}

TEST(CostTraining, UtilizationIsModelFlopsOverPeak) {
  const auto p = priced(
      train(R"("task": "pretrain", "tp": 4, "pp": 4, "dp": 4, "zero": 1, "global_batch": 128, "recompute": "none")"));
  ASSERT_NE(p, nullptr);
  const TimeEstimate t = p->time();
  const double parameters = static_cast<double>(p->request.model->sizes().parameters_active);
  const double flops = 6 * parameters + 12.0 / 2 * 80 * 8192 * 4096;
  EXPECT_NEAR(*t.mfu, flops * *t.train_tokens_per_second_per_gpu / 989.4e12, 0.01);
  EXPECT_GT(*t.mfu, 0.3);
  EXPECT_LT(*t.mfu, 0.75);
  EXPECT_NEAR(*t.train_tokens_per_second_per_gpu * 64 * t.step_ms->value / 1e3, 128 * 4096, 128 * 4096 * 1e-6);
}

TEST(CostTraining, OrdersThatMustHold) {
  const std::string layout = R"("tp": 4, "pp": 2, "dp": 8, "zero": 1, "global_batch": 128, )";
  const auto speed = [&](const std::string& rest) {
    const auto p = priced(train(layout + rest));
    return p == nullptr ? 0 : *p->time().train_tokens_per_second_per_gpu;
  };
  const double full = speed(R"("task": "full", "recompute": "none")");
  EXPECT_GT(full, speed(R"("task": "full", "recompute": "selective")"));
  EXPECT_GT(speed(R"("task": "full", "recompute": "selective")"), speed(R"("task": "full", "recompute": "full")"));
  EXPECT_GT(speed(R"("task": "lora", "recompute": "none")"), full);  // frozen weights have no gradients
  EXPECT_LT(speed(R"("task": "full", "recompute": "none", "offload": "optimizer")"), full);
}

}  // namespace
}  // namespace fathom::plan
