#include "weights/synth.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <set>
#include <thread>

#include "base/json.h"
#include "support.h"
#include "weights/conversion.h"
#include "weights/generate.h"

namespace fathom::weights {
namespace {
using namespace test;  // NOLINT
using tensor::WeightFormat;

constexpr const char* kTinyV3 =
    R"({"model_type":"deepseek_v3","hidden_size":128,"intermediate_size":256,"moe_intermediate_size":128,"num_hidden_layers":3,
  "num_attention_heads":2,"num_key_value_heads":2,"vocab_size":640,"max_position_embeddings":512,"rms_norm_eps":1e-6,"rope_theta":10000,"q_lora_rank":128,
  "kv_lora_rank":128,"qk_nope_head_dim":64,"qk_rope_head_dim":32,"v_head_dim":64,"n_routed_experts":8,"n_shared_experts":1,"num_experts_per_tok":2,
  "first_k_dense_replace":1,"n_group":2,"topk_group":1,"norm_topk_prob":true,"routed_scaling_factor":2.5,"num_nextn_predict_layers":1,"bos_token_id":0,"eos_token_id":1,
  "torch_dtype":"bfloat16","quantization_config":{"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","weight_block_size":[128,128]}})";

constexpr const char* kTinyV4 =
    R"({"model_type":"deepseek_v4","hidden_size":128,"moe_intermediate_size":64,"num_hidden_layers":4,"num_attention_heads":4,
  "num_key_value_heads":1,"head_dim":64,"qk_rope_head_dim":16,"q_lora_rank":64,"o_lora_rank":64,"o_groups":2,"n_routed_experts":8,"n_shared_experts":1,
  "num_experts_per_tok":2,"index_head_dim":32,"index_n_heads":4,"index_topk":16,"sliding_window":16,"num_hash_layers":1,"hc_mult":4,"vocab_size":384,
  "max_position_embeddings":512,"rope_theta":10000,"compress_rope_theta":160000,"compress_ratios":[0,4,128,4,0],"num_nextn_predict_layers":1,"expert_dtype":"fp4",
  "torch_dtype":"bfloat16","quantization_config":{"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","weight_block_size":[128,128]}})";

model::ModelSpec tiny(const char* config, std::optional<std::int64_t> layers = {}, std::optional<DType> dtype = {}) {
  const auto parsed = model::parse_config(config, "test");
  EXPECT_TRUE(parsed) << error_text(parsed.error());
  const auto spec = synthetic_spec(*parsed, layers, dtype);
  EXPECT_TRUE(spec) << error_text(spec.error());
  return *spec;
}

std::string arena_of(const LoadedWeights& weights) {
  std::string out;  // tensors only: what lies between them is never written
  for (std::size_t i = 0; i < weights.set.all().size(); ++i) {
    const tensor::Weight& w = weights.set.all()[i];
    const Bytes scales = scale_bytes(w.format, w.rows, w.cols);
    out.append(reinterpret_cast<const char*>(w.data), tensor::weight_bytes(w.format, w.rows, w.cols) - scales);
    if (scales > 0) out.append(reinterpret_cast<const char*>(w.scales), scales);
  }
  return out;
}

