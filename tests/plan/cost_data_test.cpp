// Profiles and curves: what is in the binary reads, and what is wrong in a user's file is said.
#include "plan/cost_data.h"

#include <set>

#include "cost_support.h"

namespace fathom::plan {
namespace {

TEST(CostData, EveryEngineOfTheContractIsThere) {
  for (const char* name :
       {"fathom", "vllm", "sglang", "trtllm", "llama.cpp", "ik_llama.cpp", "transformers", "mlx", "mlc", "calm",
        "exllama", "megatron", "deepspeed", "fsdp", "torchtitan", "torchtune", "llm-foundry", "litgpt"}) {
    const auto found = find_engine(name);
    EXPECT_TRUE(found.has_value()) << name;
  }
  const auto unknown = find_engine("vlllm");
  ASSERT_FALSE(unknown.has_value());
  EXPECT_EQ(unknown.error().key, "plan_cost.unknown_engine");
}

TEST(CostData, FiguresArePhysical) {
  const auto profiles = engine_profiles();
  ASSERT_TRUE(profiles.has_value());
  for (const EngineProfile& p : *profiles) {
    EXPECT_LE(p.burst, 0.5) << p.name;
    EXPECT_LE(p.spread, 1) << p.name;
    EXPECT_LE(p.host.step, 0.02) << p.name;
    EXPECT_TRUE(!p.measured || !p.sources.empty()) << p.name;
    for (const double overlap : {p.training.gradient_overlap, p.training.gather_overlap, p.training.tensor_overlap,
                                 p.training.expert_overlap, p.training.pipeline_overlap})
      EXPECT_LE(overlap, 1) << p.name;
  }
  const auto tables = curve_tables();
  ASSERT_TRUE(tables.has_value());
  std::set<std::string> ids;
  for (const DeviceCurves& c : (*tables)->devices) {
    EXPECT_TRUE(ids.insert(c.id).second) << c.id;
    EXPECT_GT(c.stream, 0.3) << c.id;
    EXPECT_LE(c.stream, 1) << c.id;
    EXPECT_LE(c.attention, 1) << c.id;
    for (const double share : c.gemm)
      EXPECT_LE(share, 1.1) << c.id;  // boards run above the clock that peaks are stated at
    EXPECT_TRUE(!c.measured || !c.sources.empty()) << c.id;
  }
}

TEST(CostData, MistakesAreNamed) {
  EngineProfile profile;
  const auto error_of = [&](const char* text) {
    const Status status = read_record(*parse_json(text, "x"), "x", profile);
    return status ? std::string() : status.error().key;
  };
  EXPECT_EQ(error_of(R"({"host": {"step": 0.001}})"), "");
  EXPECT_EQ(profile.host.step, 0.001);
  EXPECT_EQ(error_of(R"({"host": {"stepp": 0.001}})"), "plan_cost.unknown_field");
  EXPECT_EQ(error_of(R"({"host": {"step": "fast"}})"), "plan_cost.bad_field");
  EXPECT_EQ(error_of(R"({"host": {"step": -1}})"), "plan_cost.bad_field");
  EXPECT_EQ(error_of(R"({"scheduler": "magic"})"), "plan_cost.bad_field");
  EXPECT_EQ(error_of(R"([1])"), "plan_cost.not_an_object");
}

TEST(CostData, HardwareWithoutCurvesTakesASiblings) {
  const auto p = priced(
      R"({"model": "r1-distill-qwen-7b", "hardware": "rtx-5080", "gpus": 1, "task": "chat", "engine": "llama.cpp", "weights": "q4_k_m", "input": 512, "output": 128})");
  ASSERT_NE(p, nullptr);
  EXPECT_EQ(p->curves.tier, ProvenanceTier::kMeasuredSibling);
  EXPECT_GE(p->time().provenance, ProvenanceTier::kMeasuredSibling);
  const auto far = priced(
      R"({"model": "r1-distill-qwen-7b", "hardware": "ascend-910b3", "gpus": 1, "task": "chat", "engine": "vllm", "weights": "bf16", "input": 512, "output": 128})");
  ASSERT_NE(far, nullptr);
  EXPECT_EQ(far->time().provenance, ProvenanceTier::kDefault);
}

}  // namespace
}  // namespace fathom::plan
