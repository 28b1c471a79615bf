// Tables of measured ops: what is between their points, how they are kept, and plans made of them.
#include "plan/calibration.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/embedded.h"
#include "plan/cost_support.h"
#include "plan/cost_units.h"
#include "plan/support.h"

namespace fathom::plan {
namespace {

// A machine that is known: a floor, a bandwidth, a rate.
constexpr double kFloor = 2e-6, kStream = 2e12, kRate = 4e14;
double law(double bytes, double flops) { return kFloor + bytes / kStream + flops / kRate; }

/// What a point of a family moves and does; only its size matters here.
struct Work {
  double bytes, flops;
};
Work work_of(Family family, const std::vector<double>& at) {
  if (family <= Family::kNormedGates)
    return {2 * at[1] * at[2] + 4 * at[0] * (at[1] + at[2]), 2 * at[0] * at[1] * at[2]};
  double product = 1;
  for (const double x : at) product *= x;
  return {product * 64, product * 100};
}

MeasuredTable table_of(Family family, const std::string& format = "") {
  MeasuredTable table;
  table.family = family;
  table.format = format;
  for (const std::string_view axis : family_axes(family)) {
    if (axis == "tokens" || axis == "sequences")
      table.axes.push_back({1, 8, 64, 512, 4096});
    else if (axis == "outputs" || axis == "inputs")
      table.axes.push_back({512, 4096, 32768});
    else
      table.axes.push_back({1, 64, 4096});
  }
  for (std::size_t i = 0; i < table.points(); ++i) {
    std::vector<double> at(table.axes.size());
    std::size_t rest = i;
    for (std::size_t a = at.size(); a-- > 0; rest /= table.axes[a].size())
      at[a] = table.axes[a][rest % table.axes[a].size()];
    const Work work = work_of(family, at);
    table.bytes.push_back(work.bytes);
    table.flops.push_back(work.flops);
    table.seconds.push_back(law(work.bytes, work.flops));
  }
  EXPECT_TRUE(table.prepare().has_value());
  return table;
}

std::shared_ptr<Calibration> whole(const std::string& device) {
  auto made = std::make_shared<Calibration>();
  made->device = device, made->name = "a device", made->date = "2026-11-22", made->source = "a test", made->here = true;
  for (int f = 0; f < kFamilyCount; ++f) {
    const auto family = static_cast<Family>(f);
    made->tables.push_back(table_of(family, family <= Family::kNormedGates || family == Family::kGroupedIn ||
                                                    family == Family::kGroupedOut || family == Family::kExperts
                                                ? "bf16"
                                            : family == Family::kAllReduce ? "2"
                                                                           : ""));
  }
  return made;
}

TEST(Calibration, PointsAreMetAndWhatLiesBetweenFollowsTheLaw) {
  const MeasuredTable table = table_of(Family::kPlain, "bf16");
  for (const double tokens : {1.0, 512.0}) {
    const std::vector<double> at{tokens, 4096, 512};
    const Work work = work_of(Family::kPlain, at);
    EXPECT_NEAR(table.at(at, work.bytes, work.flops), law(work.bytes, work.flops), 1e-9 * law(work.bytes, work.flops));
  }
  for (const double tokens : {1.0, 3.0, 30.0, 1500.0})
    for (const double outputs : {700.0, 11008.0})
      for (const double inputs : {1536.0, 8192.0}) {
        const std::vector<double> at{tokens, outputs, inputs};
        const Work work = work_of(Family::kPlain, at);
        const double ratio = table.at(at, work.bytes, work.flops) / law(work.bytes, work.flops);
        EXPECT_TRUE(ratio > 0.85 && ratio < 1.15) << tokens << " " << outputs << " " << inputs << ": " << ratio;
      }
  // Beyond the grid the roofline goes on.
  const std::vector<double> far{1, 131072, 32768};
  const Work work = work_of(Family::kPlain, far);
  EXPECT_NEAR(table.at(far, work.bytes, work.flops) / law(work.bytes, work.flops), 1, 0.05);
  EXPECT_NEAR(table.bytes_per_element(), 2, 0.01);
}

TEST(Calibration, IsKeptAsText) {
  const auto made = whole("h200-sxm-141gb");
  const auto back = parse_calibration(calibration_json(*made), "a test");
  ASSERT_TRUE(back.has_value()) << error_text(back.error());
  EXPECT_EQ(back->device, made->device);
  EXPECT_EQ(back->date, made->date);
  ASSERT_EQ(back->tables.size(), made->tables.size());
  for (std::size_t t = 0; t < made->tables.size(); ++t) {
    EXPECT_EQ(back->tables[t].family, made->tables[t].family);
    EXPECT_EQ(back->tables[t].axes, made->tables[t].axes);
    ASSERT_EQ(back->tables[t].seconds.size(), made->tables[t].seconds.size());
    for (std::size_t i = 0; i < made->tables[t].seconds.size(); ++i)
      EXPECT_NEAR(back->tables[t].seconds[i] / made->tables[t].seconds[i], 1, 1e-3);
  }
}

TEST(Calibration, TheOneThatComesWithThisHasATableOfEveryFamily) {
  const auto text = embedded_file("calibration/h200-sxm-141gb.json");
  ASSERT_TRUE(text.has_value());
  const auto c = parse_calibration(*text, "calibration/h200-sxm-141gb.json");
  ASSERT_TRUE(c.has_value()) << error_text(c.error());
  for (int f = 0; f < kFamilyCount; ++f) {
    const auto family = static_cast<Family>(f);
    EXPECT_TRUE(std::ranges::any_of(c->tables, [&](const MeasuredTable& t) { return t.family == family; }))
        << family_name(family);
  }
  for (const char* ranks : {"2", "4"}) EXPECT_NE(c->find(Family::kAllReduce, ranks), nullptr) << ranks;
  EXPECT_NE(c->find(Family::kDecode, kOneSequence), nullptr);
}

TEST(Calibration, WhatDoesNotHoldTogetherIsAnError) {
  const std::string good =
      R"({"version": 2, "device": "cpu", "name": "n", "date": "d", "source": "s", "tables": [{"family": "step", "axes": {"bytes": [1, 2]}, "seconds": [1, 2], "bytes": [1, 2], "flops": [0, 0]}]})";
  ASSERT_TRUE(parse_calibration(good, "f").has_value());
  const auto broken = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return !parse_calibration(text, "f").has_value();
  };
  EXPECT_TRUE(broken("\"step\"", "\"steps\""));
  EXPECT_TRUE(broken("[1, 2]}", "[2, 1]}")) << "axes that do not ascend";
  EXPECT_TRUE(broken("\"seconds\": [1, 2]", "\"seconds\": [1]"));
  EXPECT_TRUE(broken("\"seconds\": [1, 2]", "\"seconds\": [1, 0]"));
  EXPECT_TRUE(broken("\"seconds\": [1, 2]", "\"seconds\": [1, -2]"));
  EXPECT_TRUE(broken("\"seconds\": [1, 2]", "\"seconds\": [1, null]"));
  EXPECT_TRUE(broken("\"seconds\": [1, 2]", "\"seconds\": 1"));
  EXPECT_TRUE(broken("\"axes\": {\"bytes\": [1, 2]}", "\"axes\": {}"));
  EXPECT_TRUE(broken("\"name\": \"n\", ", ""));
  EXPECT_TRUE(broken("\"version\": 2, ", "")) << "of the first version, whose tables were of other calls";
  EXPECT_TRUE(broken("\"version\": 2", "\"version\": 3"));
  EXPECT_FALSE(parse_calibration("[", "f").has_value());
}

TEST(Calibration, FormatsAreFoundByTheirBytes) {
  Calibration c;
  for (const auto& [name, bytes] :
       {std::pair<const char*, double>{"bf16", 2}, {"int8_row", 1}, {"fp8_row", 1}, {"int4_group128", 0.52}}) {
    MeasuredTable table = table_of(Family::kPlain, name);
    for (std::size_t i = 0; i < table.bytes.size(); ++i) {
      const std::size_t inputs = i % 3, outputs = i / 3 % 3;
      table.bytes[i] += (bytes - 2) * table.axes[1][outputs] * table.axes[2][inputs];
    }
    ASSERT_TRUE(table.prepare().has_value());
    c.tables.push_back(table);
  }
  EXPECT_EQ(c.find_like(Family::kPlain, 2, "native")->format, "bf16");
  EXPECT_EQ(c.find_like(Family::kPlain, 0.56, "")->format, "int4_group128");
  EXPECT_EQ(c.find_like(Family::kPlain, 1.0, "fp8")->format, "fp8_row");
  EXPECT_EQ(c.find_like(Family::kPlain, 1.0, "int8")->format, "int8_row");
  EXPECT_EQ(c.find_like(Family::kSum, 2, ""), nullptr);
}

TEST(Calibration, AnOlderOneFillsWhatANewOneLacks) {
  const auto old = whole("h200-sxm-141gb");
  Calibration fresh = *old;
  std::erase_if(fresh.tables, [](const MeasuredTable& t) { return t.family == Family::kAllReduce; });
  Calibration other = fresh;
  fresh.keep_from(*old);
  EXPECT_EQ(fresh.tables.size(), old->tables.size());
  other.name = "another device";
  const std::size_t before = other.tables.size();
  other.keep_from(*old);
  EXPECT_EQ(other.tables.size(), before);
}

// Every op of a pass is of one unit, or of none and priced as before.
TEST(Calibration, EveryOpIsCountedOnce) {
  for (const std::string kind : {"llama", "qwen3", "v3"}) {
    const auto model = model_of(tiny_config(kind));
    ASSERT_NE(model, nullptr);
    const auto calibration = whole("h200-sxm-141gb");
    auto p = priced(
        R"({"model": "deepseek-ai/deepseek-llm-7b-base", "hardware": "h200-sxm-141gb", "engine": "fathom", "task": "chat", "batch": 1})");
    ASSERT_NE(p, nullptr);
    const Rates rates = make_rates(p->request.cluster, p->curves, p->engine);
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kContinue}) {
      const auto trace = model->trace({}, phase, DType::f32);
      ASSERT_TRUE(trace.has_value());
      LowerInputs inputs;
      inputs.engine = &p->engine, inputs.rates = &rates, inputs.phase = phase;
      for (const KindTrace& layer : (*trace)->kinds) {
        UnitProgram program;
        add_units(layer.forward, 1, inputs, {}, *calibration, false, program);
        std::uint32_t ops = 0;
        for (const Unit& unit : program.units) ops += unit.ops;
        EXPECT_EQ(ops + program.rest.kernels.size(), layer.forward.ops.size()) << kind;
        EXPECT_TRUE(program.rest.kernels.empty()) << kind << ": all of these are in tables";
        for (const Unit& unit : program.units) {
          EXPECT_FALSE(phase == Phase::kDecode && (unit.family == Family::kRows || unit.family == Family::kLatentRows))
              << "attention's table has them";
          const Load load{.tokens = 7,
                          .outputs = 7,
                          .sequences = 7,
                          .visible = 100,
                          .keys = 100,
                          .decode = phase == Phase::kDecode};
          const double seconds = unit_seconds(unit, load, rates, {}, nullptr);
          EXPECT_TRUE(std::isfinite(seconds) && seconds > 0) << family_name(unit.family);
        }
      }
    }
  }
}

