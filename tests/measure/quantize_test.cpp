// Golden checkpoints quantized, loaded again and run: what the codes mean must come out the same however they are read.
#include "weights/quantize.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>

#include "base/files.h"
#include "base/json.h"
#include "measure/session.h"
#include "support/paths.h"
#include "weights/checkpoint.h"

namespace fathom::measure {
namespace {
using tensor::WeightCode;

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "fathom-quantize-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Path operator/(std::string_view name) const { return path_ / name; }

 private:
  Path path_;
};

// Logits of all tokens, `chunk` at a time.
std::vector<float> logits(const Path& model, const std::string& device, const std::string& weights, std::int64_t tokens,
                          std::int64_t chunk) {
  SessionOptions options{.model = model.string(), .device = device, .weights = weights, .kv = "f32", .threads = 1};
  options.engine.context = 64;
  options.engine.prefill_chunk = options.engine.logit_rows = chunk;
  auto session = open_session(options);
  EXPECT_TRUE(session) << error_text(session.error());
  if (!session) return {};
  EXPECT_EQ(session->engine->planned().total(), session->engine->allocated().total());
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<std::int32_t>(i * 37 % session->spec.vocabulary));
  std::vector<float> all;
  for (std::int64_t at = 0; at < tokens; at += chunk) {
    const engine::SlotTokens part{0, std::span(ids).subspan(static_cast<std::size_t>(at),
                                                            static_cast<std::size_t>(std::min(chunk, tokens - at)))};
    const auto rows = session->engine->step(std::span(&part, 1), engine::Logits::kAll);
    EXPECT_TRUE(rows) << error_text(rows.error());
    if (!rows) return {};
    all.insert(all.end(), rows->begin(), rows->end());
  }
  return all;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.empty() || a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}
double largest(const std::vector<float>& a) {
  double most = 0;
  for (const float x : a) most = std::max(most, std::fabs(static_cast<double>(x)));
  return most;
}

struct Way {
  const char* name;
  weights::QuantizeOptions options;
  double error;
};
const Way kWays[] = {
    {"fp8", {.to = WeightCode::kE4m3}, 0.03},
    {"fp8_weight_only", {.to = WeightCode::kE4m3, .weight_only = true}, 0.03},
    {"int8", {.to = WeightCode::kInt8}, 0.01},
    {"int4", {.to = WeightCode::kUint4}, 0.15},
    {"int4_asymmetric", {.to = WeightCode::kUint4, .asymmetric = true}, 0.15},
};

