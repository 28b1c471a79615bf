// Requests: what they may hold, what is refused and with which words; layouts and their product.
#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include <random>

#include "plan/batch.h"
#include "plan/engine_profile.h"
#include "plan/json_line.h"
#include "plan/layout_space.h"
#include "plan/options.h"
#include "support.h"

namespace fathom::plan {
namespace {

using ::testing::HasSubstr;

const std::string kStart = R"({"model": "r1", "hardware": "8xH200", "task": "serve")";

TEST(Request, WhatIsLeftOutIsDefaulted) {
  const PlanRequest request = request_of(
      R"({"id": {"a": [1, "ü"]}, "model": "r1", "hardware": "8xH200", "task": "chat", "measured": {"any": ["thing"]}})");
  EXPECT_EQ(request.id_json, R"({"a": [1, "ü"]})");
  EXPECT_EQ(request.cluster.devices, 8);
  EXPECT_EQ(request.cluster.devices_per_node, 8);
  EXPECT_EQ(request.batch, 1);
  EXPECT_EQ(request.engine->name, "vllm");
  EXPECT_EQ(request_of(R"({"model": "r1", "hardware": "h200", "task": "qlora"})").engine->name, "transformers");
  EXPECT_TRUE(request.weights->native);
  EXPECT_EQ(request.mtp_drafts, 0);
  EXPECT_FALSE(request_of(kStart + "}").batch.has_value());
  EXPECT_EQ(request_of(R"({"model": "r1", "hardware": "h200", "task": "qlora"})").weights->name, "nf4");
  EXPECT_EQ(request_of(kStart + R"(, "gpus": 64})").cluster.devices, 64);
  EXPECT_EQ(request_of(kStart + R"(, "gpus": null, "kv": null})").cluster.devices, 8);
}

TEST(Request, EveryMistakeHasItsSentence) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "not one JSON object"},
      {"[]", "not one JSON object"},
      {"{\"model\": \"r1\"", "not one JSON object"},
      {"{\"model\": NaN}", "not one JSON object"},
      {"{\"model\": 01}", "not one JSON object"},
      {"{\"mod\xff\": 1}", "not one JSON object"},
      {R"({"hardware": "h200", "task": "chat"})", "'model' is missing"},
      {R"({"model": "r1", "task": "chat"})", "'hardware' is missing"},
      {R"({"model": "r1", "hardware": "h200"})", "'task' is missing"},
      {R"({"model": 7, "hardware": "h200", "task": "chat"})", "'model' should be"},
      {R"({"model": {"config": 7}, "hardware": "h200", "task": "chat"})", "'model' should be"},
      {R"({"model": {"config": {"model_type": "llama"}}, "hardware": "h200", "task": "chat"})", "hidden_size"},
      {R"({"model": "no-such-model", "hardware": "h200", "task": "chat"})", "no-such-model"},
      {R"({"model": "r1", "hardware": "h2000", "task": "chat"})", "h2000"},
      {kStart + R"(, "gpu": 8})", "did you mean gpus"},
      {kStart + R"(, "zebra": 8})", "unknown key 'zebra'"},
      {kStart + R"(, "tp": 8, "tp": 8})", "there twice"},
      {kStart + R"(, "gpus": 0})", "'gpus' is 0"},
      {kStart + R"(, "gpus": -1})", "'gpus' is -1"},
      {kStart + R"(, "gpus": 1e30})", "'gpus' is 1e30"},
      {kStart + R"(, "gpus": 8.5})", "'gpus' is 8.5"},
      {kStart + R"(, "gpus": "8"})", "'gpus' should be a whole number"},
      {kStart + R"(, "input": 99999999999})", "'input' is 99999999999"},
      {kStart + R"(, "input": 0, "output": 0})", "both 0"},
      {kStart + R"(, "engine": "tvm"})", "tvm"},
      {kStart + R"(, "weights": "q4"})", "there are native"},
      {kStart + R"(, "kv": "q4"})", "there are bf16"},
      {kStart + R"(, "compute": "fp64"})", "unknown compute"},
      {kStart + R"(, "speculative": "mtp"})", "unknown speculative"},
      {kStart + R"(, "speculative": "mtp:99"})", "unknown speculative"},
      {R"({"model": "r1-distill-qwen-7b", "hardware": "h200", "task": "chat", "speculative": "mtp:1"})",
       "no multi-token-prediction"},
      {kStart + R"(, "network": "no-link"})", "no-link"},
      {kStart + R"(, "network": {"a": 1}})", "'network' should be"},
      {kStart + R"(, "tp": 3})", "do not multiply to 8"},
      {kStart + R"(, "tp": 4, "pp": 4})", "tp 4 · pp 4 do not multiply to 8"},
      {kStart + R"(, "tp": 8, "ep": 3})", "does not divide"},
      {kStart + R"(, "tp": 8, "ep": 16})", "does not divide"},
      {kStart + R"(, "gpus": 80, "pp": 80})", "more than the model's 61 layers"},
      {kStart + R"(, "offload": "weights"})", "offload is for training"},
      {R"({"model": "r1-distill-qwen-7b", "hardware": "8xH200", "task": "serve", "tp": 8})", "28"},
      {R"({"model": "r1-distill-qwen-7b", "hardware": "8xH200", "task": "serve", "ep": 2})", "no routed experts"},
      {R"({"model": "r1", "hardware": "8xH200", "task": "pretrain", "dp_attention": 2})", "in training use dp"},
      {R"({"model": "r1", "hardware": "8xH200", "task": "pretrain", "zero": 4})", "'zero' is 4"},
      {R"({"model": "r1", "hardware": "8xH200", "task": "pretrain", "recompute": "some"})", "unknown recompute"},
      {R"({"model": "r1", "hardware": "8xH200", "task": "pretrain", "optimizer": "some"})", "unknown optimizer"},
      {R"({"model": "r1", "hardware": "8xH200", "task": "train"})", "unknown task"},
  };
  for (const auto& [text, words] : cases) EXPECT_THAT(error_of(text), HasSubstr(words)) << text;
}