// Formats of as many bytes an element have tables of their own: a checkpoint says which is its.
TEST(Calibration, WeightsAsTheyAreAreOfTheirOwnFormat) {
  std::string config = tiny_config("llama");
  config.insert(config.size() - 1, R"(, "quantization_config": {"quant_method": "compressed-tensors",
    "format": "int-quantized", "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false},
    "input_activations": null, "output_activations": null}}})");
  const auto model = model_of(config);
  ASSERT_NE(model, nullptr);
  Calibration calibration;
  for (const char* name : {"bf16", "fp8_row", "int8_row"}) {
    MeasuredTable table = table_of(Family::kNormed, name);
    for (std::size_t i = 0; i < table.bytes.size(); ++i)
      if (name != std::string("bf16")) table.bytes[i] -= table.axes[1][i / 3 % 3] * table.axes[2][i % 3];
    ASSERT_TRUE(table.prepare().has_value());
    calibration.tables.push_back(table);
  }
  const auto trace = model->trace({}, Phase::kDecode, DType::f32);
  ASSERT_TRUE(trace.has_value());
  LowerInputs inputs;
  inputs.phase = Phase::kDecode;
  EngineProfile engine;
  const Rates rates;
  inputs.engine = &engine, inputs.rates = &rates;
  UnitProgram program;
  add_units((*trace)->kinds.front().forward, 1, inputs, {}, calibration, false, program);
  ASSERT_FALSE(program.units.empty());
  for (const Unit& unit : program.units) EXPECT_EQ(unit.table->format, "int8_row");
}