class Quantized : public testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(Quantized, RunsAsItsCodesMean) {
  const Way& way = kWays[std::get<1>(GetParam())];
  const Path source = test::fixtures() / "golden" / std::get<0>(GetParam());
  const Folder folder;
  const auto report = weights::quantize_checkpoint(source, folder / "q", way.options);
  ASSERT_TRUE(report) << error_text(report.error());
  EXPECT_GT(report->relative_error, 0);
  EXPECT_LT(report->relative_error, way.error);
  const Path model = folder / "q";
  // Up to 16 tokens a pass activations are as they are: three readers of the codes agree.
  const auto native = logits(model, "reference", "native", 24, 12), widened = logits(model, "reference", "f32", 24, 12),
             fast = logits(model, "cpu", "native", 24, 12);
  EXPECT_LE(largest_difference(native, widened), 1e-4);
  EXPECT_LE(largest_difference(fast, native), 1e-3);
  // The quantized model is still the model.
  const auto before = logits(source, "reference", "native", 24, 12);
  const double drift = largest_difference(native, before) / largest(before);
  EXPECT_GT(drift, 0);
  const bool routes =
      std::get<0>(GetParam())[0] == 'v';  // a token of these tiny models that goes to another expert is another token
  EXPECT_LT(drift, routes ? 1.5 : 30 * way.error) << drift;
  if (std::string_view(way.name).starts_with("int4") || way.options.weight_only) return;
  // More tokens: activations are rounded a token, by both alike; a code that falls on the other side of a tie moves a
  // logit a little.
  const auto rounded = logits(model, "reference", "native", 24, 24),
             rounded_fast = logits(model, "cpu", "native", 24, 24);
  EXPECT_GT(largest_difference(rounded, native), 0);
  EXPECT_LE(largest_difference(rounded_fast, rounded), 0.02 * largest(rounded));
}
INSTANTIATE_TEST_SUITE_P(Golden, Quantized,
                         testing::Combine(testing::Values("llama3-gqa", "qwen2-bias", "v2-lite", "v3", "v32", "v4"),
                                          testing::Range(0, 5)),
                         [](const auto& info) {
                           std::string name =
                               std::string(std::get<0>(info.param)) + "_" + kWays[std::get<1>(info.param)].name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(Quantize, WritesTheLayoutThatOthersRead) {
  const Folder folder;
  const auto report = weights::quantize_checkpoint(test::fixtures() / "golden" / "v3", folder / "q",
                                                   {.to = WeightCode::kUint4, .asymmetric = true});
  ASSERT_TRUE(report) << error_text(report.error());
  const auto checkpoint = weights::Checkpoint::open(folder / "q");
  ASSERT_TRUE(checkpoint) << error_text(checkpoint.error());
  const auto shape_of = [&](const char* name) {
    const auto place = checkpoint->find(name);
    return place ? place.tensor->type + weights::shape_text(place.tensor->dims()) : std::string("none");
  };
  const std::string p = "model.layers.2.mlp.experts.5.gate_proj.";  // [48, 64]
  EXPECT_EQ(shape_of((p + "weight_packed").c_str()), "I32[48, 8]");
  EXPECT_EQ(shape_of((p + "weight_scale").c_str()), "BF16[48, 1]");
  EXPECT_EQ(shape_of((p + "weight_shape").c_str()), "I64[2]");
  EXPECT_EQ(shape_of((p + "weight_zero_point").c_str()), "I32[6, 1]");
  EXPECT_EQ(shape_of((p + "weight").c_str()), "none");
  EXPECT_EQ(shape_of("lm_head.weight"), "F32[512, 64]");
  EXPECT_EQ(shape_of("model.layers.2.mlp.gate.weight"), "F32[16, 64]");
  EXPECT_EQ(shape_of("model.layers.0.mlp.down_proj.weight"), "F32[64, 192]");  // 192 columns do not divide
  EXPECT_EQ(report->indivisible.size(), 2u);
  const auto text = read_file(folder / "q/config.json", 1 << 20);
  ASSERT_TRUE(text);
  const auto config = parse_json(*text, "config.json");
  ASSERT_TRUE(config);
  const Json& quantization = (*config)["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "compressed-tensors");
  EXPECT_EQ(quantization["format"], "pack-quantized");
  EXPECT_EQ(quantization["config_groups"]["group_0"]["weights"]["group_size"], 128);
  EXPECT_EQ(quantization["config_groups"]["group_0"]["weights"]["symmetric"], false);
  const auto ignored = quantization["ignore"].get<std::vector<std::string>>();
  for (const char* module : {"lm_head", "model.layers.2.mlp.gate", "model.layers.0.mlp.down_proj"})
    EXPECT_NE(std::find(ignored.begin(), ignored.end(), module), ignored.end()) << module;
}

TEST(Quantize, LeavesWhatItIsToldToLeave) {
  const Folder folder;
  const auto report = weights::quantize_checkpoint(
      test::fixtures() / "golden" / "llama3-gqa", folder / "q",
      {.to = WeightCode::kInt8, .ignore = {"re:.*self_attn.*", "model.layers.0.mlp.up_proj"}});
  ASSERT_TRUE(report) << error_text(report.error());
  const auto checkpoint = weights::Checkpoint::open(folder / "q");
  ASSERT_TRUE(checkpoint);
  EXPECT_EQ(checkpoint->find("model.layers.0.self_attn.q_proj.weight").tensor->type, "F32");
  EXPECT_EQ(checkpoint->find("model.layers.0.mlp.up_proj.weight").tensor->type, "F32");
  EXPECT_EQ(checkpoint->find("model.layers.1.mlp.up_proj.weight").tensor->type, "I8");
  EXPECT_EQ(logits(folder / "q", "cpu", "native", 8, 8).empty(), false);
}

TEST(Quantize, NamesWhatItCannotDo) {
  const Folder folder;
  const Path source = test::fixtures() / "golden" / "llama3-gqa";
  const auto key = [&](const Path& model, const weights::QuantizeOptions& options) {
    const auto report = weights::quantize_checkpoint(model, folder / "q", options);
    return report ? std::string("done") : report.error().key;
  };
  EXPECT_EQ(key(source, {.to = WeightCode::kInt8, .asymmetric = true}), "weights.quantize_asymmetric");
  EXPECT_EQ(key(source, {.to = WeightCode::kInt8, .weight_only = true}), "weights.quantize_int8_weights");
  EXPECT_EQ(key(source, {.ignore = {"re:.*"}}), "weights.quantize_nothing");
  EXPECT_EQ(key(source, {.ignore = {"re:("}}), "model.quantization_pattern");
  EXPECT_EQ(key(source / "config.json", {}), "weights.quantize_folder");
  EXPECT_FALSE(std::filesystem::exists(folder / "q"));
  // A NaN among the weights.
  std::filesystem::copy(source, folder / "damaged");
  const auto checkpoint = weights::Checkpoint::open(folder / "damaged");
  ASSERT_TRUE(checkpoint);
  const auto place = checkpoint->find("model.layers.1.mlp.up_proj.weight");
  auto bytes = read_file(place.file->path(), 1 << 28);
  ASSERT_TRUE(bytes);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes->data() + place.tensor->begin + 40, &nan, 4);
  ASSERT_TRUE(write_file_atomic(place.file->path(), *bytes));
  const auto report = weights::quantize_checkpoint(folder / "damaged", folder / "q", {});
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().key, "weights.not_finite");
  EXPECT_NE(error_text(report.error()).find("model.layers.1.mlp.up_proj.weight"), std::string::npos);
  EXPECT_NE(error_text(report.error()).find("10"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder / "q"));
}

}  // namespace
}  // namespace fathom::measure