TEST(Request, DepthAndLengthAreBounded) {
  std::string deep = R"({"model": "r1", "hardware": "h200", "task": "chat", "measured": )";
  deep += std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(error_of(deep), HasSubstr("not one JSON object"));
  EXPECT_THAT(error_of(R"({"model": ")" + std::string(1000000, 'x') + R"(", "hardware": "h200", "task": "chat"})"),
              ::testing::SizeIs(::testing::Lt(2000U)));
  std::string many = "{";
  for (int i = 0; i < 1000; ++i) many += (i ? "," : "") + std::string("\"k") + std::to_string(i) + "\":1";
  EXPECT_THAT(error_of(many + "}"), HasSubstr("not one JSON object"));
}

TEST(Request, EscapesAreRead) {
  std::size_t bad = 0;
  const auto object = JsonObject::parse(R"({"a": "\u00fc\ud83d\ude00\n\"", "b": -1.5e3, "c": 4.0})", bad);
  ASSERT_TRUE(object.has_value());
  EXPECT_EQ(object->find("a")->string(), "ü😀\n\"");
  EXPECT_EQ(object->find("b")->number(), -1500);
  EXPECT_EQ(object->find("b")->integer(), -1500);
  EXPECT_EQ(object->find("c")->integer(), 4);
  EXPECT_EQ(object->find("d"), nullptr);
}

