// Every verb from outside: help, JSON, suggestions, exit codes.
#include "cli/verbs.h"

#include <set>
#include <sstream>

#include "base/json.h"
#include "process.h"
#include "support/paths.h"

namespace fathom::cli {
namespace {
using namespace test;  // NOLINT

const std::string kGolden = (fathom::test::fixtures() / "golden" / "llama-mha").string();

bool has_chinese(const std::string& text) {
  for (std::size_t i = 0; i + 2 < text.size(); ++i)
    if (static_cast<unsigned char>(text[i]) >= 0xe4 && static_cast<unsigned char>(text[i]) <= 0xe9) return true;
  return false;
}

// A copy of the tiny llama with a tokenizer: letters, then pairs of letters up to its vocabulary.
fs::path speaking_model(const Folder& folder) {
  for (const char* file : {"config.json", "model.safetensors"}) fs::copy_file(fs::path(kGolden) / file, folder / file);
  std::string vocab;
  for (int i = 0; i < 512; ++i) {
    const std::string token =
        i < 26 ? std::string(1, static_cast<char>('a' + i))
               : std::string{static_cast<char>('a' + (i - 26) / 26), static_cast<char>('a' + (i - 26) % 26)};
    vocab += (i == 0 ? "\"" : ",\"") + token + "\":" + std::to_string(i);
  }
  spit(folder / "tokenizer.json",
       R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" + vocab + R"(},"merges":[]}})");
  return folder.path();
}

TEST(Help, OfEveryVerbHasExamplesInBothLanguages) {
  ASSERT_GE(verbs().size(), 10u);
  for (const Verb& verb : verbs())
    for (const std::string language : {"en", "zh"}) {
      const std::string name(verb.name);
      const Outcome o = run({name, "--help", "--lang", language});
      EXPECT_EQ(o.code, 0) << name << o.err;
      EXPECT_EQ(o.err, "") << name;
      const std::size_t usage = o.out.find("fathom " + name);
      ASSERT_NE(usage, std::string::npos) << name;
      EXPECT_NE(o.out.find("  fathom " + name, usage + 1), std::string::npos) << name << " shows no example:\n"
                                                                              << o.out;
      EXPECT_EQ(has_chinese(o.out), language == "zh") << name << " in " << language << ":\n" << o.out;
      EXPECT_EQ(o.out.find("cli." + name + "."), std::string::npos) << "a text is missing:\n" << o.out;
      for (const char* flag : {"--json", "--lang", "--help"})
        EXPECT_NE(o.out.find(flag), std::string::npos) << name << " has no " << flag;
    }
}

TEST(Quantize, WritesACheckpointThatRunsAndPlans) {
  const Folder folder;
  for (const char* file : {"config.json", "model.safetensors"}) fs::copy_file(fs::path(kGolden) / file, folder / file);
  spit(folder / "tokenizer_config.json", "{}");
  for (const std::string to : {"fp8", "int8", "int4"}) {
    const Folder other;
    const std::string out = (other / to).string();
    const Outcome made = run({"quantize", folder.path().string(), "--to", to, "-o", out, "--json"});
    ASSERT_EQ(made.code, 0) << made.err;
    const auto report = parse_json(made.out, "report");
    ASSERT_TRUE(report) << made.out;
    EXPECT_GT((*report)["quantized_tensors"], 10);
    EXPECT_LT((*report)["bytes"], (*report)["bytes_before"]);
    EXPECT_TRUE(fs::exists(fs::path(out) / "tokenizer_config.json"));
    EXPECT_EQ(std::distance(fs::directory_iterator(other.path()), fs::directory_iterator()), 1)
        << "nothing else is left beside it";
    const Outcome again = run({"quantize", folder.path().string(), "--to", to, "-o", out});
    EXPECT_EQ(again.code, 2);
    EXPECT_NE(again.err.find("--force"), std::string::npos) << again.err;
    const Outcome benched = run({"bench", out, "--prompt", "20", "--generate", "2", "--batch", "1", "--kv",
                                 to == "int8" ? to : "fp8", "--json"});
    EXPECT_EQ(benched.code, 0) << benched.err;
    const Outcome planned = run({"plan", out, "--json"});
    EXPECT_EQ(planned.code, 0) << planned.err;
  }
  EXPECT_EQ(run({"quantize", folder.path().string(), "--to", "int3", "-o", (folder / "x").string()}).code, 2);
  EXPECT_EQ(
      run({"quantize", folder.path().string(), "--to", "int4", "--group", "64", "-o", (folder / "x").string()}).code,
      2);
}

