// Whole tokenizers: against Hugging Face tokenizers 0.23.2 (tests/fixtures/text/tokenizers.json), and what must hold
// for any text.
#include "text/tokenizer.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <atomic>
#include <thread>

#include "base/strings.h"
#include "support.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

using Ids = std::vector<std::int32_t>;

std::string streamed(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  StreamDecoder stream = tokenizer.stream(skip_special);
  std::string out;
  for (const std::int32_t id : ids) {
    const std::string part = stream.push(id);
    EXPECT_TRUE(is_valid_utf8(part));
    out += part;
  }
  return out + stream.finish();
}

TEST(Tokenizer, EncodesAndDecodesAsHuggingFaceDoes) {
  const Json golden = test::fixture("tokenizers.json");
  ASSERT_GE(golden.size(), 15u);
  for (const Json& entry : golden) {
    const auto tokenizer = test::make(entry["tokenizer"]);
    ASSERT_TRUE(tokenizer) << entry["name"] << ": " << test::why(tokenizer);
    for (const Json& one : entry["cases"]) {
      const std::string text = one["text"];
      SCOPED_TRACE(entry["name"].get<std::string>() + " on " + printable(text));
      const auto ids = tokenizer->encode(text), special = tokenizer->encode(text, true);
      ASSERT_TRUE(ids) << test::why(ids);
      EXPECT_EQ(*ids, one["ids"].get<Ids>());
      EXPECT_EQ(*special, one["with_special"].get<Ids>());
      EXPECT_EQ(tokenizer->decode(*ids), one["decoded"].get<std::string>());
      EXPECT_EQ(tokenizer->decode(*ids, true), one["without_special"].get<std::string>());
      EXPECT_EQ(streamed(*tokenizer, *ids, false), one["decoded"].get<std::string>());
      EXPECT_EQ(streamed(*tokenizer, *ids, true), one["without_special"].get<std::string>());
    }
  }
}

const Tokenizer& byte_level() {
  static const Tokenizer tokenizer = *test::make(test::byte_level_json());
  return tokenizer;
}

std::string random_text() {
  std::string text;
  for (const auto point : *rc::gen::container<std::vector<std::uint32_t>>(
           rc::gen::oneOf(rc::gen::inRange<std::uint32_t>(0, 0x80), rc::gen::inRange<std::uint32_t>(0x80, 0xd800),
                          rc::gen::inRange<std::uint32_t>(0xe000, 0x110000),
                          rc::gen::element<std::uint32_t>('h', 'e', 'l', 'o', 'a', ' ', '\n'))))
    append_utf8(text, point);
  return text;
}

RC_GTEST_PROP(Tokenizer, ByteLevelRoundTrips, ()) {
  const std::string text = random_text();
  const auto ids = byte_level().encode(text);
  RC_ASSERT(ids.has_value());
  RC_ASSERT(byte_level().decode(*ids) == text);
}

RC_GTEST_PROP(Tokenizer, StreamingNeverBreaksACharacter, (const std::vector<std::uint16_t>& numbers)) {
  Ids ids;
  for (const auto number : numbers) ids.push_back(number % 270);  // any ids at all: mostly no text that anybody wrote
  RC_ASSERT(streamed(byte_level(), ids, false) == byte_level().decode(ids));
}

TEST(Tokenizer, HoldsBackTheBytesOfACharacter) {
  const auto ids = byte_level().encode("😀x");
  ASSERT_EQ(ids->size(), 5u);
  StreamDecoder stream = byte_level().stream();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.push((*ids)[static_cast<std::size_t>(i)]), "");
  EXPECT_EQ(stream.push((*ids)[3]), "😀");
  EXPECT_EQ(stream.push((*ids)[4]), "x");
  EXPECT_EQ(stream.push((*ids)[0]), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.push((*ids)[4]), "x");  // ready for another text
}

TEST(Tokenizer, LongWordsAreNotQuadratic) {
  const auto ids = byte_level().encode(std::string(1'000'000, 'a'));
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->size(), 250'000u);
  const auto odd = byte_level().encode(std::string(1'000'003, 'a'));
  EXPECT_EQ(odd->size(), 250'002u);  // aaaa … aaaa aa a
}

TEST(Tokenizer, BothWaysOfJoiningAgree) {
  // Up to 64 letters are joined by scanning, more by a heap: the same word alone and inside a long one.
  const std::string unit = "helloaahellohelaaaaa";
  std::string text;
  for (int i = 0; i < 3; ++i) text += unit;
  const auto few = byte_level().encode(text);
  for (int i = 0; i < 7; ++i) text += unit;
  const auto many = byte_level().encode(text);
  ASSERT_GT(text.size(), 64u);
  EXPECT_EQ(byte_level().decode(*many), text);
  EXPECT_EQ(Ids(many->begin(), many->begin() + 12), Ids(few->begin(), few->begin() + 12));
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  for (const std::string_view text : {"\xff", "a\xC3", "\xED\xA0\x80", "\xC0\x80"}) {
    const auto ids = byte_level().encode(text);
    ASSERT_FALSE(ids);
    EXPECT_EQ(ids.error().key, "text.invalid_utf8");
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  const auto tokenizer =
      test::make(test::byte_level_json(),
                 R"({"bos_token": {"content": "<s>"}, "eos_token": "h", "pad_token": null, "unk_token": "nowhere"})");
  ASSERT_TRUE(tokenizer) << test::why(tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 263);
  EXPECT_EQ(tokenizer->bos_id(), 262);
  EXPECT_EQ(tokenizer->eos_id(), 'h');
  EXPECT_EQ(tokenizer->pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer->unk_id(), std::nullopt);
  EXPECT_EQ(tokenizer->token_of(262), "<s>");
  EXPECT_EQ(tokenizer->id_of("hello"), 259);
  EXPECT_EQ(tokenizer->token_of(-1), std::nullopt);
  EXPECT_EQ(tokenizer->token_of(100'000'000), std::nullopt);
  EXPECT_TRUE(tokenizer->is_special(262));
  EXPECT_FALSE(tokenizer->is_special('h'));
  EXPECT_EQ(tokenizer->decode(Ids{259, -5, 1 << 30, 262}), "hello<s>");
  EXPECT_EQ(tokenizer->decode(Ids{259, 262}, true), "hello");
}

TEST(Tokenizer, LlamaClassesSayInTheirConfigWhatGoesAround) {
  const auto both = test::make(
      test::byte_level_json(),
      R"({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "h", "add_bos_token": true, "add_eos_token": true})");
  EXPECT_EQ(both->encode("a", true), (Ids{262, 'a', 'h'}));
  const auto none =
      test::make(test::byte_level_json(),
                 R"({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "add_bos_token": false})");
  EXPECT_EQ(none->encode("a", true), (Ids{'a'}));
  const auto other = test::make(test::byte_level_json(),
                                R"({"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<s>", "add_bos_token": true})");
  EXPECT_EQ(other->encode("a", true), (Ids{'a'}));
}

TEST(Tokenizer, ManyThreadsEncodeAtOnce) {
  const std::string text = "hello aaaa hell 你好 helloaa";
  const Tokenizer fresh = *test::make(test::byte_level_json());
  const auto want = byte_level().encode(text);
  std::vector<std::thread> threads;
  std::atomic<int> equal{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int k = 0; k < 200; ++k) {
        const auto got = fresh.encode(text);
        equal += got && *got == *want;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 800);
}

}  // namespace
}  // namespace fathom::text