TEST(Request, OptionsOfAPerson) {
  PlanOptions options{.model = "r1",
                      .on = "8xH200",
                      .slo = "ttft=2s, tpot=50ms",
                      .context = 4096,
                      .settings = {{"task", "serve"}, {"tp", "8"}, {"output", "1000"}}};
  const auto request = request_from_options(options);
  ASSERT_TRUE(request.has_value()) << error_text(request.error());
  EXPECT_EQ(request->input, 3096);
  EXPECT_EQ(request->layout.tp, 8);
  EXPECT_DOUBLE_EQ(request->slo.ttft_seconds, 2);
  EXPECT_DOUBLE_EQ(request->slo.tpot_seconds, 0.05);
  options.slo = "latency=1";
  EXPECT_FALSE(request_from_options(options).has_value());
  options.slo = "ttft=-1s";
  EXPECT_FALSE(request_from_options(options).has_value());
  options.slo = "";
  options.settings.emplace_back("gpus", "many");
  EXPECT_THAT(error_text(request_from_options(options).error()), HasSubstr("'gpus' should be a whole number"));
}

// ---------------------------------------------------------------- layouts

TEST(Layouts, AllMultiplyToTheDevicesAndDivide) {
  for (const char* model : {"r1", "v4-flash", "r1-distill-llama-70b", "deepseek-moe-16b-base"})
    for (const char* task : {"chat", "serve", "pretrain"})
      for (const int gpus : {1, 8, 12, 64}) {
        const PlanRequest request =
            request_of(R"({"model": ")" + std::string(model) + R"(", "hardware": "h200", "gpus": )" +
                       std::to_string(gpus) + R"(, "task": ")" + task + R"(", "engine": "fathom"})");
        const auto layouts = layout_space(request);
        ASSERT_TRUE(layouts.has_value()) << model << " " << task << " " << gpus << " " << error_text(layouts.error());
        EXPECT_FALSE(layouts->empty());
        const model::ModelSpec& spec = request.model->spec();
        for (const Layout& layout : *layouts) {
          EXPECT_EQ(layout.devices(), gpus);
          EXPECT_EQ(spec.heads % layout.tp, 0);
          if (spec.routing.experts == 0) continue;
          EXPECT_EQ(spec.routing.experts % layout.ep, 0);
          EXPECT_EQ(spec.expert_intermediate % layout.expert_tp, 0);
          if (is_training(request.task)) continue;
          EXPECT_EQ(layout.ep * layout.expert_tp, layout.tp * layout.dp_attention);
        }
      }
}

TEST(Layouts, StagesCoverEveryLayerOnce) {
  for (const std::int64_t layers : {5, 61, 80, 126})
    for (const int pp : {1, 2, 3, 4, 16})
      for (const int vp : {1, 2}) {
        if (static_cast<std::int64_t>(pp) * vp > layers) continue;
        std::vector<int> seen(static_cast<std::size_t>(layers), 0);
        std::int64_t least = layers, most = 0;
        for (int stage = 0; stage < pp; ++stage)
          for (const LayerSpan& span : stage_layers(layers, pp, vp, stage)) {
            least = std::min(least, span.last - span.first);
            most = std::max(most, span.last - span.first);
            for (std::int64_t i = span.first; i < span.last; ++i) ++seen.at(static_cast<std::size_t>(i));
          }
        EXPECT_THAT(seen, ::testing::Each(1)) << layers << " " << pp << " " << vp;
        EXPECT_LE(most - least, 1) << layers << " " << pp << " " << vp;
      }
}

// ---------------------------------------------------------------- batches

std::string answer_of(const std::string& line) {
  std::string out;
  answer_line(line, out);
  return out;
}

