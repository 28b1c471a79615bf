// Models spread over ranks that are threads: the same logits as one rank alone, the same bits every time, bytes as
// planned, and a clear end when a rank fails.
#include <cmath>
#include <cstdlib>

#include "backends/threads/threads_transport.h"
#include "engine/crew.h"
#include "support.h"

namespace fathom::engine {
namespace {
using namespace test;  // NOLINT

constexpr EngineOptions kRankOptions{
    .slots = 3, .context = 96, .prefill_chunk = 40, .logit_rows = 40, .cache_dtype = DType::f32};

Result<model::ModelSpec> tiny_spec(const std::string& name) {
  if (name == "moe") return model::parse_config(kTinyMoe, "moe");
  return model::load_config(fathom::test::fixtures() / "golden" / name);
}

PartsMaker maker(const model::ModelSpec& spec, const EngineOptions& options, const std::string& device = "cpu") {
  return [=](const Seat& seat) -> Result<EngineParts> {
    EngineParts parts{.options = options};
    FATHOM_TRY(parts.architecture, model::make_architecture(spec, sharding_of(spec, seat.spread, seat.rank)));
    FATHOM_TRY(parts.backend, backends::make_backend(device, {.threads = 1}));
    FATHOM_TRY(parts.weights, weights::synthesize_in_memory(parts.architecture->weights(), *parts.backend,
                                                            {.storage = {}, .seed = 3, .threads = 1, .progress = {}}));
    return parts;
  };
}

Result<std::unique_ptr<Engine>> spread_engine(const std::string& name, const Spread& spread,
                                              const EngineOptions& options = kRankOptions) {
  FATHOM_TRY(const model::ModelSpec spec, tiny_spec(name));
  return start_threads(spread, threads::make_thread_transports(spread.ranks()), maker(spec, options));
}

// Logits of a few passes: prompts of three sequences, one of them in two chunks, then steps of all at once, with one
// slot left out once.
Result<std::vector<float>> run_some(Engine& engine) {
  std::vector<float> all;
  const auto keep = [&](std::span<const float> logits) { all.insert(all.end(), logits.begin(), logits.end()); };
  for (const std::int64_t s : {1, 0, 2}) {
    const auto ids = some_ids(s == 0 ? 55 : 7 + s, 500, s);
    FATHOM_TRY(const auto logits, engine.prefill(s, ids));
    keep(logits);
  }
  const auto more = some_ids(20, 500, 9);
  for (int g = 0; g < 4; ++g) {
    std::vector<SlotTokens> parts;
    for (std::int64_t s = 0; s < 3; ++s)
      if (g != 2 || s != 1) parts.push_back({s, std::span(more).subspan(static_cast<std::size_t>(3 * g + s), 1)});
    FATHOM_TRY(const auto logits, engine.step(parts, Logits::kLast));
    keep(logits);
  }
  // A prompt's rest beside a sequence that decodes, with all logits.
  const std::vector<SlotTokens> mixed = {{2, std::span(more).first(6)}, {1, std::span(more).subspan(6, 1)}};
  FATHOM_TRY(const auto logits, engine.step(mixed, Logits::kAll));
  keep(logits);
  return all;
}

struct Case {
  std::string name;
  Spread spread;
};

class Spreads : public testing::TestWithParam<Case> {};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& name : kTinyModels) {
    for (const Spread& spread :
         {Spread{.tp = 2}, Spread{.pp = 2}, Spread{.dp = 2}, Spread{.tp = 2, .pp = 2}, Spread{.tp = 2, .dp = 2}})
      all.push_back({name, spread});
    const auto spec = tiny_spec(name);
    if (!spec || spec->routing.experts == 0) continue;
    for (const Spread& spread : {Spread{.tp = 2, .ep = 2}, Spread{.dp = 2, .ep = 2}, Spread{.tp = 2, .dp = 2, .ep = 4},
                                 Spread{.tp = 2, .dp = 2, .ep = 2}, Spread{.pp = 2, .dp = 2, .ep = 2}})
      all.push_back({name, spread});
  }
  return all;
}

TEST_P(Spreads, AnswerAsOneRankAlone) {
  const auto& [name, spread] = GetParam();
  auto alone = spread_engine(name, {});
  ASSERT_TRUE(alone) << error_text(alone.error());
  const auto want = run_some(**alone);
  ASSERT_TRUE(want) << error_text(want.error());
  auto engine = spread_engine(name, spread);
  if (!engine && engine.error().key == "model.indivisible") GTEST_SKIP() << error_text(engine.error());
  ASSERT_TRUE(engine) << error_text(engine.error());
  const auto got = run_some(**engine);
  ASSERT_TRUE(got) << error_text(got.error());
  expect_close(*got, *want, 1e-4, name);
  for (int i = 0; i < 3; ++i) (*engine)->reset(i);
  const auto again = run_some(**engine);
  ASSERT_TRUE(again) << error_text(again.error());
  ASSERT_EQ(again->size(), got->size());
  EXPECT_EQ(std::memcmp(again->data(), got->data(), got->size() * sizeof(float)), 0) << "the same layout, other bits";

  ASSERT_EQ((*engine)->ranks().size(), static_cast<std::size_t>(spread.ranks()));
  Bytes weights = 0;
  for (const Engine::RankMemory& rank : (*engine)->ranks()) {
    EXPECT_EQ(rank.planned.total(), rank.allocated.total());
    EXPECT_EQ(rank.planned.weights_arena, rank.allocated.weights_arena);
    weights += rank.planned.weights;
  }
  // A share, not a copy: what is replicated (norms, latents' projections, routers) is the smaller part of these models.
  if (spread.dp == 1 || spread.ep > 1) {
    EXPECT_LT(static_cast<double>((*engine)->ranks()[0].planned.weights),
              0.9 * static_cast<double>((*alone)->planned().weights));
  }
  EXPECT_GE(weights, (*alone)->planned().weights);
  EXPECT_LE((*engine)->allocated().activations_peak, (*engine)->planned().activations_peak);
}

