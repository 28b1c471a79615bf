#include "measure/kernels.h"

#include <gtest/gtest.h>

#include <cmath>

#include "measure/predict.h"
#include "weights/synth.h"

namespace fathom::measure {
namespace {

TEST(Kernels, ShapesAreTheModels) {
  const auto spec = weights::default_model();
  ASSERT_TRUE(spec.has_value());
  const auto shapes = shapes_of(*spec, tensor::WeightFormat::bf16);
  ASSERT_TRUE(shapes.has_value());
  EXPECT_EQ(shapes->hidden, spec->hidden);
  EXPECT_EQ(shapes->experts, spec->routing.experts);
  EXPECT_EQ(shapes->prefill.kv_heads, spec->heads) << "latents are expanded for prompts";
  EXPECT_EQ(shapes->decode.kv_heads, 1) << "and read as they are when decoding";
  EXPECT_EQ(shapes->decode.k_dim + shapes->decode.shared_dim, spec->kv_lora_rank + spec->qk_rope_dim);
  EXPECT_TRUE(shapes->decode.v_in_k);
  EXPECT_GT(shapes->matrices.size(), static_cast<std::size_t>(spec->layers)) << "dense products of every layer";
}

TEST(Kernels, EveryRateIsMeasured) {
  KernelShapes shapes{.matrices = {{96, 64}, {64, 96}},
                      .hidden = 64,
                      .inner = 48,
                      .experts = 6,
                      .top_k = 2,
                      .heads = 4,
                      .prefill = {},
                      .decode = {}};
  shapes.prefill = {.kv_heads = 2, .k_dim = 16, .shared_dim = 8, .v_dim = 12};
  shapes.decode = {.kv_heads = 1, .k_dim = 24, .shared_dim = 8, .v_dim = 20, .v_in_k = true};
  auto meter = KernelMeter::create("cpu", "", 0, shapes);
  ASSERT_TRUE(meter.has_value());
  for (const KernelLoad& load :
       {KernelLoad{.tokens = 1, .batch = 1, .context = 1}, KernelLoad{.tokens = 40, .batch = 3, .context = 70}}) {
    const plan::KernelRates rates = meter->measure(load);
    for (const double rate : {rates.product_flops, rates.stream_bytes, rates.expert_flops, rates.expert_bytes,
                              rates.attention_flops, rates.decode_attention_flops, rates.elementwise_bytes})
      EXPECT_TRUE(std::isfinite(rate) && rate > 0) << rate;
    EXPECT_EQ(rates.attention_keys, static_cast<double>(load.tokens));
  }
}

TEST(Kernels, PlansAreMadeOfThem) {
  const auto spec = weights::default_model();
  ASSERT_TRUE(spec.has_value());
  hardware::Machine machine;
  machine.cpu.usable_threads = machine.cpu.usable_cores = 2;
  machine.memory.total_bytes = 16 * kGiB;
  plan::KernelRates rates{.product_flops = 1e12,
                          .attention_flops = 1e11,
                          .attention_keys = 256,
                          .decode_attention_flops = 1e11,
                          .expert_flops = 5e11,
                          .stream_bytes = 2e10,
                          .expert_bytes = 2e10,
                          .elementwise_bytes = 4e10};
  const auto plain = predict(machine, *spec, "bf16", {.batch = 1, .prompt = 256, .generate = 16}, true, rates);
  ASSERT_TRUE(plain.has_value());
  rates.stream_bytes *= 2, rates.expert_bytes *= 2;
  const auto wider = predict(machine, *spec, "bf16", {.batch = 1, .prompt = 256, .generate = 16}, true, rates);
  ASSERT_TRUE(wider.has_value());
  const double ratio = *wider->best.time.decode_tokens_per_second / *plain->best.time.decode_tokens_per_second;
  EXPECT_GT(ratio, 1.6) << "decoding is reading weights";
  EXPECT_LE(ratio, 2.0);
  rates.product_flops *= 2, rates.expert_flops *= 2, rates.attention_flops *= 2;
  const auto faster = predict(machine, *spec, "bf16", {.batch = 1, .prompt = 256, .generate = 16}, true, rates);
  ASSERT_TRUE(faster.has_value());
  EXPECT_GT(*faster->best.time.prefill_tokens_per_second, 1.4 * *wider->best.time.prefill_tokens_per_second)
      << "prompts are arithmetic";
  EXPECT_EQ(wider->best.time.provenance, plan::ProvenanceTier::kMeasuredHere);
}

}  // namespace
}  // namespace fathom::measure
