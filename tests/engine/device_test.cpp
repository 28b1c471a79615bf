// What an engine does with a device that chooses tokens by itself and may fail, without one: the cpu backend stands for
// it.
#include <algorithm>
#include <utility>

#include "backends/threads/threads_transport.h"
#include "engine/crew.h"
#include "engine/generate.h"
#include "support.h"
#include "tensor/forwarding_backend.h"

namespace fathom::engine {
namespace {
using namespace test;  // NOLINT

/// Chooses as a device would, and breaks when it is asked to.
class StandIn final : public tensor::ForwardingBackend {
 public:
  bool break_device() override { return broken_ = true; }
  Status synchronize() override {
    if (broken_) return fail_environment("cuda.device_failed", {{"gpu", "0"}, {"error", "broken on purpose"}});
    return inner().synchronize();
  }
  bool sample(const tensor::SampleArgs& args) override {
    const std::int64_t words = (args.vocabulary + 31) / 32;
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const tensor::SamplingRow& row = args.asked[r];
      std::uint32_t* const seen = args.seen + row.seen * words;
      const float* const logits = args.logits + r * args.vocabulary;
      args.ids[r] = choose(logits, args.vocabulary, row, seen);
      if (row.penalty != 1 && args.ids[r] >= 0) seen[args.ids[r] / 32] |= 1u << (args.ids[r] % 32);
      if (args.next.sequences != nullptr) leave_next(args.next, r, std::max(args.ids[r], 0));
    }
    return true;
  }
  /// Launching does the work here; who waits learns nothing new, and may not ask for what was never launched.
  bool runs_ahead() const override { return ahead_; }
  void remember(int moment) override { remembered_[static_cast<std::size_t>(moment)] = true; }
  Status await_moment(int moment) override {
    FATHOM_CHECK(std::exchange(remembered_[static_cast<std::size_t>(moment)], false));
    return synchronize();
  }
  StandIn(std::unique_ptr<Backend> inner, bool ahead) : ForwardingBackend(std::move(inner)), ahead_(ahead) {}

 private:
  /// Without filters, which the Sampler's own tests are about.
  static std::int32_t choose(const float* logits, std::int64_t n, const tensor::SamplingRow& row,
                             const std::uint32_t* seen) {
    const auto score = [&](std::int64_t id) {
      return tensor::sampling_score(logits[id], row.penalty, (seen[id / 32] >> (id % 32) & 1u) != 0);
    };
    std::int64_t best = 0;
    for (std::int64_t id = 1; id < n; ++id)
      if (score(id) > score(best)) best = id;
    if (row.per_octave == 0) return static_cast<std::int32_t>(best);
    std::uint64_t total = 0, sum = 0;
    for (std::int64_t id = 0; id < n; ++id) total += tensor::sampling_weight(score(id), score(best), row.per_octave);
    for (std::int64_t id = 0; id < n; ++id)
      if ((sum += tensor::sampling_weight(score(id), score(best), row.per_octave)) > tensor::share_of(total, row.draw))
        return static_cast<std::int32_t>(id);
    return -1;
  }
  static void leave_next(const tensor::NextPass& next, std::int64_t r, std::int32_t id) {
    tensor::Sequence& sequence = next.sequences[r];
    const std::int32_t past = sequence.past + sequence.tokens, row = static_cast<std::int32_t>(r);
    sequence = {.slot = sequence.slot, .first_token = row, .tokens = 1, .past = past};
    next.ids[r] = id;
    next.positions[r] = past;
    next.wanted[r] = row;
  }
  bool broken_ = false, ahead_ = false;
  std::array<bool, tensor::kMoments> remembered_{};
};

PartsMaker maker(const std::string& name, const EngineOptions& options, bool ahead = false) {
  return [=](const Seat& seat) -> Result<EngineParts> {
    EngineParts parts{.options = options};
    FATHOM_TRY(const model::ModelSpec spec, model::load_config(fathom::test::fixtures() / "golden" / name));
    FATHOM_TRY(parts.architecture, model::make_architecture(spec, sharding_of(spec, seat.spread, seat.rank)));
    FATHOM_TRY(auto cpu, backends::make_backend("cpu", {.threads = 1}));
    parts.backend = std::make_unique<StandIn>(std::move(cpu), ahead);
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
