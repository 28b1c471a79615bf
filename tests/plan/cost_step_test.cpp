// Prices of steps: limits that must hold exactly, and orders that must never turn round.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "cost_support.h"
#include "plan/cost_serving.h"

namespace fathom::plan {
namespace {

constexpr const char* kChat =
    R"({"model": "r1-distill-llama-8b", "hardware": "h100-sxm5-80gb", "gpus": 1, "task": "chat", "engine": "vllm", "weights": "bf16", "kv": "bf16", "batch": 1, "input": 16, "output": 16})";

/// No floors, no host, no launches: only bytes and FLOPs are left.
void bare(Priced& p) {
  p.curves.device.kernel_floor = p.curves.device.small_floor = 0;
  p.engine.host = {};
  p.engine.host.launch = 0;
  p.engine.offline_step = 0;
  p.engine.lowering.graphs = true;
}

TEST(CostStep, DecodeOfOneSequenceIsBytesOverBandwidth) {
  const auto p = priced(kChat);
  ASSERT_NE(p, nullptr);
  bare(*p);
  const TimeEstimate t = p->time();
  ASSERT_TRUE(t.tpot_ms.has_value());
  // Every weight but the input embedding is read once a token.
  const PartWeights layers = p->inputs.share->before.back();
  const double bytes = static_cast<double>(layers.stored) + static_cast<double>(p->inputs.share->head.stored);
  const double limit = bytes / (p->request.cluster.device.bandwidth_bytes_per_second * p->curves.device.stream) * 1e3;
  EXPECT_GE(t.tpot_ms->value, limit * 0.999);
  EXPECT_LE(t.tpot_ms->value, limit * 1.03);
  EXPECT_EQ(t.bound_by, BoundBy::kWeights);
}

TEST(CostStep, LargePrefillIsFlopsOverRate) {
  const auto p = priced(
      R"({"model": "r1-distill-llama-8b", "hardware": "h100-sxm5-80gb", "gpus": 1, "task": "chat", "engine": "vllm", "weights": "bf16", "kv": "bf16", "batch": 64, "input": 128, "output": 1})");
  ASSERT_NE(p, nullptr);
  bare(*p);
  const TimeEstimate t = p->time();
  const double parameters = static_cast<double>(p->inputs.share->before.back().elements);
  const double limit = 2 * parameters * 64 * 128 / (989.4e12 * p->curves.device.gemm[3] * p->engine.gemm[3]) * 1e3;
  EXPECT_GE(t.ttft_ms->value, limit * 0.999);
  EXPECT_LE(t.ttft_ms->value, limit * 1.25);
  EXPECT_EQ(t.bound_by, BoundBy::kWeights);  // of its decode steps
}

TEST(CostStep, MoreBandwidthIsNeverSlower) {
  EXPECT_TRUE(rc::check("bandwidth and rates", [] {
    const auto p = priced(kChat);
    const double more = 1 + *rc::gen::inRange(1, 300) / 100.0;
    const double before = p->time().tpot_ms->value;
    p->request.cluster.device.bandwidth_bytes_per_second *= more;
    RC_ASSERT(p->time().tpot_ms->value <= before);
    for (auto& peak : p->request.cluster.device.peak_flops)
      if (peak) *peak *= more;
    RC_ASSERT(p->time().ttft_ms->value <= before * 1e6);
  }));
}

TEST(CostStep, MoreTokensAreNeverFaster) {
  const std::string format =
      R"({"model": "%M", "hardware": "h200-sxm-141gb", "gpus": 8, "task": "chat", "engine": "sglang", "weights": "native", "kv": "bf16", "tp": 8, "ep": 1, "batch": %B, "input": %I, "output": 64})";
  for (const char* model : {"r1", "r1-distill-llama-70b"}) {
    double tpot = 0, ttft = 0;
    for (const int batch : {1, 2, 3, 8, 17, 64, 200}) {
      std::string line = format;
      line.replace(line.find("%M"), 2, model);
      line.replace(line.find("%B"), 2, std::to_string(batch));
      line.replace(line.find("%I"), 2, "512");
      const auto p = priced(line);
      ASSERT_NE(p, nullptr);
      const TimeEstimate t = p->time();
      EXPECT_GE(t.tpot_ms->value, tpot) << model << batch;
      EXPECT_GE(t.ttft_ms->value, ttft) << model << batch;
      tpot = t.tpot_ms->value, ttft = t.ttft_ms->value;
    }
    double longer = 0, prompt = 0;
    for (const int input : {1, 64, 1024, 4096, 20000}) {
      std::string line = format;
      line.replace(line.find("%M"), 2, model);
      line.replace(line.find("%B"), 2, "8");
      line.replace(line.find("%I"), 2, std::to_string(input));
      const auto p = priced(line);
      ASSERT_NE(p, nullptr);
      const TimeEstimate t = p->time();
      EXPECT_GE(t.tpot_ms->value, longer) << model << input;
      EXPECT_GE(t.ttft_ms->value, prompt) << model << input;
      longer = t.tpot_ms->value, prompt = t.ttft_ms->value;
    }
  }
}

TEST(CostStep, CollectivesGrowWithBytesAndRanks) {
  LinkRates link{450e9, 7e-6, 3e-7, 280e9, 1.2e-5, 5e-7, 340e9, 330e9, 370e9};
  EXPECT_EQ(all_reduce_seconds(link, 1, 1e6), 0);
  EXPECT_LT(all_reduce_seconds(link, 2, 1e4), all_reduce_seconds(link, 8, 1e4));
  EXPECT_LT(all_reduce_seconds(link, 8, 1e4), all_reduce_seconds(link, 8, 1e7));
  // A ring moves 2 (n-1)/n of the bytes through each device.
  const double large = 1e10;
  EXPECT_NEAR(all_reduce_seconds(link, 4, large), 1.5 * large / 340e9, 1e-4);
  EXPECT_NEAR(all_gather_seconds(link, 4, large), 0.75 * large / 340e9, 1e-4);
}

TEST(CostStep, PlainAndKeptPathsAgree) {
  const auto p = priced(kChat);
  ASSERT_NE(p, nullptr);
  p->inputs.request = &p->request;
  const TimeEstimate kept = estimate_time(p->inputs), again = estimate_time(p->inputs), plain = p->time();
  EXPECT_EQ(kept.tpot_ms->value, again.tpot_ms->value);
  EXPECT_EQ(kept.tpot_ms->value, plain.tpot_ms->value);
  EXPECT_EQ(kept.ttft_ms->value, plain.ttft_ms->value);
}

TEST(CostStep, RangesHoldTheValueAndWidenWithDoubt) {
  const auto known = priced(kChat);
  ASSERT_NE(known, nullptr);
  const TimeEstimate t = known->time();
  EXPECT_EQ(t.provenance, ProvenanceTier::kMeasuredSame);
  EXPECT_LT(t.tpot_ms->low, t.tpot_ms->value);
  EXPECT_GT(t.tpot_ms->high, t.tpot_ms->value);
  known->curves.tier = ProvenanceTier::kDefault;
  known->engine.measured = false;
  const TimeEstimate doubtful = known->time();
  EXPECT_EQ(doubtful.provenance, ProvenanceTier::kDefault);
  EXPECT_TRUE(doubtful.engine_fell_back);
  EXPECT_LT(doubtful.tpot_ms->low, t.tpot_ms->low);
  EXPECT_GT(doubtful.tpot_ms->high, t.tpot_ms->high);
}

}  // namespace
}  // namespace fathom::plan