TEST(Caches, TypesThatAreNotKnownAreNamed) {
  for (const std::string verb : {"bench", "verify"}) {
    const Outcome o = run({verb, kGolden, "--kv", "fp6"});
    EXPECT_EQ(o.code, 2) << verb;
    EXPECT_NE(o.err.find("'fp6'"), std::string::npos) << verb << ": " << o.err;
    EXPECT_NE(o.err.find("int8"), std::string::npos) << verb << ": " << o.err;
  }
  const Outcome told = run({"verify", kGolden, "--kv", "int8", "--threads", "1", "--json"});
  EXPECT_EQ(told.code, 0) << told.err;
  EXPECT_NE(told.out.find("\"tolerance\": null"), std::string::npos) << told.out;
  EXPECT_NE(told.out.find("\"kv\": \"int8\""), std::string::npos) << told.out;
  EXPECT_EQ(run({"verify", kGolden, "--kv", "int8", "--threads", "1", "--atol", "1e-6"}).code, 1);
  const Outcome within = run({"verify", kGolden, "--kv", "int8", "--threads", "1", "--atol", "100"});
  EXPECT_EQ(within.code, 0) << within.err;
  EXPECT_EQ(within.out.find("Equal"), std::string::npos) << "greedy answers were not asked for: " << within.out;
}

TEST(Help, OfTheProgramNamesEveryVerb) {
  const Outcome o = run({"--help"});
  EXPECT_EQ(o.code, 0);
  for (const Verb& verb : verbs())
    EXPECT_NE(o.out.find("\n  " + std::string(verb.name) + " "), std::string::npos) << verb.name;
  EXPECT_TRUE(has_chinese(run({"--help"}, {.language = "zh_CN.UTF-8"}).out)) << "the locale chooses the language";
  EXPECT_FALSE(has_chinese(run({"--help", "--lang", "en"}, {.language = "zh_CN.UTF-8"}).out))
      << "--lang is stronger than the locale";
  EXPECT_EQ(run({"--version"}).code, 0);
}

TEST(Json, OfEveryVerbIsOneDocument) {
  const Folder folder, other;
  const std::string speaking = speaking_model(folder).string(), out = (other / "synthetic").string();
  const std::vector<std::vector<std::string>> lines = {
      {"check", "--no-run"},
      {"probe", "--no-measure", "--no-disk"},
      {"calibrate", "--quick", "-o", (other / "calibration.json").string()},
      {"models"},
      {"models", "show", "r1"},
      {"hardware"},
      {"hardware", "--cloud"},
      {"hardware", "show", "h200"},
      {"synth", kGolden + "/config.json", "-o", out},
      {"quantize", kGolden, "--to", "fp8", "-o", (other / "fp8").string()},
      {"plan", "r1", "--on", "8xH200", "--task", "serve"},
      {"plan", kGolden, "--on", "1xH200"},
      {"run", speaking, "-p", "a", "-n", "4"},
      {"bench", kGolden, "--prompt", "16", "--generate", "4"},
      {"verify", kGolden, "--threads", "1"},
      {"tokenize", "--tokenizer", speaking, "abc"}};
  std::set<std::string> seen;
  for (auto words : lines) {
    words.push_back("--json");
    seen.insert(words[0]);
    for (const std::string language : {"C", "zh_CN.UTF-8"}) {
      if (language != "C" &&
          (words[0] == "check" || words[0] == "bench" || words[0] == "synth" || words[0] == "quantize"))
        continue;  // once is enough of what takes long
      const Outcome o = run(words, {.language = language});
      EXPECT_EQ(o.code, 0) << joined(words) << ": " << o.err;
      const auto json = parse_json(o.out, joined(words));
      ASSERT_TRUE(json) << error_text(json.error()) << "\n" << o.out.substr(0, 300);
      EXPECT_TRUE(json->is_object() || json->is_array()) << joined(words);
      EXPECT_FALSE(json->empty()) << joined(words);
    }
  }
  for (const Verb& verb : verbs())
    EXPECT_TRUE(seen.count(std::string(verb.name)) > 0) << verb.name << " is not tried here";
}

TEST(Json, OfAModelHasWhatProgramsRelyOn) {
  const Outcome o = run({"models", "show", "r1", "--json"});
  const auto json = parse_json(o.out, "models show");
  ASSERT_TRUE(json) << error_text(json.error());
  const Json& model = json->is_array() ? json->at(0) : *json;
  for (const char* key : {"parameters_total", "parameters_main", "parameters_active", "checkpoint_bytes"})
    EXPECT_TRUE(model.contains(key) && model[key].is_number()) << key;
  EXPECT_TRUE(model.contains("kv_bytes_per_token") && model["kv_bytes_per_token"].is_object());
  EXPECT_TRUE(model.contains("kv_fixed_bytes"));
}