INSTANTIATE_TEST_SUITE_P(EveryArchitecture, Spreads, testing::ValuesIn(cases()), [](const auto& info) {
  const Spread& s = info.param.spread;
  return test_name(info.param.name) + "_tp" + std::to_string(s.tp) + "_pp" + std::to_string(s.pp) + "_dp" +
         std::to_string(s.dp) + "_ep" + std::to_string(s.ep);
});

TEST(Shares, EveryLayerAndExpertIsSomewhere) {
  const auto spec = tiny_spec("v3");
  ASSERT_TRUE(spec);
  const Spread spread{.tp = 2, .pp = 2, .dp = 2, .ep = 2};
  std::vector<int> layers(static_cast<std::size_t>(spec->layers));
  for (int r = 0; r < spread.ranks(); ++r) {
    const model::Sharding s = sharding_of(*spec, spread, r);
    EXPECT_EQ(s.tp_rank, r % 2);
    EXPECT_EQ(s.ep * s.expert_tp, 4);
    EXPECT_EQ(s.ep_rank * s.expert_tp + s.expert_tp_rank, r % 4);
    for (std::int64_t l = s.first_layer; l < (s.last_layer < 0 ? spec->layers : s.last_layer); ++l)
      ++layers[static_cast<std::size_t>(l)];
    const tensor::GroupMembers groups = groups_of(spread, r);
    EXPECT_EQ(groups.of(tensor::Group::kTensor), (std::vector<int>{r / 2 * 2, r / 2 * 2 + 1}));
    EXPECT_EQ(groups.of(tensor::Group::kPipeline), (std::vector<int>{r % 4, r % 4 + 4}));
    EXPECT_EQ(groups.of(tensor::Group::kExpert).front(), r / 4 * 4);
    EXPECT_EQ(groups.of(tensor::Group::kExpert).size(), 4u);
  }
  for (const int count : layers) EXPECT_EQ(count, 4);
}

TEST(Shares, WhatCannotBeIsOneSentence) {
  const auto dense = tiny_spec("llama-mha"), experts = tiny_spec("v3");
  ASSERT_TRUE(dense && experts);
  EXPECT_EQ(check_spread(*dense, {.pp = 99}).error().key, "ranks.layers");
  EXPECT_EQ(check_spread(*dense, {.tp = 2, .ep = 2}).error().key, "ranks.no_experts");
  EXPECT_EQ(check_spread(*experts, {.tp = 2, .ep = 4}).error().key, "ranks.experts");
  const auto refused = spread_engine("v3", {.tp = 3});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().key, "model.indivisible");
}

// ---------------------------------------------------------------- faults

TEST(Faults, ARankThatFailsEndsTheStepOfAll) {
  for (const char* what : {"error:1:2", "error:0:2"}) {
    const Fault fault(what);
    auto engine = spread_engine("llama-mha", {.tp = 2});
    ASSERT_TRUE(engine) << error_text(engine.error());
    const auto run = run_some(**engine);
    ASSERT_FALSE(run) << what;
    EXPECT_EQ(run.error().key, "ranks.failed");
    EXPECT_NE(error_text(run.error()).find(what[6]), std::string::npos) << error_text(run.error());
    const auto ids = some_ids(3, 500);
    const auto after = (*engine)->prefill(0, ids);
    ASSERT_FALSE(after) << "the run is over";
    EXPECT_EQ(after.error().key, "ranks.failed");
  }
}

TEST(Faults, ARankWithoutMemoryEndsTheStart) {
  const Fault fault("memory:1");
  const auto engine = spread_engine("llama-mha", {.tp = 2});
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().key, "ranks.injected");
}

TEST(Faults, ARankThatHangsIsNamed) {
  ::setenv("FATHOM_RANK_TIMEOUT", "1", 1);
  const Fault fault("hang:1:1");
  auto engine = spread_engine("llama-mha", {.tp = 2, .pp = 2});
  ASSERT_TRUE(engine) << error_text(engine.error());
  const auto run = run_some(**engine);
  ASSERT_FALSE(run);
  EXPECT_EQ(run.error().key, "ranks.silent");
  EXPECT_NE(error_text(run.error()).find("rank 1 of 4"), std::string::npos) << error_text(run.error());
  ::unsetenv("FATHOM_RANK_TIMEOUT");
}

}  // namespace
}  // namespace fathom::engine
