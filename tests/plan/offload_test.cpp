// What leaves the device: enough, no more than needed, in the faster way, and refused with a sentence when nothing
// helps.
#include "plan/offload.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace fathom::plan {
namespace {

/// 26 layers of experts as DeepSeek-V2-Lite has them, one dense layer before.
OffloadCase lite() {
  OffloadCase problem;
  problem.layers.assign(27, {.all = 1'150'000'000, .experts = 1'107'000'000});
  problem.layers[0] = {.all = 150'000'000, .experts = 0};
  problem.experts = problem.experts_total = 64;
  problem.experts_per_token = 6;
  problem.expert_flops = 6.0 * 2048 * 1408;
  problem.over = 6'000'000'000;
  problem.prefill_seconds = 0.05;
  problem.decode_seconds = 0.003;
  return problem;
}

TEST(Offload, FreesEnoughAndNoMore) {
  for (const OffloadWish wish :
       {OffloadWish::kLayers, OffloadWish::kExperts, OffloadWish::kCpuExperts, OffloadWish::kAuto}) {
    const OffloadCase problem = lite();
    const auto plan = plan_offload(problem, wish);
    ASSERT_TRUE(plan);
    EXPECT_GE(plan->freed(), problem.over);
    Bytes unit = 0;
    for (const OffloadLayer& layer : problem.layers) unit = std::max(unit, plan->experts ? layer.experts : layer.all);
    EXPECT_LT(plan->freed(), problem.over + 2 * unit);
    EXPECT_TRUE(std::is_sorted(plan->layers.begin(), plan->layers.end()));
    EXPECT_EQ(std::adjacent_find(plan->layers.begin(), plan->layers.end()), plan->layers.end()) << "a layer twice";
    for (const int layer : plan->layers) {
      ASSERT_GE(layer, 0);
      ASSERT_LT(layer, 27);
      if (plan->experts) {
        EXPECT_GT(problem.layers[static_cast<std::size_t>(layer)].experts, 0u);
      }
    }
  }
}

TEST(Offload, WithoutStreamingFewerLayersLeave) {
  const auto streamed = plan_offload(lite(), OffloadWish::kExperts),
             computed = plan_offload(lite(), OffloadWish::kCpuExperts);
  ASSERT_TRUE(streamed && computed);
  EXPECT_EQ(streamed->places, 2);
  EXPECT_EQ(streamed->host_tokens, 0);
  EXPECT_EQ(computed->places, 0);
  EXPECT_GE(computed->host_tokens, kAllTokens);
  EXPECT_EQ(computed->layers.size(), 6u);
  EXPECT_EQ(streamed->layers.size(), 8u) << "two places take two layers' room";
}

TEST(Offload, TakesTheFasterWay) {
  OffloadCase problem = lite();
  problem.prefill_tokens = 4096;
  problem.rates = {.link = 50e9, .host_stream_one = 100e9, .host_stream = 100e9, .host_flops = 2e12, .handover = 50e-6};
  problem.decode_passes = 256;
  auto plan = plan_offload(problem, OffloadWish::kAuto);
  ASSERT_TRUE(plan);
  EXPECT_TRUE(plan->experts);
  EXPECT_EQ(plan->places, 2) << "long prompts are streamed";
  EXPECT_TRUE(plan->on_host(1));
  EXPECT_FALSE(plan->on_host(4096));
  EXPECT_LT(plan->decode_seconds, plan->decode.streamed);
  EXPECT_LE(plan->prefill_seconds, plan->prefill.on_host);
  // A host that is slower than the link computes nothing.
  problem.rates.host_stream = problem.rates.host_stream_one = 1e9;
  problem.rates.host_flops = 1e10;
  plan = plan_offload(problem, OffloadWish::kAuto);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->host_tokens, 0);
  EXPECT_FALSE(plan->on_host(1));
  // A link that is slower than the host streams nothing.
  problem.rates = {.link = 1e9, .host_stream_one = 100e9, .host_stream = 100e9, .host_flops = 2e12, .handover = 50e-6};
  plan = plan_offload(problem, OffloadWish::kAuto);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->places, 0);
}

TEST(Offload, IsNeverFasterThanTheLinkOrTheDevice) {
  const OffloadCase problem = lite();
  const auto plan = plan_offload(problem, OffloadWish::kExperts);
  ASSERT_TRUE(plan);
  EXPECT_GE(offload_seconds(problem, *plan, 1, 0.003),
            static_cast<double>(plan->moved_bytes) / problem.rates.link * 0.999);
  EXPECT_GE(offload_seconds(problem, *plan, 1, 100), 100);
  double last = 0;
  for (std::int64_t tokens = 1; tokens <= 4096; tokens *= 2) {
    const double seconds = offload_times(problem, *plan, tokens, 0.003).on_host;
    EXPECT_GE(seconds, last) << tokens;
    last = seconds;
  }
}

TEST(Offload, PlacesMayTakeMoreThanLeaves) {
  OffloadCase problem = lite();
  for (OffloadLayer& layer : problem.layers) layer = {.all = 100, .experts = 0};
  problem.layers[13].all = 1000;
  problem.over = 10;
  const auto plan = plan_offload(problem, OffloadWish::kLayers);
  ASSERT_TRUE(plan);
  EXPECT_GE(plan->freed(), problem.over);
  EXPECT_LE(plan->freed(), plan->moved_bytes);
}

TEST(Offload, SaysWhenNothingHelps) {
  OffloadCase problem = lite();
  problem.over = 100'000'000'000;
  const auto plan = plan_offload(problem, OffloadWish::kAuto);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().key, "plan.offload.too_much");
  for (OffloadLayer& layer : problem.layers) layer.experts = 0;
  problem.over = 1'000'000'000;
  EXPECT_EQ(plan_offload(problem, OffloadWish::kExperts).error().key, "plan.offload.no_experts");
  const auto layers = plan_offload(problem, OffloadWish::kAuto);
  ASSERT_TRUE(layers);
  EXPECT_FALSE(layers->experts);
}

TEST(Offload, WaysHaveNames) {
  for (const char* name : {"auto", "none", "layers", "experts", "cpu-experts"}) {
    const auto wish = parse_offload_wish(name);
    ASSERT_TRUE(wish);
    EXPECT_EQ(offload_wish_name(*wish), name);
  }
  EXPECT_FALSE(parse_offload_wish("disk"));
}

}  // namespace
}  // namespace fathom::plan