TEST(Names, ThatAreUnknownGetASuggestion) {
  expect_refused(run({"chek"}), "a verb", {"check"});
  expect_refused(run({"frobnicate"}), "a verb unlike any", {"verify"});
  expect_refused(run({"plan", "r1-distil-qwen-7b"}), "a model", {"Qwen-7B"});
  expect_refused(run({"models", "show", "deepseek-r11"}), "a model", {"DeepSeek-R1"});
  expect_refused(run({"plan", "r1", "--on", "8xH2000"}), "a device", {"h200"});
  expect_refused(run({"hardware", "show", "h10"}), "a device that could be several", {"h100-sxm"});
  expect_refused(run({"plan", "r1", "--task", "chatt"}), "a task", {"chat"});
  expect_refused(run({"plan", "r1", "--engine", "vlm"}), "an engine", {"vllm"});
  expect_refused(run({"plan", "r1", "--weights", "fp7"}), "a precision", {"fp8"});
  expect_refused(run({"verify", kGolden, "--device", "gpu"}), "a backend", {"cpu", "reference"});
  expect_refused(run({"verify", kGolden, "--isa", "mmx"}), "an instruction set", {"scalar"});
  expect_refused(run({"plan", "--tsk", "chat", "r1"}), "a flag", {"--tsk", "plan --help"});
  expect_refused(run({"check", "--lang", "fr"}), "a language", {"en", "zh"});
  expect_refused(run({}), "nothing at all");
}

TEST(Names, AreRefusedInChineseToo) {
  const Outcome o = run({"plan", "no-such-model-anywhere"}, {.language = "zh_CN.UTF-8"});
  expect_refused(o, "a model");
  EXPECT_TRUE(has_chinese(o.err)) << o.err;
}

TEST(ExitCode, SaysYesNoOrError) {
  EXPECT_EQ(run({"verify", kGolden, "--threads", "1"}).code, 0);
  EXPECT_EQ(run({"verify", kGolden, "--threads", "1", "--atol", "0"}).code, 1) << "beyond tolerance";
  EXPECT_EQ(run({"verify", kGolden + "-missing"}).code, 2);
  EXPECT_EQ(run({"plan", "r1-distill-qwen-1.5b", "--on", "1xH200"}).code, 0);
  EXPECT_EQ(run({"plan", "r1", "--on", "1xrtx-4090", "--engine", "vllm"}).code, 1) << "does not fit";
}

TEST(Run, AnswersTheSameTwiceAndDependsOnItsSeed) {
  const Folder folder;
  const std::string speaking = speaking_model(folder).string();
  const auto text = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"run", speaking, "--raw", "-p", "hello", "-n", "12", "-q"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 0) << o.err;
    return o.out;
  };
  EXPECT_EQ(text({}), text({}));
  EXPECT_EQ(text({"--temperature", "2", "--seed", "5"}), text({"--temperature", "2", "--seed", "5"}));
  EXPECT_NE(text({"--temperature", "2", "--seed", "5"}), text({"--temperature", "2", "--seed", "6"}));
}

TEST(Run, SaysSoWhenThePromptIsLongerThanTheContext) {
  const Folder folder;
  const Outcome o = run({"run", speaking_model(folder).string(), "--raw", "-c", "8", "-p", std::string(50, 'x')});
  expect_refused(o, "a long prompt", {"8", "256"});
}

TEST(Synth, WritesWhatBenchAccepts) {
  const Folder folder;
  const std::string out = (folder / "a model").string();
  ASSERT_EQ(run({"synth", kGolden, "-o", out, "--seed", "4"}).code, 0);
  EXPECT_EQ(run({"bench", out, "--prompt", "8", "--generate", "2"}).code, 0);
  expect_refused(run({"synth", kGolden, "-o", out}), "a folder with a checkpoint", {"--force"});
  EXPECT_EQ(run({"synth", kGolden, "-o", out, "--force"}).code, 0);
}

TEST(Batch, AnswersALineForALine) {
  const std::string good = R"({"id":"a","model":"r1","hardware":"h200-141gb","gpus":8,"task":"serve"})";
  const Outcome o = run({"plan", "--batch", "-"}, {.input = good + "\nnot json\n{\"id\":7}\n"});
  EXPECT_EQ(o.signal, 0);
  std::istringstream lines(o.out);
  std::size_t n = 0;
  for (std::string line; std::getline(lines, line); ++n) EXPECT_TRUE(parse_json(line, "answer")) << line;
  EXPECT_EQ(n, 3u) << o.out << o.err;
}

}  // namespace
}  // namespace fathom::cli
