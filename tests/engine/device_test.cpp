// What an engine does with a device that chooses tokens by itself and may fail, without one: the cpu backend stands for
// it.
#include <algorithm>

#include "backends/threads/threads_transport.h"
#include "engine/crew.h"
#include "engine/generate.h"
#include "support.h"
#include "support/stand_in.h"

namespace fathom::engine {
namespace {
using namespace test;  // NOLINT

PartsMaker maker(const std::string& name, const EngineOptions& options, bool ahead = false) {
  return [=](const Seat& seat) -> Result<EngineParts> {
    EngineParts parts{.options = options};
    FATHOM_TRY(const model::ModelSpec spec, model::load_config(fathom::test::fixtures() / "golden" / name));
    FATHOM_TRY(parts.architecture, model::make_architecture(spec, sharding_of(spec, seat.spread, seat.rank)));
    FATHOM_TRY(auto cpu, backends::make_backend("cpu", {.threads = 1}));
    parts.backend = std::make_unique<fathom::test::StandIn>(std::move(cpu), ahead);
    FATHOM_TRY(parts.weights, weights::synthesize_in_memory(parts.architecture->weights(), *parts.backend,
                                                            {.storage = {}, .seed = 3, .threads = 1, .progress = {}}));
    return parts;
  };
}

constexpr EngineOptions kOptions{.slots = 3, .context = 96, .prefill_chunk = 24, .cache_dtype = DType::f32};

TEST(Choosing, GivesTheTokensThatTheHostWouldTake) {
  auto here = make_engine("llama3-gqa", kOptions, "cpu", 1);
  auto there = start_alone(maker("llama3-gqa", kOptions));
  ASSERT_TRUE(here && there);
  EXPECT_FALSE((*here)->chooses());
  ASSERT_TRUE((*there)->chooses());
  const auto prompt = some_ids(30, 500);  // in two chunks
  for (const SamplingOptions& sampling : {SamplingOptions{},
                                          {.temperature = 1.2, .seed = 4},
                                          {.repetition_penalty = 1.6},
                                          {.temperature = 0.9, .repetition_penalty = 1.3, .seed = 8}}) {
    const GenerateOptions options{
        .max_tokens = 24, .sampling = sampling, .stop_ids = {}, .stop_strings = {}, .ignore_stop = true};
    const auto a = generate(**here, 1, prompt, options, nullptr), b = generate(**there, 1, prompt, options, nullptr);
    ASSERT_TRUE(a && b);
    EXPECT_EQ(a->ids, b->ids);
    EXPECT_EQ(b->token_seconds.size(), 23u);
  }
  EXPECT_EQ((*there)->planned().total(), (*there)->allocated().total());
  EXPECT_EQ((*there)->planned().host, (*there)->allocated().host);
}

TEST(Choosing, KeepsTheCallersOrder) {
  auto here = make_engine("llama3-gqa", kOptions, "cpu", 1);
  ASSERT_TRUE(here);
  for (const Spread& spread : {Spread{}, Spread{.dp = 2}, Spread{.tp = 2, .pp = 2}}) {
    auto there = start_threads(spread, threads::make_thread_transports(spread.ranks()), maker("llama3-gqa", kOptions));
    ASSERT_TRUE(there) << error_text(there.error());
    std::vector<std::vector<std::int32_t>> ids;
    std::vector<SlotTokens> parts;
    for (const std::int64_t slot : {2, 0, 1}) ids.push_back(some_ids(4 + slot, 500, slot));
    for (const std::int64_t slot : {2, 0, 1}) parts.push_back({slot, ids[parts.size()]});
    for (std::int64_t slot = 0; slot < 3; ++slot) (*here)->reset(slot);
    const auto logits = (*here)->step(parts, Logits::kLast);
    ASSERT_TRUE(logits);
    ASSERT_TRUE((*there)->begin(parts, std::vector<tensor::SamplingRow>(3)));
    const auto chosen = (*there)->take_chosen();
    ASSERT_TRUE(chosen) << error_text(chosen.error());
    for (std::size_t i = 0; i < 3; ++i) {
      Sampler sampler({}, (*here)->spec().vocabulary);
      EXPECT_EQ((*chosen)[i], *sampler.sample(logits->subspan(i * static_cast<std::size_t>((*here)->spec().vocabulary),
                                                              static_cast<std::size_t>((*here)->spec().vocabulary))))
          << i;
    }
  }
}

// Through architectures whose caches are lists, latents, and windows with compressed entries.
TEST(RunningAhead, GivesTheSameTokens) {
  for (const char* name : {"llama3-gqa", "v2-lite", "v32", "v4"}) {
    auto here = make_engine(name, kOptions, "cpu", 1);
    ASSERT_TRUE(here);
    for (const Spread& spread : {Spread{}, Spread{.tp = 2}, Spread{.dp = 2}, Spread{.tp = 2, .pp = 2}}) {
      auto there = start_threads(spread, threads::make_thread_transports(spread.ranks()), maker(name, kOptions, true));
      ASSERT_TRUE(there) << error_text(there.error());
      EXPECT_EQ((*there)->runs_ahead(), spread.dp == 1 && spread.pp == 1);
      const auto prompt = some_ids(30, 500);  // in two chunks
      for (const SamplingOptions& sampling :
           {SamplingOptions{}, {.temperature = 0.9, .repetition_penalty = 1.3, .seed = 8}}) {
        for (const std::int64_t length : {1, 2, 12}) {
          const GenerateOptions options{
              .max_tokens = length, .sampling = sampling, .stop_ids = {}, .stop_strings = {}, .ignore_stop = true};
          const auto a = generate(**here, 1, prompt, options, nullptr),
                     b = generate(**there, 1, prompt, options, nullptr);
          ASSERT_TRUE(a && b) << error_text(b.error());
          EXPECT_EQ(a->ids, b->ids) << name << ", tp " << spread.tp << ", pp " << spread.pp << ", dp " << spread.dp;
          EXPECT_EQ((*here)->length(1), (*there)->length(1)) << "nothing is computed that was not asked for";
        }
      }
      for (const auto& memory : (*there)->ranks()) {
        EXPECT_EQ(memory.planned.total(), memory.allocated.total());
        EXPECT_EQ(memory.planned.host, memory.allocated.host);
      }
    }
  }
}

TEST(RunningAhead, WhatATextEndedLeavesNoTrace) {
  auto here = make_engine("llama3-gqa", kOptions, "cpu", 1);
  auto there = start_threads({.tp = 2}, threads::make_thread_transports(2), maker("llama3-gqa", kOptions, true));
  ASSERT_TRUE(here && there);
  const auto prompt = some_ids(9, 500), other = some_ids(5, 500, 3);
  const auto whole = generate(**here, 0, prompt, {.max_tokens = 10}, nullptr);
  ASSERT_TRUE(whole);
  const std::int32_t end = whole->ids[4];
  for (int i = 0; i < 2; ++i) {  // the second begins where the first was left
    const auto ended = generate(**there, 0, prompt, {.max_tokens = 10, .stop_ids = {end}}, nullptr);
    ASSERT_TRUE(ended) << error_text(ended.error());
    const auto first = std::find(whole->ids.begin(), whole->ids.end(), end);
    EXPECT_EQ(ended->ids, std::vector<std::int32_t>(whole->ids.begin(), first));
    EXPECT_EQ(ended->reason, StopReason::kEndToken);
  }
  const auto a = generate(**here, 2, other, {.max_tokens = 10}, nullptr),
             b = generate(**there, 2, other, {.max_tokens = 10}, nullptr);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->ids, b->ids);
}

TEST(RunningAhead, EndsWithTheContext) {
  auto there = start_alone(maker("llama3-gqa", kOptions, true));
  ASSERT_TRUE(there);
  const auto full = generate(**there, 0, some_ids(90, 500), {.max_tokens = 100}, nullptr);
  ASSERT_TRUE(full) << error_text(full.error());
  EXPECT_EQ(full->reason, StopReason::kContextFull);
  EXPECT_EQ(full->ids.size(), 7u) << "the last one needs no room: nothing follows it";
  EXPECT_EQ((*there)->length(0), 96);
}

TEST(RunningAhead, SeveralSequencesGoOnTogether) {
  auto here = make_engine("v32", kOptions, "cpu", 1);
  auto there = start_alone(maker("v32", kOptions, true));
  ASSERT_TRUE(here && there);
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<SlotTokens> parts;
  for (const std::int64_t slot : {2, 0, 1}) ids.push_back(some_ids(4 + slot, 500, slot));
  for (const std::int64_t slot : {2, 0, 1}) parts.push_back({slot, ids[parts.size()]});
  const std::vector<tensor::SamplingRow> greedy(3);
  ASSERT_TRUE((*there)->begin(parts, greedy));
  for (int step = 0; step < 8; ++step) {
    const auto logits = (*here)->step(parts, Logits::kLast);
    ASSERT_TRUE(logits);
    const auto width = static_cast<std::size_t>((*here)->spec().vocabulary);
    if (step < 7) {
      ASSERT_TRUE((*there)->begin_next(greedy));
    }
    const auto chosen = (*there)->take_chosen();
    ASSERT_TRUE(chosen) << error_text(chosen.error());
    for (std::size_t i = 0; i < 3; ++i) {
      Sampler sampler({}, (*here)->spec().vocabulary);
      ids[i] = {*sampler.sample(logits->subspan(i * width, width))};
      EXPECT_EQ((*chosen)[i], ids[i][0]) << "step " << step << ", sequence " << i;
      parts[i].ids = ids[i];
    }
  }
}

TEST(Broken, DeviceEndsTheStepWithWhatItSays) {
  const Fault fault("device:0:1");
  auto engine = start_alone(maker("llama3-gqa", kOptions));
  ASSERT_TRUE(engine);
  const auto ids = some_ids(3, 500);
  ASSERT_TRUE((*engine)->prefill(0, ids));
  const auto failed = (*engine)->prefill(0, ids);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().key, "cuda.device_failed");
  EXPECT_NE(error_text(failed.error()).find("broken on purpose"), std::string::npos);
}

