#include "text/decoder.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "base/strings.h"
#include "text/byte_level.h"
#include "text/fields.h"
#include "text/normalizer.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr std::string_view kDecoderPart = "decoder";
constexpr std::string_view kKnownDecoders = "ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip, Sequence";

// The byte of "<0xAB>", or -1.
int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const char lower = static_cast<char>(c | 32);
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (lower < 'a' || lower > 'f')) return -1;
    value = value * 16 + (digit ? c - '0' : lower - 'a' + 10);
  }
  return value;
}

// `text` without up to `start` copies of `one` at its beginning and up to `stop` at its end.
std::string_view stripped(std::string_view text, std::string_view one, std::size_t start, std::size_t stop) {
  for (; start > 0 && text.starts_with(one); --start) text.remove_prefix(one.size());
  for (; stop > 0 && text.ends_with(one); --stop) text.remove_suffix(one.size());
  return text;
}

Result<std::size_t> count_field(const Json& node, std::string_view field) {
  FATHOM_TRY(const auto value, json_integer(node, field, kDecoderPart));
  if (!value || *value < 0 || *value > (1 << 20)) return bad_field(kDecoderPart, field);
  return static_cast<std::size_t>(*value);
}

}  // namespace

Result<Decoder> Decoder::from_json(const Json& node) {
  Decoder decoder;
  if (node.is_null())
    decoder.stages_.push_back({.kind = Kind::kSpaces});
  else
    FATHOM_TRY_VOID(decoder.add(node));
  bool joined = false;
  for (Stage& stage : decoder.stages_) {
    stage.joined = joined;
    stage.buffered =
        joined && (stage.kind == Kind::kReplace || stage.kind == Kind::kJoinBytes || stage.kind == Kind::kByteFallback);
    joined |= stage.kind == Kind::kFuse || stage.kind == Kind::kJoinBytes;
  }
  return decoder;
}

Status Decoder::add(const Json& node) {
  FATHOM_TRY(const std::string type, type_of(node, kDecoderPart));
  if (type == "Sequence") {
    FATHOM_TRY(const Json* parts, array_field(node, kDecoderPart, "decoders"));
    for (const Json& part : *parts) FATHOM_TRY_VOID(add(part));
  } else if (type == "ByteLevel") {
    stages_.push_back({.kind = Kind::kJoinBytes});
  } else if (type == "ByteFallback") {
    stages_.push_back({.kind = Kind::kByteFallback});
  } else if (type == "Fuse") {
    stages_.push_back({.kind = Kind::kFuse});
  } else if (type == "Metaspace") {
    FATHOM_TRY(std::string replacement, char_field(node, kDecoderPart, "replacement"));
    FATHOM_TRY(bool drop, bool_field(node, kDecoderPart, "add_prefix_space", true));
    if (node.contains("prepend_scheme")) {
      FATHOM_TRY(const std::string scheme, string_field(node, kDecoderPart, "prepend_scheme"));
      drop = scheme != "never";
    }
    stages_.push_back({.kind = Kind::kMetaspace, .text = std::move(replacement), .drop_first = drop});
  } else if (type == "Replace") {
    FATHOM_TRY(Regex pattern, pattern_field(node, kDecoderPart, "pattern"));
    FATHOM_TRY(std::string content, string_field(node, kDecoderPart, "content"));
    stages_.push_back({.kind = Kind::kReplace, .text = std::move(content), .pattern = std::move(pattern)});
  } else if (type == "Strip") {
    FATHOM_TRY(std::string content, char_field(node, kDecoderPart, "content"));
    FATHOM_TRY(const std::size_t start, count_field(node, "start"));
    FATHOM_TRY(const std::size_t stop, count_field(node, "stop"));
    stages_.push_back({.kind = Kind::kStrip, .text = std::move(content), .start = start, .stop = stop});
  } else {
    return unknown_type(kDecoderPart, type, kKnownDecoders);
  }
  return {};
}

// The stages that look at one token only. An expression that gives up on a token leaves it as it is.
void Decoder::append_transformed(const Stage& stage, std::string_view token, bool first, RegexScratch& scratch,
                                 std::string& out) const {
  if (stage.kind == Kind::kStrip) {
    out += stripped(token, stage.text, stage.start, stage.stop);
  } else if (stage.kind == Kind::kReplace) {
    const auto replaced = replace_all(token, stage.pattern, stage.text, scratch);
    out += replaced ? std::string_view(*replaced) : token;
  } else {
    for (std::size_t i = 0; i < token.size();) {
      if (!token.substr(i).starts_with(stage.text)) {
        out += token[i++];
        continue;
      }
      if (!(first && stage.drop_first)) out += ' ';
      i += stage.text.size();
    }
  }
}

