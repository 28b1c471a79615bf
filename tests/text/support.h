// Fixtures of the room text, and a small byte-level tokenizer made on the spot.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "base/files.h"
#include "base/json.h"
#include "base/result.h"
#include "support/paths.h"
#include "text/byte_level.h"
#include "text/tokenizer.h"

namespace fathom::text::test {

inline Json read_json(const Path& path) {
  const auto text = read_file(path, 64u << 20);
  EXPECT_TRUE(text) << path;
  auto json = parse_json(text.value_or("null"), path.string());
  EXPECT_TRUE(json) << path;
  return json ? *json : Json();
}
inline Json fixture(std::string_view name) { return read_json(fathom::test::fixtures() / "text" / name); }

template <class T>
std::string why(const Result<T>& result) {
  return result ? "" : error_text(result.error());
}

/// A tokenizer.json with the 256 byte letters and some merges, "text" in any language encodable.
inline Json byte_level_json() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    std::string letter;
    const char c = static_cast<char>(byte);
    append_byte_letters(letter, {&c, 1});
    vocab[letter] = byte;
  }
  Json merges = Json::array();
  const auto merge = [&](const std::string& a, const std::string& b) {
    merges.push_back({a, b});
    vocab[a + b] = vocab.size();
  };
  merge("h", "e"), merge("l", "l"), merge("he", "ll"), merge("hell", "o"), merge("a", "a"), merge("aa", "aa");
  const Json pre = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return {{"added_tokens", Json::array({{{"id", 262}, {"content", "<s>"}, {"special", true}, {"normalized", false}}})},
          {"pre_tokenizer", pre},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}
inline Result<Tokenizer> make(const Json& json, std::string_view config = {}) {
  return Tokenizer::from_text(dump_json(json), config, "test");
}

}  // namespace fathom::text::test
