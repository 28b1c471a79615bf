// A traced run: a file that viewers open, with every op once.
#include "measure/trace.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <map>

#include "base/json.h"
#include "measure/bench.h"
#include "measure/calibrate.h"
#include "measure/verify.h"
#include "model/architecture.h"
#include "model/catalog.h"
#include "plan/model_tracing.h"
#include "support/paths.h"
#include "weights/synth.h"

namespace fathom::measure {
namespace {

/// A folder of its own for what a user keeps.
class Home : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("fathom_trace_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    ::setenv("FATHOM_HOME", folder_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("FATHOM_HOME");
    std::filesystem::remove_all(folder_);
  }
  Path folder_;
};
using Trace = Home;
using Calibrate = Home;

Json read_trace(const Path& path) {
  const auto text = read_file(path, 256 << 20);
  EXPECT_TRUE(text.has_value());
  const auto json = parse_json(*text, path.string());
  EXPECT_TRUE(json.has_value());
  return json ? *json : Json();
}

TEST_F(Trace, EveryOpOnceWithItsTimes) {
  const Path path = folder_ / "trace.json", folder = test::fixtures() / "golden" / "v3";
  const auto plain = verify(folder, {.threads = 1});
  const auto traced = verify(folder, {.threads = 1, .trace = path});
  ASSERT_TRUE(plain.has_value());
  ASSERT_TRUE(traced.has_value()) << error_text(traced.error());
  EXPECT_TRUE(traced->passed);
  EXPECT_EQ(plain->worst, traced->worst) << "a trace changes no bits";
  const Json trace = read_trace(path);
  ASSERT_TRUE(trace.is_object() && trace["traceEvents"].is_array());

  // What a pass launches, by the model on meta.
  const auto spec = weights::find_model_spec(folder.string());
  ASSERT_TRUE(spec.has_value());
  auto architecture = model::make_architecture(*spec);
  ASSERT_TRUE(architecture.has_value());
  plan::bind_fake_constants(**architecture);
  std::map<std::size_t, int> counts;  // of ops in a pass: how many passes
  const std::size_t prefill = plan::trace_whole(**architecture, plan::Phase::kPrefill, DType::f32, 16).ops.size();
  const std::size_t decode = plan::trace_whole(**architecture, plan::Phase::kDecode, DType::f32, 1).ops.size();

  struct Span {
    double from, to;
    std::size_t ops = 0;
    double inside = 0;
  };
  std::vector<Span> passes;
  for (const Json& e : trace["traceEvents"])
    if (e["ph"] == "X" && e["cat"] == "pass")
      passes.push_back({e["ts"], e["ts"].get<double>() + e["dur"].get<double>()});
  ASSERT_GT(passes.size(), 10u);
  std::size_t ops = 0;
  bool layers = false;
  for (const Json& e : trace["traceEvents"]) {
    if (e["ph"] != "X" || e["cat"] != "op") continue;
    ++ops;
    ASSERT_TRUE(e["args"].contains("shapes") && e["args"]["bytes"].get<double>() > 0);
    ASSERT_GE(e["dur"].get<double>(), 0);
    ASSERT_TRUE(e["args"]["predicted_us"].is_number()) << e["name"];
    ASSERT_GT(e["args"]["predicted_us"].get<double>(), 0) << e["name"];
    layers = layers || e["args"].value("layer", -1) == spec->layers - 1;
    if (e["name"] == "linear") {
      ASSERT_GT(e["args"]["flops"].get<double>(), 0);
    }
    const double at = e["ts"].get<double>() + 0.5 * e["dur"].get<double>();
    int inside = 0;
    for (Span& pass : passes)
      if (at >= pass.from && at <= pass.to) ++inside, ++pass.ops, pass.inside += e["dur"].get<double>();
    ASSERT_EQ(inside, 1) << "an op is of one pass";
  }
  EXPECT_TRUE(layers) << "the last layer has a number";
  std::size_t sum = 0;
  for (const Span& pass : passes) {
    ++counts[pass.ops], sum += pass.ops;
    EXPECT_LE(pass.inside, (pass.to - pass.from) * 1.001 + 1);
  }
  EXPECT_EQ(sum, ops);
  EXPECT_GT(counts[prefill], 0) << "prompts have as many ops as their trace on meta";
  EXPECT_GT(counts[decode + 1], 0) << "and so have single tokens, whose rows for the head are picked beside";
}

TEST_F(Trace, RanksAreProcesses) {
  const Path path = folder_ / "ranks.json";
  const auto traced =
      verify(test::fixtures() / "golden" / "llama3-gqa", {.threads = 1, .ranks = {.ranks = 2, .tp = 2}, .trace = path});
  ASSERT_TRUE(traced.has_value()) << error_text(traced.error());
  std::map<int, int> ops, sums;
  const Json trace = read_trace(path);
  for (const Json& e : trace["traceEvents"]) {
    if (e["ph"] != "X" || e["cat"] != "op") continue;
    ++ops[e["pid"]];
    if (e["name"] == "all_reduce") ++sums[e["pid"]];
  }
  EXPECT_EQ(ops.size(), 2u);
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_GT(sums[0], 0);
}

TEST_F(Calibrate, EveryFamilyOnThisProcessor) {
  std::size_t done = 0, all = 0;
  const auto made =
      calibrate({.threads = 1, .quick = true, .progress = [&](std::size_t d, std::size_t a) { done = d, all = a; }});
  ASSERT_TRUE(made.has_value()) << error_text(made.error());
  EXPECT_EQ(done, all);
  for (int f = 0; f < plan::kFamilyCount; ++f) {
    const auto family = static_cast<plan::Family>(f);
    if (family == plan::Family::kAllReduce) continue;
    const auto* table = made->find_like(family, 2, "");
    ASSERT_NE(table, nullptr) << plan::family_name(family);
    EXPECT_EQ(table->seconds.size(), table->points());
  }
  const auto path = save_calibration(*made, folder_ / "deep" / "cpu.json");
  ASSERT_TRUE(path.has_value());
  const auto text = read_file(*path, 16 << 20);
  ASSERT_TRUE(text.has_value());
  const auto back = plan::parse_calibration(*text, path->string());
  ASSERT_TRUE(back.has_value()) << error_text(back.error());
  EXPECT_EQ(back->tables.size(), made->tables.size());
  EXPECT_EQ(back->threads, 1);
}

}  // namespace
}  // namespace fathom::measure