TEST(Calibration, PlansAreMadeOfIt) {
  PlanRequest request = request_of(
      R"({"model": "deepseek-ai/deepseek-llm-7b-base", "hardware": "h200-sxm-141gb", "engine": "fathom", "task": "chat", "weights": "bf16", "batch": 1, "input": 512, "output": 64})");
  request.cluster.device.calibration = nullptr;
  const auto before = make_plan(request);
  ASSERT_TRUE(before.has_value());
  EXPECT_TRUE(before->best.time.calibrated.empty());
  request.cluster.device.calibration = whole("h200-sxm-141gb");
  const auto after = make_plan(request);
  ASSERT_TRUE(after.has_value());
  const TimeEstimate& time = after->best.time;
  EXPECT_EQ(time.calibrated, "2026-11-22");
  EXPECT_EQ(time.provenance, ProvenanceTier::kMeasuredHere);
  EXPECT_FALSE(time.engine_fell_back);
  // 6.9 G parameters of which an embedding is one row, at the law's bandwidth, and a floor for each of some 330 units.
  const double weights = (6.91e9 - 102400.0 * 4096) * 2 / kStream;
  EXPECT_GT(time.tpot_ms->value, 1e3 * weights);
  EXPECT_LT(time.tpot_ms->value, 1e3 * (weights * 1.35 + 1e-3));
  // More sequences share the weights.
  request.batch = 8;
  const auto eight = make_plan(request);
  ASSERT_TRUE(eight.has_value());
  EXPECT_GT(*eight->best.time.decode_tokens_per_second, 4 * *time.decode_tokens_per_second);
  // An engine with kernels of its own has nothing of these.
  request.engine = *find_engine("vllm");
  const auto other = make_plan(request);
  ASSERT_TRUE(other.has_value());
  EXPECT_TRUE(other->best.time.calibrated.empty());
}