Decoder::Stream::Stream(const Decoder& decoder) : decoder_(&decoder), states_(decoder.stages_.size()) {}

void Decoder::Stream::push(std::string_view token, std::string& out) { pass(0, token, out); }

void Decoder::Stream::finish(std::string& out) {
  for (std::size_t stage = 0; stage < states_.size(); ++stage) end(stage, out);
  for (State& state : states_) state = {};
}

void Decoder::Stream::pass(std::size_t index, std::string_view token, std::string& out) {
  if (index == states_.size()) {
    out += token;
    return;
  }
  const Stage& stage = decoder_->stages_[index];
  State& state = states_[index];
  if (stage.buffered) {
    state.held += token;
    return;
  }
  switch (stage.kind) {
    case Kind::kSpaces:
      if (state.count++ > 0) out += ' ';
      return pass(index + 1, token, out);
    case Kind::kFuse:
      return pass(index + 1, token, out);
    case Kind::kJoinBytes: {
      const auto bytes = bytes_of_letters(token);
      state.held += bytes ? std::string_view(*bytes) : token;
      const std::size_t whole = state.held.size() - incomplete_suffix(state.held);
      std::string text;
      append_lossy(text, std::string_view(state.held).substr(0, whole));
      state.held.erase(0, whole);
      return pass(index + 1, text, out);
    }
    case Kind::kByteFallback:
      if (const int byte = fallback_byte(token); byte >= 0) {
        state.held += static_cast<char>(byte);
        return;
      }
      end_byte_run(index, out);
      return pass(index + 1, token, out);
    case Kind::kStrip:
      if (stage.joined) return strip_joined(index, token, out);
      [[fallthrough]];
    case Kind::kMetaspace:
    case Kind::kReplace: {
      std::string text;
      decoder_->append_transformed(stage, token, stage.joined || state.count == 0, scratch_, text);
      ++state.count;
      return pass(index + 1, text, out);
    }
  }
}

// A run of byte tokens is over: the characters that it spells, or U+FFFD for each byte when it spells none.
void Decoder::Stream::end_byte_run(std::size_t index, std::string& out) {
  const std::string bytes = std::move(states_[index].held);
  states_[index].held.clear();
  if (bytes.empty()) return;
  if (is_valid_utf8(bytes)) return pass(index + 1, bytes, out);
  for (std::size_t i = 0; i < bytes.size(); ++i) pass(index + 1, kReplacementChar, out);
}

// Strip over the whole text: drops at the beginning, and holds back at the end what may turn out to be the end.
void Decoder::Stream::strip_joined(std::size_t index, std::string_view chunk, std::string& out) {
  const Stage& stage = decoder_->stages_[index];
  State& state = states_[index];
  for (; state.count < stage.start && chunk.starts_with(stage.text); ++state.count)
    chunk.remove_prefix(stage.text.size());
  if (chunk.empty()) return;
  state.count = stage.start;
  state.held += chunk;
  std::size_t keep = state.held.size();
  for (std::size_t n = 0; n < stage.stop && std::string_view(state.held).substr(0, keep).ends_with(stage.text); ++n)
    keep -= stage.text.size();
  const std::string ready = state.held.substr(0, keep);
  state.held.erase(0, keep);
  pass(index + 1, ready, out);
}

void Decoder::Stream::end(std::size_t index, std::string& out) {
  const Stage& stage = decoder_->stages_[index];
  const std::string held = std::move(states_[index].held);
  states_[index].held.clear();
  std::string text;
  if (stage.buffered && stage.kind == Kind::kReplace) {
    decoder_->append_transformed(stage, held, true, scratch_, text);
  } else if (stage.kind == Kind::kJoinBytes) {
    const auto bytes = stage.buffered ? bytes_of_letters(held) : std::nullopt;
    append_lossy(text, bytes ? std::string_view(*bytes) : held);
  } else if (stage.kind == Kind::kByteFallback) {
    states_[index].held = held;
    if (stage.buffered && fallback_byte(held) < 0)
      text = std::exchange(states_[index].held, {});
    else if (stage.buffered)
      states_[index].held = static_cast<char>(fallback_byte(held));
    end_byte_run(index, out);
  }
  if (!text.empty()) pass(index + 1, text, out);
}

}  // namespace fathom::text