TEST(Broken, DeviceOfAnotherRankIsNamed) {
  const Fault fault("device:1:1");
  auto engine = start_threads({.tp = 2}, threads::make_thread_transports(2), maker("llama3-gqa", kOptions));
  ASSERT_TRUE(engine);
  const auto ids = some_ids(3, 500);
  static_cast<void>((*engine)->prefill(0, ids));
  auto failed = (*engine)->prefill(0, ids);
  for (int i = 0; failed && i < 3; ++i) failed = (*engine)->prefill(0, ids);  // rank 0 may have had all that it needed
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().key, "ranks.failed");
  EXPECT_NE(error_text(failed.error()).find("rank 1 of 2"), std::string::npos) << error_text(failed.error());
  EXPECT_NE(error_text(failed.error()).find("broken on purpose"), std::string::npos) << error_text(failed.error());
}

TEST(Broken, DeviceOfAPassAheadIsNamed) {
  const Fault fault("device:1:4");
  auto engine = start_threads({.tp = 2}, threads::make_thread_transports(2), maker("llama3-gqa", kOptions, true));
  ASSERT_TRUE(engine);
  const auto failed = generate(**engine, 0, some_ids(3, 500), {.max_tokens = 20}, nullptr);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().key, "ranks.failed");
  EXPECT_NE(error_text(failed.error()).find("rank 1 of 2"), std::string::npos) << error_text(failed.error());
}

TEST(Broken, WithoutADeviceThePassFails) {
  const Fault fault("device:0:0");
  auto engine = make_engine("llama3-gqa", kOptions, "cpu", 1);
  ASSERT_TRUE(engine);
  const auto failed = (*engine)->prefill(0, some_ids(3, 500));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().key, "ranks.injected");
}

}  // namespace
}  // namespace fathom::engine
