// Generation: what stops it, and that no listener ever sees what a stop string takes back.
#include "engine/generate.h"

#include "support.h"

namespace fathom::engine {
namespace {
using namespace test;  // NOLINT

// Token i is two letters, so that a stop string can lie across tokens.
text::Tokenizer two_letters(std::int64_t vocabulary) {
  std::string vocab;
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    const char letters[] = {static_cast<char>('a' + i / 26), static_cast<char>('a' + i % 26), '\0'};
    vocab += (i == 0 ? "" : ",") + std::string("\"") + letters + "\":" + std::to_string(i);
  }
  auto tokenizer = text::Tokenizer::from_text(
      R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" + vocab + R"(},"merges":[]}})", "", "test");
  EXPECT_TRUE(tokenizer) << error_text(tokenizer.error());
  return *tokenizer;
}

class Generate : public testing::Test {
 protected:
  void SetUp() override {
    auto made = make_engine("llama-mha", {.slots = 1, .context = 48, .prefill_chunk = 16});
    ASSERT_TRUE(made) << error_text(made.error());
    engine_ = std::move(*made);
    tokenizer_.emplace(two_letters(engine_->spec().vocabulary));
  }
  Generated answer(const GenerateOptions& options, std::string* heard = nullptr, std::size_t cancel_after = SIZE_MAX) {
    std::size_t pieces = 0;
    auto generated = generate(*engine_, 0, prompt_, options, &*tokenizer_, [&](std::string_view piece) {
      if (heard) *heard += piece;
      return ++pieces < cancel_after;
    });
    EXPECT_TRUE(generated) << error_text(generated.error());
    return generated ? std::move(*generated) : Generated{};
  }
  std::unique_ptr<Engine> engine_;
  std::optional<text::Tokenizer> tokenizer_;
  std::vector<std::int32_t> prompt_ = some_ids(9, 500);
};

TEST_F(Generate, RunsToItsLength) {
  std::string heard;
  const Generated result = answer({.max_tokens = 12}, &heard);
  EXPECT_EQ(result.reason, StopReason::kLength);
  EXPECT_EQ(result.ids.size(), 12u);
  EXPECT_EQ(result.token_seconds.size(), 11u) << "the first token comes with the prompt";
  EXPECT_EQ(result.text, tokenizer_->decode(result.ids));
  EXPECT_EQ(heard, result.text);
  EXPECT_EQ(answer({.max_tokens = 12}).ids, result.ids) << "greedy answers the same again";
  EXPECT_EQ(answer({.max_tokens = 0}).ids.size(), 0u);
}

TEST_F(Generate, SamplingDependsOnItsSeed) {
  const auto ids = [&](std::uint64_t seed) {
    return answer({.max_tokens = 16, .sampling = {.temperature = 1.5, .seed = seed}}).ids;
  };
  EXPECT_EQ(ids(1), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST_F(Generate, AStopStringAcrossTokensEndsIt) {
  const std::string whole = answer({.max_tokens = 14}).text;
  ASSERT_EQ(whole.size(), 28u);
  for (const std::size_t begin : {1u, 4u, 7u, 11u}) {
    const std::string stop = whole.substr(begin, 5);  // lies across three tokens
    const std::size_t first = whole.find(stop);
    std::string heard;
    const Generated result = answer({.max_tokens = 14, .stop_strings = {"never said", stop}}, &heard);
    EXPECT_EQ(result.reason, StopReason::kStopString) << stop;
    EXPECT_EQ(result.text, whole.substr(0, first)) << stop;
    EXPECT_EQ(heard, result.text) << "nothing of the stop string was let out";
    EXPECT_EQ(result.ids.size(), (first + 5 + 1) / 2) << "and nothing was computed beyond it";
  }
}

TEST_F(Generate, TheEarlierOfTwoStopStringsCounts) {
  const std::string whole = answer({.max_tokens = 14}).text;
  const Generated result = answer({.max_tokens = 14, .stop_strings = {whole.substr(13, 4), whole.substr(5, 3)}});
  EXPECT_EQ(result.text, whole.substr(0, std::min(whole.find(whole.substr(13, 4)), whole.find(whole.substr(5, 3)))));
}

TEST_F(Generate, WhatOnlyBeganLikeAStopStringComesOut) {
  const std::string whole = answer({.max_tokens = 6}).text;
  const std::string almost = whole.substr(whole.size() - 3) + "?";
  std::string heard;
  const Generated result = answer({.max_tokens = 6, .stop_strings = {almost}}, &heard);
  EXPECT_EQ(result.reason, StopReason::kLength);
  EXPECT_EQ(result.text, whole);
  EXPECT_EQ(heard, whole);
}

TEST_F(Generate, AnEndTokenEndsItAndIsNotPartOfIt) {
  const auto ids = answer({.max_tokens = 10}).ids;
  const std::int32_t end = ids[4];
  const auto first = static_cast<std::size_t>(std::find(ids.begin(), ids.end(), end) - ids.begin());
  const Generated result = answer({.max_tokens = 10, .stop_ids = {511, end}});
  EXPECT_EQ(result.reason, StopReason::kEndToken);
  EXPECT_EQ(result.ids, std::vector<std::int32_t>(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(first)));
  const Generated through = answer({.max_tokens = 10, .stop_ids = {end}, .ignore_stop = true});
  EXPECT_EQ(through.ids, ids);
}

TEST_F(Generate, AFullContextEndsIt) {
  const Generated result = answer({.max_tokens = 1000});
  EXPECT_EQ(result.reason, StopReason::kContextFull);
  EXPECT_EQ(engine_->length(0), 48);
  EXPECT_EQ(result.ids.size(), 48u - prompt_.size() + 1) << "the last one needs no room: nothing follows it";
}

TEST_F(Generate, AListenerCanCancel) {
  const Generated result = answer({.max_tokens = 20}, nullptr, 3);
  EXPECT_EQ(result.reason, StopReason::kCancelled);
  EXPECT_EQ(result.ids.size(), 3u);
}

TEST_F(Generate, NeedsAPromptAndSoundOptions) {
  const std::vector<std::int32_t> nothing;
  const auto empty = generate(*engine_, 0, nothing, {}, nullptr);
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.error().key, "engine.empty_prompt");
  const auto bad = generate(*engine_, 0, prompt_, {.sampling = {.temperature = -1}}, nullptr);
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().key, "engine.sampling_range");
  const auto without = generate(*engine_, 0, prompt_, {.max_tokens = 3}, nullptr);
  ASSERT_TRUE(without);
  EXPECT_EQ(without->ids.size(), 3u);
  EXPECT_EQ(without->text, "");
}

}  // namespace
}  // namespace fathom::engine
