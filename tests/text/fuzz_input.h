// What the fuzzers and the replay of their corpora do with one input: a file's text, a zero byte, and what it is used
// on.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "base/strings.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom::text::test {

inline std::pair<std::string_view, std::string_view> halves(std::string_view input) {
  const std::size_t zero = input.find('\0');
  if (zero == std::string_view::npos) return {input, {}};
  return {input.substr(0, zero), input.substr(zero + 1)};
}

/// A tokenizer.json and a text. Whatever loads encodes or says why not; decoding answers UTF-8, and streaming answers
/// the same.
inline void fuzz_tokenizer(std::string_view input) {
  const auto [json, text] = halves(input);
  const auto tokenizer = Tokenizer::from_text(json, {}, "fuzz");
  if (!tokenizer) {
    FATHOM_CHECK(!error_text(tokenizer.error()).starts_with("text."), "a sentence for every error");
    return;
  }
  for (const bool special : {false, true}) {
    const auto ids = tokenizer->encode(text, special);
    if (!ids) {
      FATHOM_CHECK(!error_text(ids.error()).starts_with("text."), "a sentence for every error");
      return;
    }
    for (const bool skip : {false, true}) {
      const std::string decoded = tokenizer->decode(*ids, skip);
      FATHOM_CHECK(is_valid_utf8(decoded), "decoded text is UTF-8");
      StreamDecoder stream = tokenizer->stream(skip);
      std::string streamed;
      for (const std::int32_t id : *ids) {
        const std::string part = stream.push(id);
        FATHOM_CHECK(is_valid_utf8(part), "streamed text is whole characters");
        streamed += part;
      }
      streamed += stream.finish();
      FATHOM_CHECK(streamed == decoded, "streaming decodes the same");
    }
  }
}

/// A template and its context. It renders UTF-8 or fails with a sentence, within its limits.
inline void fuzz_template(std::string_view input) {
  const auto [source, context] = halves(input);
  const auto chat = ChatTemplate::parse(source);
  if (!chat) {
    FATHOM_CHECK(!error_text(chat.error()).starts_with("text."), "a sentence for every error");
    return;
  }
  auto json = parse_json(context, "fuzz");
  if (!json || !json->is_object()) json = Json::object();
  if (!json->contains("messages"))
    (*json)["messages"] =
        Json::array({{{"role", "user"}, {"content", "Hé"}}, {{"role", "assistant"}, {"content", nullptr}}});
  const auto rendered =
      chat->render(*json, {.now = 1700000000, .max_steps = 200'000, .max_bytes = std::size_t{16} << 20});
  if (!rendered)
    FATHOM_CHECK(!error_text(rendered.error()).starts_with("text."), "a sentence for every error");
  else
    FATHOM_CHECK(is_valid_utf8(*rendered), "rendered text is UTF-8");
}

}  // namespace fathom::text::test