/// A table of steps that all take so long.
MeasuredTable steps_of(std::string_view way, double seconds) {
  MeasuredTable table;
  table.family = Family::kStep, table.format = way;
  table.axes = {{4, 1 << 24}};
  table.seconds = {seconds, seconds}, table.bytes = {4, 1 << 24}, table.flops = {0, 0};
  EXPECT_TRUE(table.prepare().has_value());
  return table;
}

TEST(Calibration, StepsArePricedAsEnginesStep) {
  const auto price = [](std::vector<MeasuredTable> ways, const std::string& layout) {
    PlanRequest request = request_of(
        R"({"model": "deepseek-ai/deepseek-llm-7b-base", "hardware": "h200-sxm-141gb", "gpus": 4, "engine": "fathom", "task": "chat", "weights": "bf16", "batch": 4, "input": 512, "output": 2, )" +
        layout + "}");
    auto calibration = whole("h200-sxm-141gb");
    std::erase_if(calibration->tables, [](const MeasuredTable& t) { return t.family == Family::kStep; });
    for (MeasuredTable& table : ways) calibration->tables.push_back(std::move(table));
    request.cluster.device.calibration = calibration;
    auto plan = make_plan(request);
    EXPECT_TRUE(plan.has_value()) << error_text(plan.error());
    return plan ? plan->best.time : TimeEstimate{};
  };
  const std::string split = R"("tp": 4)", staged = R"("pp": 4)";
  // A file of one way alone has what a host waits for, and that is what decoding is given too.
  const std::vector<MeasuredTable> old = {steps_of(kStepToHost, 1e-3)};
  std::vector<MeasuredTable> waits = old, goes_on = old;
  waits.push_back(steps_of(kStepChosen, 4e-4));
  goes_on.push_back(steps_of(kStepChosen, 4e-4)), goes_on.push_back(steps_of(kStepAhead, 1e-4));
  for (const std::string& layout : {split, staged}) {
    const double none = price({}, layout).tpot_ms->value, waited = price(old, layout).tpot_ms->value - none;
    EXPECT_GT(waited, 0.3) << layout;
    EXPECT_NEAR((price(waits, layout).tpot_ms->value - none) / waited, 0.4, 1e-6) << layout;
    EXPECT_NEAR((price(goes_on, layout).tpot_ms->value - none) / waited, layout == split ? 0.1 : 0.4, 1e-6) << layout;
  }
  EXPECT_EQ(price(goes_on, split).ttft_ms->value, price(old, split).ttft_ms->value) << "prompts are waited for";
}

