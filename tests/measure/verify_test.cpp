// Our logits and greedy answers against those that transformers gave for the same tiny checkpoints
// (tests/fixtures/golden), on the reference and on the cpu under every instruction set of this machine.
#include "measure/verify.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "backends/backends.h"
#include "backends/cpu/isa.h"
#include "base/files.h"
#include "support/paths.h"
#include "weights/safetensors.h"

namespace fathom::measure {
namespace {

// Every folder with a reference; these at the least.
constexpr const char* kExpected[] = {"llama-coder-linear",
                                     "llama-mha",
                                     "llama3-gqa",
                                     "qwen2-bias",
                                     "qwen2-tied",
                                     "qwen3",
                                     "v2-group",
                                     "v2-lite",
                                     "v3",
                                     "v32",
                                     "v4",
                                     "v4-mixed",
                                     "v4-yarn"};

std::vector<std::string> models() {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(test::fixtures() / "golden", ignored))
    if (std::filesystem::exists(entry.path() / "reference.safetensors"))
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// What computes: "reference", or the name of an instruction set of the cpu.
std::vector<std::string> computers() {
  std::vector<std::string> names = {"reference"};
  for (const cpu::Implementation& implementation : cpu::implementations())
    if (backends::make_backend("cpu", {.threads = 1, .isa = std::string(implementation.name)}))
      names.emplace_back(implementation.name);
  return names;
}

std::string describe(const VerifyCase& c) {
  return "prompt " + std::to_string(c.prompt) + " " + c.way + ": difference " + std::to_string(c.worst) + " at [" +
         std::to_string(c.worst_token) + ", " + std::to_string(c.worst_id) + "], greedy differs at " +
         std::to_string(c.greedy_differs_at);
}

class Golden : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(Golden, LogitsAndGreedyAnswersAreThoseOfTransformers) {
  const auto& [model, computer] = GetParam();
  VerifyOptions options{.threads = 1};  // so small that threads would mostly wait
  if (computer == "reference")
    options.device = "reference";
  else
    options.isa = computer;
  const auto report = verify(test::fixtures() / "golden" / model, options);
  ASSERT_TRUE(report) << error_text(report.error());
  ASSERT_GE(report->cases.size(), 3u);
  EXPECT_EQ(report->cases.size() % 3, 0u) << "every prompt whole, in chunks and token by token";
  for (const VerifyCase& c : report->cases) {
    EXPECT_TRUE(c.worst <= 1e-3) << describe(c);
    EXPECT_EQ(c.greedy_differs_at, -1) << describe(c);
    EXPECT_GE(c.greedy_tokens, 12) << describe(c);
    EXPECT_TRUE(c.passed);
  }
  EXPECT_TRUE(report->passed);
}

INSTANTIATE_TEST_SUITE_P(EveryModel, Golden,
                         testing::Combine(testing::ValuesIn(models()), testing::ValuesIn(computers())),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param) + "_on_" + std::get<1>(info.param);
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

// Rounded rows change the answers of tiny random models, choices of experts and keys most of all, so that they are held
// against the reference backend with the same cache: what rounds the same differs the same.
class NarrowCache : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(NarrowCache, DiffersFromTransformersAsTheReferenceDoes) {
  const auto& [model, kv] = GetParam();
  const auto folder = test::fixtures() / "golden" / model;
  const auto plain = verify(folder, {.device = "reference", .kv = kv}), fast = verify(folder, {.kv = kv, .threads = 1});
  ASSERT_TRUE(plain) << error_text(plain.error());
  ASSERT_TRUE(fast) << error_text(fast.error());
  EXPECT_TRUE(fast->passed);
  EXPECT_GT(fast->worst, 1e-3) << "the cache is not that narrow";
  EXPECT_LE(plain->worst, 20.0);
  ASSERT_EQ(plain->cases.size(), fast->cases.size());
  for (std::size_t i = 0; i < fast->cases.size(); ++i)
    EXPECT_NEAR(fast->cases[i].worst, plain->cases[i].worst, 5e-3 * (1 + plain->cases[i].worst))
        << describe(fast->cases[i]);
}

INSTANTIATE_TEST_SUITE_P(EveryModel, NarrowCache,
                         testing::Combine(testing::ValuesIn(models()), testing::Values("fp8", "int8")),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param) + "_" + std::get<1>(info.param);
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

TEST(Threads, TwoAnswerAsOneDoes) {
  for (const char* model : {"llama3-gqa", "qwen3", "v3", "v32"}) {
    const auto report = verify(test::fixtures() / "golden" / model, {.threads = 2});
    ASSERT_TRUE(report) << error_text(report.error());
    EXPECT_TRUE(report->passed) << model << ": " << report->worst;
  }
}

TEST(Models, AllArchitecturesAreThere) {
  const auto found = models();
  for (const char* name : kExpected)
    EXPECT_TRUE(std::binary_search(found.begin(), found.end(), std::string(name))) << name;
}

TEST(Computers, ThisMachineHasAtLeastThePlainOne) {
  const auto names = computers();
  EXPECT_EQ(names.front(), "reference");
  EXPECT_EQ(names.back(), "scalar");
}

// A copy of one golden folder whose reference can be damaged.
class Damaged : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "fathom-verify-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    for (const char* file : {"config.json", "model.safetensors", "reference.safetensors"})
      std::filesystem::copy_file(test::fixtures() / "golden" / "llama-mha" / file, folder_ / file);
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  // Overwrites one element of the reference.
  template <class T>
  void put(const std::string& tensor, std::size_t element, T value) {
    const Path path = folder_ / "reference.safetensors";
    const auto file = weights::SafetensorsFile::open(path);
    ASSERT_TRUE(file) << error_text(file.error());
    for (const auto& t : file->tensors()) {
      if (t.name != tensor) continue;
      ASSERT_LT(element * sizeof(T), t.bytes());
      std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
      out.seekp(static_cast<std::streamoff>(t.begin + element * sizeof(T)));
      out.write(reinterpret_cast<const char*>(&value), sizeof value);
      return;
    }
    FAIL() << "no tensor " << tensor;
  }
  Result<VerifyReport> check(VerifyOptions options = {}) {
    options.device = "reference";
    return verify(folder_, options);
  }
  Path folder_;
};

TEST_F(Damaged, AnUntouchedCopyPasses) {
  const auto report = check();
  ASSERT_TRUE(report) << error_text(report.error());
  EXPECT_TRUE(report->passed);
}

TEST_F(Damaged, OneLogitIsFoundAndNamed) {
  constexpr std::size_t kVocabulary = 512, kToken = 23, kId = 301;
  put<float>("logits.1", kToken * kVocabulary + kId, 1e4f);
  const auto report = check();
  ASSERT_TRUE(report) << error_text(report.error());
  EXPECT_FALSE(report->passed);
  for (const VerifyCase& c : report->cases) {
    EXPECT_EQ(c.passed, c.prompt == 0) << describe(c);
    if (c.prompt == 0) continue;
    EXPECT_EQ(c.worst_token, static_cast<std::int64_t>(kToken));
    EXPECT_EQ(c.worst_id, static_cast<std::int64_t>(kId));
    EXPECT_NEAR(c.worst, 1e4, 100);
  }
}

TEST_F(Damaged, ALogitThatIsNotANumberNeverPasses) {
  put<float>("logits.0", 0, std::numeric_limits<float>::quiet_NaN());
  const auto report = check({.atol = 1e30});
  ASSERT_TRUE(report) << error_text(report.error());
  EXPECT_FALSE(report->passed);
  EXPECT_TRUE(std::isnan(report->worst));
  EXPECT_FALSE(report->cases.front().passed);
  EXPECT_EQ(report->cases.front().worst_token, 0);
}

TEST_F(Damaged, AGreedyTokenIsFoundAndNamed) {
  put<std::int32_t>("greedy.0", 5, 2);
  const auto report = check();
  ASSERT_TRUE(report) << error_text(report.error());
  EXPECT_FALSE(report->passed);
  for (const VerifyCase& c : report->cases) EXPECT_EQ(c.greedy_differs_at, c.prompt == 0 ? 5 : -1) << describe(c);
}

TEST_F(Damaged, ToleranceDecides) {
  const auto strict = check({.atol = 0});
  ASSERT_TRUE(strict) << error_text(strict.error());
  EXPECT_FALSE(strict->passed);
  const auto loose = check({.atol = strict->worst});
  ASSERT_TRUE(loose) << error_text(loose.error());
  EXPECT_TRUE(loose->passed);
}

TEST_F(Damaged, ATokenOutsideTheVocabularyIsAnError) {
  put<std::int32_t>("input_ids.0", 3, 512);
  const auto report = check();
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().key, "engine.bad_token");
}

TEST_F(Damaged, AMissingReferenceIsAnError) {
  std::filesystem::remove(folder_ / "reference.safetensors");
  const auto missing = check();
  ASSERT_FALSE(missing);
  EXPECT_FALSE(error_text(missing.error()).empty());
  std::filesystem::copy_file(folder_ / "model.safetensors", folder_ / "reference.safetensors");
  const auto other = check();
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().key, "measure.reference_missing");
}

}  // namespace
}  // namespace fathom::measure