TEST(Batch, AnswersHoldTheContractsKeys) {
  const std::string answer = answer_of(
      R"({"id": "x-1", "model": "r1", "hardware": "8xH200", "task": "serve", "engine": "sglang", "batch": 64})");
  std::size_t bad = 0;
  const auto object = JsonObject::parse(answer, bad);
  ASSERT_TRUE(object.has_value()) << answer;
  for (const char* key : {"id", "fits", "why_not", "layout", "memory", "max_context", "ttft_ms", "tpot_ms", "step_ms",
                          "prefill_tokens_per_second", "decode_tokens_per_second", "output_tokens_per_second_per_gpu",
                          "train_tokens_per_second_per_gpu", "mfu", "bound_by", "provenance"})
    EXPECT_NE(object->find(key), nullptr) << key;
  EXPECT_EQ(object->find("id")->text, "\"x-1\"");
  const auto memory = JsonObject::parse(object->find("memory")->text, bad);
  ASSERT_TRUE(memory.has_value());
  for (const char* key : {"weights", "kv", "activations", "gradients", "optimizer", "workspace", "overhead",
                          "allocated", "reserved", "total", "capacity"}) {
    ASSERT_NE(memory->find(key), nullptr) << key;
    EXPECT_TRUE(memory->find(key)->integer().has_value()) << key;
  }
  const auto range = JsonObject::parse(object->find("tpot_ms")->text, bad);
  ASSERT_TRUE(range.has_value());
  EXPECT_LE(*range->find("low")->number(), *range->find("value")->number());
  EXPECT_LE(*range->find("value")->number(), *range->find("high")->number());
}

TEST(Batch, BadLinesAnswerWithTheirIdAndTheRestGoesOn) {
  EXPECT_THAT(answer_of(R"({"id": 7, "model": "nope", "hardware": "h200", "task": "chat"})"),
              ::testing::StartsWith(R"({"id":7,"error":")"));
  EXPECT_THAT(answer_of("rubbish"), ::testing::StartsWith(R"({"id":null,"error":")"));
  const Path path = std::filesystem::temp_directory_path() / ("fathom_batch_" + std::to_string(::getpid()) + ".jsonl");
  std::string text, out;
  for (int i = 0; i < 300; ++i)
    text += i % 7 == 3 ? "{\"id\": " + std::to_string(i) + "}\n"
                       : "{\"id\": " + std::to_string(i) +
                             R"(, "model": "r1", "hardware": "8xH200", "task": "chat", "input": )" +
                             std::to_string(100 + i) + "}\r\n";
  text += "\n" +
          std::string(R"({"id": 300, "model": "r1", "hardware": "8xH200", "task": "chat"})");  // no newline at the end
  ASSERT_TRUE(write_file_atomic(path, text).has_value());
  const auto result = run_batch(path, 2, [&](std::string_view part) -> Status { return out += part, Status{}; });
  std::filesystem::remove(path);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->answered, 301U);
  std::size_t at = 0;
  for (int i = 0; i <= 300; ++i) {
    const std::size_t end = out.find('\n', at);
    ASSERT_NE(end, std::string::npos) << i;
    const std::string line = out.substr(at, end - at);
    EXPECT_THAT(line, ::testing::StartsWith("{\"id\":" + std::to_string(i) + ",")) << "in order";
    EXPECT_EQ(line.find("\"error\"") != std::string::npos, i % 7 == 3 && i < 300) << line;
    at = end + 1;
  }
  EXPECT_FALSE(run_batch("/nonexistent/requests.jsonl", 1, [](std::string_view) -> Status { return {}; }).has_value());
}

RC_GTEST_PROP(BatchProperty, WhateverTheLineTheAnswerIsOneJsonObject, ()) {
  std::string text =
      R"({"id": 1, "model": "r1", "hardware": "8xH200", "task": "serve", "tp": 8, "ep": 8, "batch": 16, "input": 1000, "output": 100, "engine": "vllm"})";
  const auto cuts = *rc::gen::inRange(1, 6);
  for (int i = 0; i < cuts; ++i) {
    const auto at = *rc::gen::inRange<std::size_t>(0, text.size());
    if (*rc::gen::arbitrary<bool>())
      text[at] = *rc::gen::element('0', '9', '"', '{', '}', ',', ':', '-', 'e', '.', '\\', '\x01', '\xff');
    else
      text.erase(at, *rc::gen::inRange<std::size_t>(1, 5));
    if (text.empty()) break;
  }
  const std::string answer = answer_of(text);
  std::size_t bad = 0;
  RC_ASSERT(JsonObject::parse(answer, bad).has_value());
}

}  // namespace
}  // namespace fathom::plan