// A layer of products is launched with its attention where there is one sequence; others are not.
TEST(Calibration, OneSequenceHasAnAttentionOfItsOwn) {
  const auto tpot = [](bool with_own, const std::string& model, const std::string& shape) {
    PlanRequest request = request_of(
        R"({"model": ")" + model +
        R"(", "hardware": "h200-sxm-141gb", "engine": "fathom", "task": "chat", "weights": "bf16", "input": 512, "output": 2, )" +
        shape + "}");
    auto calibration = whole("h200-sxm-141gb");
    if (with_own) {  // a second everywhere
      MeasuredTable own;
      own.family = Family::kDecode, own.format = kOneSequence;
      own.axes = {{2, 32}, {128, 8192}, {1, 8}};
      own.seconds.assign(8, 1.0), own.bytes.assign(8, 0.0), own.flops.assign(8, 0.0);
      EXPECT_TRUE(own.prepare().has_value());
      calibration->tables.push_back(own);
    }
    request.cluster.device.calibration = calibration;
    const auto plan = make_plan(request);
    EXPECT_TRUE(plan.has_value()) << error_text(plan.error());
    return plan ? plan->best.time.tpot_ms->value : 0;
  };
  const std::string dense = "deepseek-ai/deepseek-llm-7b-base", experts = "deepseek-ai/deepseek-moe-16b-base",
                    one = R"("batch": 1)", two = R"("batch": 2)", split = R"("batch": 1, "gpus": 2, "tp": 2)";
  const double without = tpot(false, dense, one), with = tpot(true, dense, one);
  EXPECT_GT(with, 30e3) << "a second in each of 30 layers";
  EXPECT_LT(with, 30e3 + without);
  EXPECT_EQ(tpot(true, dense, two), tpot(false, dense, two));
  EXPECT_EQ(tpot(true, dense, split), tpot(false, dense, split));
  EXPECT_NEAR(tpot(true, experts, one) - tpot(false, experts, one), 1e3, 1) << "one of its layers has no experts";
}

TEST(Calibration, LongPromptsGoInPasses) {
  PlanRequest request = request_of(
      R"({"model": "deepseek-ai/deepseek-v2-lite", "hardware": "h200-sxm-141gb", "engine": "fathom", "task": "chat", "weights": "bf16", "batch": 1, "input": 4096, "output": 8})");
  request.cluster.device.calibration = whole("h200-sxm-141gb");
  request.prefill_chunk = 4096;
  const auto once = make_plan(request);
  request.prefill_chunk = 256;
  const auto often = make_plan(request);
  ASSERT_TRUE(once.has_value() && often.has_value());
  EXPECT_GT(often->best.time.ttft_ms->value, 1.2 * once->best.time.ttft_ms->value)
      << "weights are read again by each pass";
}

}  // namespace
}  // namespace fathom::plan
