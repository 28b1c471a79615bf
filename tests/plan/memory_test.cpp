// Memory plans: equal to the facts where they are exact, monotone where more cannot need less.
#include "plan/memory.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>

#include "plan/engine_profile.h"
#include "plan/memory_profile.h"
#include "support.h"

namespace fathom::plan {
namespace {

std::string line(const std::string& model, const std::string& rest) {
  return R"({"model": ")" + model + R"(", "hardware": "h200-sxm-141gb", )" + rest + "}";
}

MemoryPlan memory_of(const PlanRequest& request) {
  auto answer = make_plan(request);
  EXPECT_TRUE(answer.has_value()) << (answer ? "" : error_text(answer.error()));
  return answer ? answer->best.memory : MemoryPlan{};
}

TEST(Memory, WeightsOfOneDeviceAreTheMainModelsBytes) {
  for (const char* name : {"r1", "v3.2", "r1-distill-qwen-7b", "v4-flash", "deepseek-moe-16b-base"}) {
    const PlanRequest request = request_of(line(name, R"("gpus": 1, "task": "chat", "tp": 1)"));
    const MemoryPlan memory = memory_of(request);
    const model::ModelSizes& sizes = request.model->sizes();
    Bytes beside = sizes.checkpoint_bytes_mtp;
    for (const model::WeightEntry& entry : request.model->whole().weights().entries())
      if (entry.part == model::WeightPart::kVision)
        beside += tensor::weight_bytes(entry.native, entry.rows, entry.cols) * static_cast<Bytes>(entry.experts);
    EXPECT_EQ(memory.bytes.weights, sizes.checkpoint_bytes - beside) << name;
  }
}

TEST(Memory, CacheIsContextTimesTheFacts) {
  const MemoryPlan memory = memory_of(request_of(line(
      "r1",
      R"("gpus": 8, "task": "chat", "tp": 8, "engine": "fathom", "kv": "bf16", "batch": 3, "input": 1000, "output": 24)")));
  EXPECT_EQ(memory.bytes.kv, 3U * 1024 * 70272);  // latent caches are whole on every rank
  EXPECT_DOUBLE_EQ(memory.kv_bytes_per_token, 70272);
  const MemoryPlan split = memory_of(request_of(
      line("r1-distill-llama-70b",
           R"("gpus": 8, "task": "chat", "tp": 8, "engine": "fathom", "kv": "bf16", "input": 1000, "output": 24)")));
  EXPECT_EQ(split.bytes.kv, 1024U * 80 * 2 * 128 * 2);  // one of eight heads
}

TEST(Memory, KeyValueHeadsFewerThanRanksAreReplicated) {
  const auto kv = [](int tp) {
    return memory_of(request_of(line("r1-distill-qwen-7b", R"("gpus": )" + std::to_string(tp) +
                                                               R"(, "task": "chat", "engine": "fathom", "tp": )" +
                                                               std::to_string(tp))))
        .bytes.kv;
  };
  EXPECT_EQ(kv(1), 4 * kv(4));
  const auto qwen3 = [](int tp) {
    return memory_of(request_of(R"({"model": {"config": )" + tiny_config("qwen3") +
                                R"(}, "hardware": "h200-sxm-141gb", "gpus": )" + std::to_string(tp) +
                                R"(, "task": "chat", "engine": "fathom", "tp": )" + std::to_string(tp) + "}"))
        .bytes.kv;
  };
  EXPECT_EQ(qwen3(2), qwen3(8));
}

TEST(Memory, SumsAreSums) {
  for (const char* rest : {R"("gpus": 8, "task": "serve", "engine": "vllm", "batch": 32)",
                           R"("gpus": 8, "task": "chat", "engine": "llama.cpp", "weights": "q4_k_m")",
                           R"("gpus": 64, "task": "pretrain", "engine": "megatron", "global_batch": 512)",
                           R"("gpus": 8, "task": "qlora", "engine": "transformers")"}) {
    const MemoryBreakdown b = memory_of(request_of(line("r1-distill-llama-70b", rest))).bytes;
    EXPECT_EQ(b.allocated, b.weights + b.kv + b.activations + b.gradients + b.optimizer + b.workspace) << rest;
    EXPECT_GE(b.reserved, b.allocated) << rest;
    EXPECT_GE(b.total, b.reserved) << rest;
    EXPECT_EQ(b.capacity, request_of(line("r1-distill-llama-70b", rest)).cluster.device.capacity_bytes) << rest;
    EXPECT_GT(b.weights, 0U) << rest;
  }
}

// Rajbhandari et al. 2020, figure 1: 7.5 B parameters, Adam in mixed precision (K = 12), 64 devices.
TEST(Memory, ZeroStagesAreThoseOfThePaper) {
  const double parameters = 6738415616;  // generic/dense-7b
  const auto states = [&](int zero) {
    const MemoryPlan memory = memory_of(request_of(line(
        "generic/dense-7b",
        R"("gpus": 64, "task": "pretrain", "engine": "transformers", "tp": 1, "pp": 1, "dp": 64, "micro_batch": 1, "global_batch": 128, "seq": 128, "zero": )" +
            std::to_string(zero))));
    return static_cast<double>(memory.bytes.weights + memory.bytes.gradients + memory.bytes.optimizer);
  };
  EXPECT_NEAR(states(0), 16 * parameters, 1e3);
  EXPECT_NEAR(states(1), (4 + 12.0 / 64) * parameters, 1e3);
  EXPECT_NEAR(states(2), (2 + 14.0 / 64) * parameters, 1e3);
  EXPECT_LT(states(3), 2 * parameters);  // shards and the layers that are gathered
  EXPECT_GT(states(3), 16.0 / 64 * parameters);
}

TEST(Memory, MegatronsOptimizerIsEighteenBytesAParameter) {
  const MemoryBreakdown b =
      memory_of(
          request_of(line(
              "generic/dense-7b",
              R"("gpus": 1, "task": "pretrain", "engine": "megatron", "tp": 1, "pp": 1, "dp": 1, "zero": 0, "micro_batch": 1, "global_batch": 2, "seq": 128)")))
          .bytes;
  EXPECT_EQ(b.weights + b.gradients + b.optimizer, 18U * 6738415616U);
}

TEST(Memory, PipelinesHoldMicroBatchesInFlight) {
  const auto first_stage = [](int pp, int batches) {
    return memory_of(request_of(line(
        "generic/dense-65b",
        R"("gpus": )" + std::to_string(pp) +
            R"(, "task": "pretrain", "engine": "megatron", "tp": 1, "dp": 1, "vp": 1, "zero": 0, "recompute": "full", "micro_batch": 1, "pp": )" +
            std::to_string(pp) + R"(, "global_batch": )" + std::to_string(batches))));
  };
  EXPECT_EQ(first_stage(8, 64).in_flight, 8 - first_stage(8, 64).stage);
  EXPECT_EQ(first_stage(8, 2).in_flight, 2);
}

TEST(Memory, RecomputeAndOffloadSave) {
  const auto with = [](const std::string& more) {
    return memory_of(
               request_of(line(
                   "r1-distill-llama-8b",
                   R"("gpus": 8, "task": "full", "engine": "deepspeed", "tp": 1, "pp": 1, "dp": 8, "zero": 2, "micro_batch": 4, "seq": 8192, )" +
                       more)))
        .bytes;
  };
  const auto none = with(R"("recompute": "none")"), full = with(R"("recompute": "full")"),
             offloaded = with(R"("recompute": "full", "offload": "optimizer")");
  EXPECT_LT(full.activations, none.activations / 3);
  EXPECT_EQ(full.optimizer, none.optimizer);
  EXPECT_EQ(offloaded.optimizer, 0U);
  EXPECT_LT(offloaded.total, full.total);
}

TEST(Memory, AdaptersTrainLittle) {
  const auto full =
      memory_of(request_of(line(
                    "r1-distill-qwen-7b",
                    R"("gpus": 1, "task": "full", "engine": "transformers", "recompute": "full", "micro_batch": 1)")))
          .bytes;
  const auto lora =
      memory_of(request_of(line(
                    "r1-distill-qwen-7b",
                    R"("gpus": 1, "task": "lora", "engine": "transformers", "recompute": "full", "micro_batch": 1)")))
          .bytes;
  const auto qlora =
      memory_of(request_of(line(
                    "r1-distill-qwen-7b",
                    R"("gpus": 1, "task": "qlora", "engine": "transformers", "recompute": "full", "micro_batch": 1)")))
          .bytes;
  EXPECT_LT(lora.optimizer + lora.gradients, full.optimizer / 50);
  EXPECT_LT(lora.total, full.total / 3);
  EXPECT_LT(qlora.weights, lora.weights / 2);
}

TEST(Memory, WhyNotNamesWhatOverflows) {
  const auto answer = make_plan(request_of(line("r1", R"("gpus": 1, "task": "chat", "engine": "fathom", "tp": 1)")));
  ASSERT_TRUE(answer.has_value());
  EXPECT_FALSE(answer->best.memory.fits);
  EXPECT_EQ(answer->best.memory.over_category, MemoryCategory::kWeights);
  EXPECT_EQ(answer->best.memory.bytes.total - answer->best.memory.bytes.capacity, answer->best.memory.over_bytes);
  EXPECT_TRUE(answer->best.time.tpot_ms.has_value()) << "figures are given all the same";
  const auto cache = make_plan(request_of(
      line("deepseek-llm-7b-chat",
           R"("gpus": 1, "task": "chat", "engine": "llama.cpp", "batch": 512, "input": 4000, "output": 96)")));
  ASSERT_TRUE(cache.has_value());
  EXPECT_EQ(cache->best.memory.over_category, MemoryCategory::kKv);
}

TEST(Memory, LongestContextFitsAndOneMoreDoesNot) {
  for (const char* engine : {"fathom", "vllm", "llama.cpp", "transformers"}) {
    const std::string start =
        R"("gpus": 1, "task": "chat", "output": 1, "engine": ")" + std::string(engine) + R"(", "input": )";
    const std::int64_t most = memory_of(request_of(line("r1-distill-llama-8b", start + "100"))).max_context;
    EXPECT_GT(most, 10000) << engine;
    EXPECT_TRUE(memory_of(request_of(line("r1-distill-llama-8b", start + std::to_string(most - 1)))).fits) << engine;
    EXPECT_FALSE(memory_of(request_of(line("r1-distill-llama-8b", start + std::to_string(most)))).fits) << engine;
  }
}

// ---------------------------------------------------------------- properties

struct Ask {
  std::string model, engine;
};
const Ask kAsks[] = {{"r1-distill-qwen-7b", "vllm"},
                     {"r1", "sglang"},
                     {"v3.2", "fathom"},
                     {"v4-flash", "trtllm"},
                     {"deepseek-llm-67b-chat", "transformers"},
                     {"coder-33b", "llama.cpp"}};

RC_GTEST_PROP(MemoryProperty, MoreSequencesNeverNeedLess, ()) {
  const Ask& ask = kAsks[*rc::gen::inRange<std::size_t>(0, std::size(kAsks))];
  const auto low = *rc::gen::inRange<std::int64_t>(1, 400), more = *rc::gen::inRange<std::int64_t>(0, 400),
             input = *rc::gen::inRange<std::int64_t>(1, 20000);
  const auto at = [&](std::int64_t batch) {
    PlanRequest request = request_of(line(
        ask.model, R"("gpus": 8, "task": "chat", "tp": 8, "pp": 1, "dp": 1, "dp_attention": 1, "ep": 1, "engine": ")" +
                       ask.engine + "\""));
    request.batch = batch;
    request.input = input;
    Layout layout{.tp = 8, .expert_tp = 8};
    return plan_memory(request, layout)->bytes;
  };
  if (ask.model == "r1-distill-qwen-7b") RC_SUCCEED("28 heads do not divide by 8");
  const MemoryBreakdown a = at(low), b = at(low + more);
  RC_ASSERT(b.kv >= a.kv);
  RC_ASSERT(b.total >= a.total);
  RC_ASSERT(b.weights == a.weights);
}

RC_GTEST_PROP(MemoryProperty, MoreContextNeverNeedsLess, ()) {
  const Ask& ask = kAsks[*rc::gen::inRange<std::size_t>(1, std::size(kAsks))];
  const auto low = *rc::gen::inRange<std::int64_t>(1, 300000), more = *rc::gen::inRange<std::int64_t>(0, 300000);
  PlanRequest request = request_of(line(ask.model, R"("gpus": 8, "task": "chat", "engine": ")" + ask.engine + "\""));
  const Layout layout{.tp = 8, .expert_tp = 8};
  request.input = low;
  const MemoryPlan a = *plan_memory(request, layout);
  request.input = low + more;
  const MemoryPlan b = *plan_memory(request, layout);
  RC_ASSERT(b.bytes.kv >= a.bytes.kv);
  RC_ASSERT(b.bytes.total >= a.bytes.total);
  RC_ASSERT(b.max_context == a.max_context);
}