TEST(Random, DoesNotDependOnWhereOneBegins) {
  const RandomStream stream(7, "a");
  std::vector<float> all(200'000), part(70'000);
  stream.normals(0, 0, 1, all);
  stream.normals(60'001, 0, 1, part);
  for (std::size_t i = 0; i < part.size(); ++i) ASSERT_EQ(part[i], all[60'001 + i]);
  std::vector<std::uint16_t> bits(100), tail(50);
  stream.bits16(65'500, bits);
  stream.bits16(65'550, tail);
  EXPECT_TRUE(std::equal(tail.begin(), tail.end(), bits.begin() + 50));
}

TEST(Random, HasTheBellsMoments) {
  std::vector<float> x(1 << 20), y(1 << 20), z(1 << 20);
  RandomStream(1, "a").normals(0, 0, 1, x);
  RandomStream(1, "b").normals(0, 0, 1, y);
  RandomStream(2, "a").normals(0, 0, 1, z);
  double mean = 0, square = 0, next = 0, names = 0, seeds = 0, runs = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    mean += x[i];
    square += static_cast<double>(x[i]) * x[i];
    next += static_cast<double>(x[i]) * x[(i + 1) % x.size()];
    runs += static_cast<double>(x[i]) * x[(i + 65536) % x.size()];
    names += static_cast<double>(x[i]) * y[i];
    seeds += static_cast<double>(x[i]) * z[i];
  }
  const auto n = static_cast<double>(x.size());
  EXPECT_NEAR(mean / n, 0, 0.005);
  EXPECT_NEAR(square / n, 1, 0.005);
  for (const double correlation : {next, runs, names, seeds}) EXPECT_NEAR(correlation / n, 0, 0.005);
}

TEST(Generate, QuantizedWeightsHaveTheDeviationOfPlainOnes) {
  for (const WeightFormat format : {WeightFormat::fp8_block128, WeightFormat::fp8_block128_e8m0,
                                    WeightFormat::fp8_block32_e8m0, WeightFormat::mxfp4}) {
    model::WeightTable table;
    table.add(matrix("x.weight", 512, 1024, format));
    MemoryBackend backend;
    const auto made = synthesize_in_memory(table, backend, {.seed = 3});
    ASSERT_TRUE(made);
    const tensor::Weight& w = made->set[0];
    const ScaleBlock block = scale_block(format);
    double square = 0;
    for (std::int64_t r = 0; r < w.rows; ++r) {
      for (std::int64_t c = 0; c < w.cols; ++c) {
        const std::int64_t i = r * w.cols + c, s = r / block.rows * (w.cols / block.cols) + c / block.cols;
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.data);
        const float scale = format == WeightFormat::fp8_block128 ? reinterpret_cast<const float*>(w.scales)[s]
                                                                 : e8m0_to_f32(static_cast<std::uint8_t>(w.scales[s]));
        static constexpr float kFp4[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
        const double value =
            scale * (format == WeightFormat::mxfp4 ? kFp4[bytes[i / 2] >> (i % 2 * 4) & 7] : f8e4m3_to_f32(bytes[i]));
        square += value * value;
      }
    }
    EXPECT_NEAR(std::sqrt(square / (512 * 1024)), 1.2 / 32, 0.05 * 1.2 / 32) << tensor::weight_format_name(format);
  }
}

TEST(Generate, HashTablesChooseDifferentExperts) {
  model::WeightTable table;
  table.add(matrix("gate.weight", 8, 16, WeightFormat::bf16, model::WeightClass::kRouter));
  table.add(matrix("tid2eid", 3000, 3, WeightFormat::i64, model::WeightClass::kHashTable));
  MemoryBackend backend;
  const auto made = synthesize_in_memory(table, backend);
  ASSERT_TRUE(made);
  const auto* ids = reinterpret_cast<const std::int64_t*>(made->set[1].data);
  std::vector<int> hits(8, 0);
  for (int t = 0; t < 3000; ++t) {
    const std::set<std::int64_t> chosen(ids + 3 * t, ids + 3 * t + 3);
    ASSERT_EQ(chosen.size(), 3u);
    for (const std::int64_t e : chosen) ++hits.at(static_cast<std::size_t>(e));
  }
  for (const int n : hits) EXPECT_NEAR(n, 1125, 150);
}

class SynthRoundTrip : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(SynthRoundTrip, DiskAndMemoryAgreeWhateverTheThreads) {
  const auto [config, choice] = GetParam();
  const std::optional<DType> dtype = choice == 0 ? std::nullopt : std::optional(choice == 1 ? DType::bf16 : DType::f32);
  const model::ModelSpec spec = tiny(config, 3, dtype);
  const Folder folder;
  const auto one = synthesize_checkpoint(spec, folder / "one", {.seed = 5, .threads = 1});
  const auto three = synthesize_checkpoint(spec, folder / "three", {.seed = 5, .threads = 3});
  ASSERT_TRUE(one) << error_text(one.error());
  ASSERT_TRUE(three);
  EXPECT_EQ(slurp(folder / "one" / "model.safetensors"), slurp(folder / "three" / "model.safetensors"));
  EXPECT_EQ(folder.entries(), 2u);
  const auto reread = model::load_config(folder / "one");
  ASSERT_TRUE(reread) << error_text(reread.error());
  const auto architecture = model::make_architecture(*reread);
  ASSERT_TRUE(architecture);
  MemoryBackend backend;
  const auto loaded = load_weights(**architecture, folder / "one", backend, {.check_finite = true});
  ASSERT_TRUE(loaded) << error_text(loaded.error());
  const auto made = synthesize_in_memory((*architecture)->weights(), backend, {.seed = 5, .threads = 2});
  ASSERT_TRUE(made);
  EXPECT_EQ(arena_of(*loaded), arena_of(*made));
  EXPECT_EQ(made->arena->bytes(), made->plan.arena_bytes);
  EXPECT_NE(arena_of(*made), arena_of(*synthesize_in_memory((*architecture)->weights(), backend, {.seed = 6})));
  EXPECT_EQ(one->bytes, std::filesystem::file_size(folder / "one" / "model.safetensors"));
  EXPECT_EQ(loaded->plan.tensor_bytes,
            model::model_sizes((*architecture)->weights(), spec.routing.top_k).checkpoint_bytes);
}
INSTANTIATE_TEST_SUITE_P(All, SynthRoundTrip,
                         ::testing::Combine(::testing::Values(kTinyV3, kTinyV4), ::testing::Values(0, 1, 2)));

TEST(Synth, RanksOfALayoutHoldSlicesOfTheWhole) {
  const model::ModelSpec spec = tiny(kTinyV3, {}, DType::bf16);
  const Folder folder;
  ASSERT_TRUE(synthesize_checkpoint(spec, folder / "m", {.seed = 1}));
  MemoryBackend backend;
  for (int rank = 0; rank < 2; ++rank) {
    const auto part = model::make_architecture(spec, {.tp = 2, .tp_rank = rank, .ep = 2, .ep_rank = rank});
    ASSERT_TRUE(part) << error_text(part.error());
    const auto loaded = load_weights(**part, folder / "m", backend);
    ASSERT_TRUE(loaded) << error_text(loaded.error());
    EXPECT_EQ(arena_of(*loaded), arena_of(*synthesize_in_memory((*part)->weights(), backend, {.seed = 1})));
  }
}

TEST(Synth, ConfigsSayWhatWasWritten) {
  const model::ModelSpec native = tiny(kTinyV3, 2), plain = tiny(kTinyV3, 2, DType::f32);
  EXPECT_EQ(native.layers, 2);
  EXPECT_EQ(native.mtp_layers, 0);
  EXPECT_EQ(native.linear_format, WeightFormat::fp8_block128);
  // A release that is FP8 stays what it is when FP8 is asked for.
  const auto fp8 = quantized_spec(native, {}, tensor::WeightCode::kE4m3);
  ASSERT_TRUE(fp8) << error_text(fp8.error());
  EXPECT_EQ(fp8->linear_format, WeightFormat::fp8_block128);
  EXPECT_EQ(fp8->block_activations, tensor::Activations::kPerGroup);
  EXPECT_EQ(plain.linear_format, WeightFormat::f32);
  EXPECT_EQ(plain.plain_format, WeightFormat::f32);
  const model::ModelSpec v4 = tiny(kTinyV4);
  EXPECT_EQ(v4.expert_format, WeightFormat::mxfp4);
  EXPECT_EQ(v4.mtp_layers, 0);
  EXPECT_EQ(tiny(kTinyV4, {}, DType::bf16).expert_format, WeightFormat::bf16);
  const Folder folder;
  ASSERT_TRUE(synthesize_checkpoint(native, folder / "m"));
  const auto generation = parse_json(slurp(folder / "m" / "generation_config.json"), "generation_config.json");
  ASSERT_TRUE(generation);
  EXPECT_EQ((*generation)["eos_token_id"], 1);
  const auto checkpoint = Checkpoint::open(folder / "m");
  ASSERT_TRUE(checkpoint);
  EXPECT_TRUE(checkpoint->find("model.layers.1.mlp.experts.7.down_proj.weight_scale_inv"));
}

TEST(Synth, TheDefaultIsOfMiddlingSizeAndModest) {
  const auto spec = default_model();
  ASSERT_TRUE(spec) << error_text(spec.error());
  const auto architecture = model::make_architecture(*spec);
  ASSERT_TRUE(architecture);
  const auto sizes = model::model_sizes((*architecture)->weights(), spec->routing.top_k);
  EXPECT_GT(sizes.parameters_total, 150'000'000u);
  EXPECT_LT(sizes.parameters_total, 250'000'000u);
}

TEST(Synth, ModelsAreFoundByEveryKindOfName) {
  EXPECT_EQ(find_model_spec("default")->model_type, "deepseek_v3");
  EXPECT_EQ(find_model_spec("deepseek-ai/DeepSeek-V3")->layers, 61);
  const Folder folder;
  spit(folder / "config.json", kTinyV4);
  EXPECT_EQ(find_model_spec(folder.path().string())->model_type, "deepseek_v4");
  EXPECT_EQ(find_model_spec((folder / "config.json").string())->model_type, "deepseek_v4");
  EXPECT_EQ(outcome(find_model_spec((folder / "other.json").string())), "base.cannot_open");
  EXPECT_FALSE(find_model_spec("no such model"));
}

TEST(Synth, ReportsTroubleAndLeavesNothing) {
  const model::ModelSpec spec = tiny(kTinyV3);
  const Folder folder;
  EXPECT_EQ(outcome(synthesize_checkpoint(spec, folder / "m", {.progress = [](Bytes, Bytes) { return false; }})),
            "weights.interrupted");
  EXPECT_EQ(folder.entries(), 0u);
  ASSERT_TRUE(synthesize_checkpoint(spec, folder / "m"));
  EXPECT_EQ(outcome(synthesize_checkpoint(spec, folder / "m")), "weights.folder_exists");
  EXPECT_EQ(outcome(synthesize_checkpoint(spec, folder / "m", {.overwrite = true})), "ok");
}

// kill -9 in the middle: no folder, and the next run takes away what was left.
TEST(Synth, AKilledRunLeavesNoFolder) {
  const auto spec = default_model();
  ASSERT_TRUE(spec);
  const Folder folder;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    SynthOptions options{.threads = 1};
    options.progress = [&](Bytes done, Bytes) {
      if (done > 0 && ::write(ready[1], "x", 1) != 1) ::_exit(1);
      if (done > 0) ::pause();  // the worker goes on; the killer is on its way
      return true;
    };
    (void)synthesize_checkpoint(*spec, folder / "m", options);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(std::filesystem::exists(folder / "m"));
  EXPECT_EQ(folder.entries(), 1u);
  ASSERT_TRUE(synthesize_checkpoint(tiny(kTinyV3), folder / "m"));
  EXPECT_EQ(folder.entries(), 1u);
  EXPECT_TRUE(Checkpoint::open(folder / "m"));
}

}  // namespace
}  // namespace fathom::weights
