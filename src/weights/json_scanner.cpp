#include "weights/json_scanner.h"

namespace fathom::weights {
namespace {

void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    put(0x80 | (code & 63));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put(0x80 | ((code >> 6) & 63));
    put(0x80 | (code & 63));
  } else {
    put(0xf0 | (code >> 18));
    put(0x80 | ((code >> 12) & 63));
    put(0x80 | ((code >> 6) & 63));
    put(0x80 | (code & 63));
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

void JsonScanner::blanks() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
    ++at_;
}

bool JsonScanner::next_is(char c) {
  blanks();
  return at_ < text_.size() && text_[at_] == c;
}

bool JsonScanner::take(char c) {
  if (!next_is(c)) return false;
  ++at_;
  return true;
}

bool JsonScanner::at_end() {
  blanks();
  return at_ == text_.size();
}

bool JsonScanner::hex4(std::uint32_t& out) {
  out = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    if (at_ >= text_.size()) return false;
    const char c = text_[at_];
    std::uint32_t digit = 0;
    if (is_digit(c))
      digit = static_cast<std::uint32_t>(c - '0');
    else if (c >= 'a' && c <= 'f')
      digit = static_cast<std::uint32_t>(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F')
      digit = static_cast<std::uint32_t>(c - 'A' + 10);
    else
      return false;
    out = out << 4 | digit;
  }
  return true;
}

// What follows a backslash.
bool JsonScanner::escape(std::string* out) {
  if (at_ >= text_.size()) return false;
  std::uint32_t code = 0;
  switch (text_[at_++]) {
    case '"':
      code = '"';
      break;
    case '\\':
      code = '\\';
      break;
    case '/':
      code = '/';
      break;
    case 'b':
      code = '\b';
      break;
    case 'f':
      code = '\f';
      break;
    case 'n':
      code = '\n';
      break;
    case 'r':
      code = '\r';
      break;
    case 't':
      code = '\t';
      break;
    case 'u': {
      if (!hex4(code)) return false;
      if (code >= 0xdc00 && code < 0xe000) return false;  // a low surrogate alone
      if (code >= 0xd800 && code < 0xdc00) {
        std::uint32_t low = 0;
        if (text_.substr(at_, 2) != "\\u") return false;
        at_ += 2;
        if (!hex4(low) || low < 0xdc00 || low >= 0xe000) return false;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
      break;
    }
    default:
      return false;
  }
  if (out != nullptr) append_utf8(*out, code);
  return true;
}

bool JsonScanner::scan_string(std::string* out) {
  if (!take('"')) return false;
  if (out != nullptr) out->clear();
  for (std::size_t plain = at_;;) {
    if (at_ >= text_.size()) return false;
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c < 0x20) return false;
    if (c != '"' && c != '\\') {
      ++at_;
      continue;
    }
    if (out != nullptr) out->append(text_.substr(plain, at_ - plain));
    ++at_;
    if (c == '"') return true;
    if (!escape(out)) return false;
    plain = at_;
  }
}

bool JsonScanner::string(std::string& out) { return scan_string(&out); }

bool JsonScanner::integer(std::uint64_t& out) {
  blanks();
  const std::size_t start = at_;
  out = 0;
  for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
    const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
    if (out > (static_cast<std::uint64_t>(INT64_MAX) - digit) / 10) return false;
    out = out * 10 + digit;
  }
  if (at_ == start || (text_[start] == '0' && at_ > start + 1)) return false;
  return at_ >= text_.size() || (text_[at_] != '.' && text_[at_] != 'e' && text_[at_] != 'E');
}

bool JsonScanner::skip_word(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) return false;
  at_ += word.size();
  return true;
}

bool JsonScanner::skip_number() {
  const auto digits = [&] {
    const std::size_t start = at_;
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
    return at_ > start;
  };
  const auto here = [&](char c) { return at_ < text_.size() && text_[at_] == c; };
  if (here('-')) ++at_;
  if (!digits()) return false;
  if (here('.')) {
    ++at_;
    if (!digits()) return false;
  }
  if (here('e') || here('E')) {
    ++at_;
    if (here('+') || here('-')) ++at_;
    if (!digits()) return false;
  }
  return true;
}

bool JsonScanner::skip_items(int depth, char close, bool keyed) {
  ++at_;
  if (take(close)) return true;
  do {
    if (keyed && (!scan_string(nullptr) || !take(':'))) return false;
    if (!skip(depth)) return false;
  } while (take(','));
  return take(close);
}

bool JsonScanner::skip(int depth) {
  blanks();
  if (at_ >= text_.size() || depth <= 0) return false;
  switch (text_[at_]) {
    case '"':
      return scan_string(nullptr);
    case '{':
      return skip_items(depth - 1, '}', true);
    case '[':
      return skip_items(depth - 1, ']', false);
    case 't':
      return skip_word("true");
    case 'f':
      return skip_word("false");
    case 'n':
      return skip_word("null");
    default:
      return skip_number();
  }
}

}  // namespace fathom::weights
