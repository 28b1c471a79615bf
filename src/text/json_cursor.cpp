#include "text/json_cursor.h"

#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr int kMaxDepth = 64;

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

tl::unexpected<Error> JsonCursor::expected(std::string_view what) const {
  return fail("text.json_expected",
              {{"what", std::string(what_)}, {"expected", std::string(what)}, {"byte", std::to_string(at_)}});
}

char JsonCursor::peek() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

Status JsonCursor::expect(char c) {
  if (peek() != c || at_ >= text_.size()) return expected(std::string_view(&c, 1));
  ++at_;
  return {};
}

Result<bool> JsonCursor::more(char close, bool& first) {
  if (peek() == close && at_ < text_.size()) {
    ++at_;
    return false;
  }
  if (!first) FATHOM_TRY_VOID(expect(','));
  first = false;
  return true;
}

Status JsonCursor::end() {
  if (peek() != '\0' || at_ < text_.size()) return expected("EOF");
  return {};
}

// Behind the opening quote: moves behind the closing one.
Status JsonCursor::skip_string() {
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == '"') {
      ++at_;
      return {};
    }
    if (c == '\\')
      ++at_;
    else if (static_cast<unsigned char>(c) < 0x20)
      break;
  }
  return expected("\"");
}

// Behind a backslash: appends what the escape means.
Status JsonCursor::escape() {
  constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
  if (at_ >= text_.size()) return expected("\"");
  const char c = text_[at_++];
  if (const std::size_t k = letters.find(c); k != std::string_view::npos) {
    unescaped_ += meanings[k];
    return {};
  }
  if (c != 'u') return expected("\\uXXXX");
  const auto unit = [&]() -> std::int32_t {
    std::int32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const int digit = at_ < text_.size() ? hex_value(text_[at_]) : -1;
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    return value;
  };
  std::int32_t value = unit();
  if (value >= 0xd800 && value < 0xdc00 && text_.substr(at_).starts_with("\\u")) {
    at_ += 2;
    const std::int32_t low = unit();
    if (low < 0xdc00 || low > 0xdfff) return expected("\\uDC00-\\uDFFF");
    value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
  }
  if (value < 0 || (value >= 0xd800 && value < 0xe000)) return expected("\\uXXXX");
  append_utf8(unescaped_, static_cast<char32_t>(value));
  return {};
}

Result<std::string_view> JsonCursor::string() {
  FATHOM_TRY_VOID(expect('"'));
  const std::size_t start = at_;
  while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
         static_cast<unsigned char>(text_[at_]) >= 0x20)
    ++at_;
  if (at_ < text_.size() && text_[at_] == '"') return text_.substr(start, at_++ - start);
  unescaped_ = text_.substr(start, at_ - start);
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) < 0x20) break;
    ++at_;
    if (c == '"') return std::string_view(unescaped_);
    if (c == '\\')
      FATHOM_TRY_VOID(escape());
    else
      unescaped_ += c;
  }
  return expected("\"");
}

Result<std::int64_t> JsonCursor::integer() {
  const bool negative = peek() == '-';
  std::size_t i = at_ + negative;
  std::int64_t value = 0;
  const std::size_t digits = i;
  for (; i < text_.size() && text_[i] >= '0' && text_[i] <= '9'; ++i)
    if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, text_[i] - '0', &value))
      return expected("int64");
  const char next = i < text_.size() ? text_[i] : '\0';
  if (i == digits || (text_[digits] == '0' && i > digits + 1) || next == '.' || next == 'e' || next == 'E')
    return expected("integer");
  at_ = i;
  return negative ? -value : value;
}

Result<std::string_view> JsonCursor::value() {
  if (peek() == '\0') return expected("value");
  const std::size_t start = at_;
  int depth = 0;
  do {
    const char c = peek();
    if (at_ >= text_.size()) return expected("]");
    ++at_;
    if (c == '"') {
      FATHOM_TRY_VOID(skip_string());
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth)
        return fail("text.json_too_deep", {{"what", std::string(what_)}, {"limit", std::to_string(kMaxDepth)}});
    } else if (c == ']' || c == '}') {
      if (--depth < 0) return expected("value");
    } else if (depth == 0) {  // a bare number or word: up to whatever ends it
      while (at_ < text_.size() && std::string_view(",]} \n\r\t").find(text_[at_]) == std::string_view::npos) ++at_;
    }
  } while (depth > 0);
  return text_.substr(start, at_ - start);
}

}  // namespace fathom::text