RC_GTEST_PROP(MemoryProperty, MoreLayersNeverNeedLess, ()) {
  const auto low = *rc::gen::inRange<int>(1, 40), more = *rc::gen::inRange<int>(0, 40);
  const auto at = [&](int layers) {
    std::string config = tiny_config("llama");
    const std::string was = "\"num_hidden_layers\": 5";
    config.replace(config.find(was), was.size(), "\"num_hidden_layers\": " + std::to_string(layers));
    return memory_of(request_of(R"({"model": {"config": )" + config +
                                R"(}, "hardware": "h200-sxm-141gb", "gpus": 1, "task": "chat", "engine": "fathom"})"))
        .bytes;
  };
  const MemoryBreakdown a = at(low), b = at(low + more);
  RC_ASSERT(b.weights >= a.weights);
  RC_ASSERT(b.kv >= a.kv);
  RC_ASSERT(b.total >= a.total);
}

RC_GTEST_PROP(MemoryProperty, MoreDevicesOfOneKindNeverNeedMoreOnEach, ()) {
  const Ask& ask = kAsks[*rc::gen::inRange<std::size_t>(1, std::size(kAsks))];
  const int kind = *rc::gen::inRange(0, 2), power = *rc::gen::inRange(0, 3);
  const auto at = [&](int size) {
    PlanRequest request = request_of(line(
        ask.model, R"("gpus": 64, "task": "chat", "input": 4096, "output": 512, "engine": ")" + ask.engine + "\""));
    request.cluster.devices = size;
    const Layout layout = kind == 0 ? Layout{.tp = size, .expert_tp = size} : Layout{.pp = size};
    return plan_memory(request, layout)->bytes;
  };
  const MemoryBreakdown fewer = at(1 << power), more = at(2 << power);
  RC_ASSERT(more.weights <= fewer.weights);
  RC_ASSERT(more.kv <= fewer.kv);
  RC_ASSERT(more.activations <= fewer.activations);
}

RC_GTEST_PROP(MemoryProperty, TrainingNeedsMoreForMore, ()) {
  const auto seq = *rc::gen::inRange<std::int64_t>(128, 16384), more = *rc::gen::inRange<std::int64_t>(0, 16384),
             micro = *rc::gen::inRange<std::int64_t>(1, 8);
  const std::string engine = *rc::gen::element<std::string>("megatron", "fsdp", "deepspeed", "transformers");
  const std::string recompute = *rc::gen::element<std::string>("none", "selective", "full");
  const auto at = [&](std::int64_t length, std::int64_t size) {
    PlanRequest request =
        request_of(line("r1-distill-llama-8b", R"("gpus": 8, "task": "full", "engine": ")" + engine + "\""));
    request.seq = length;
    const Layout layout{.tp = 2,
                        .dp = 4,
                        .expert_tp = 2,
                        .zero = 1,
                        .recompute = *parse_recompute(recompute),
                        .micro_batch = size,
                        .micro_batches = 4};
    return plan_memory(request, layout)->bytes;
  };
  RC_ASSERT(at(seq + more, micro).total >= at(seq, micro).total);
  RC_ASSERT(at(seq, micro + 1).total >= at(seq, micro).total);
}

}  // namespace
}  // namespace fathom::plan
