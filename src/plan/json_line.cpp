#include "plan/json_line.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "base/strings.h"

namespace fathom::plan {
namespace {

constexpr int kMostDepth = 32;

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}
  std::size_t at() const { return at_; }
  bool done() const { return at_ >= text_.size(); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\r' || text_[at_] == '\n'))
      ++at_;
  }
  bool take(char wanted) {
    blanks();
    if (peek() != wanted || done()) return false;
    ++at_;
    return true;
  }

  bool value(JsonPiece& piece, int depth) {
    blanks();
    const std::size_t from = at_;
    bool good = false;
    switch (peek()) {
      case '"':
        piece.kind = JsonPiece::Kind::kString;
        good = string();
        break;
      case '{':
        piece.kind = JsonPiece::Kind::kObject;
        good = nested('}', depth, true);
        break;
      case '[':
        piece.kind = JsonPiece::Kind::kArray;
        good = nested(']', depth, false);
        break;
      case 't':
        piece.kind = JsonPiece::Kind::kBool;
        good = word("true");
        break;
      case 'f':
        piece.kind = JsonPiece::Kind::kBool;
        good = word("false");
        break;
      case 'n':
        piece.kind = JsonPiece::Kind::kNull;
        good = word("null");
        break;
      default:
        piece.kind = JsonPiece::Kind::kNumber;
        good = number();
        break;
    }
    piece.text = text_.substr(from, at_ - from);
    return good;
  }

  bool string() {
    if (peek() != '"') return false;
    for (++at_; at_ < text_.size(); ++at_) {
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') return ++at_, true;
      if (c < 0x20) return false;
      if (c != '\\') continue;
      if (++at_ >= text_.size()) return false;
      if (text_[at_] == 'u') {
        for (int i = 0; i < 4; ++i)
          if (++at_ >= text_.size() || std::isxdigit(static_cast<unsigned char>(text_[at_])) == 0) return false;
      } else if (std::strchr("\"\\/bfnrt", text_[at_]) == nullptr || text_[at_] == '\0') {
        return false;
      }
    }
    return false;
  }

 private:
  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  bool digits() {
    const std::size_t from = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > from;
  }

  bool number() {
    if (peek() == '-') ++at_;
    const std::size_t from = at_;
    if (!digits()) return false;
    if (at_ - from > 1 && text_[from] == '0') return false;
    if (peek() == '.' && (++at_, !digits())) return false;
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) return false;
    }
    return true;
  }

  bool nested(char close, int depth, bool keyed) {
    if (depth >= kMostDepth) return false;
    ++at_;
    if (take(close)) return true;
    do {
      JsonPiece ignored;
      blanks();
      if (keyed && (!string() || !take(':'))) return false;
      if (!value(ignored, depth + 1)) return false;
    } while (take(','));
    return take(close);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

void append_utf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

std::uint32_t hex4(std::string_view text) {
  std::uint32_t value = 0;
  std::from_chars(text.data(), text.data() + 4, value, 16);
  return value;
}

template <class Number>
void append_chars(std::string& out, Number value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  out.append(buffer, end);
}

}  // namespace

std::optional<bool> JsonPiece::boolean() const {
  if (kind != Kind::kBool) return std::nullopt;
  return text == "true";
}

std::optional<double> JsonPiece::number() const {
  if (kind != Kind::kNumber) return std::nullopt;
  double value = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc{} || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<std::int64_t> JsonPiece::integer() const {
  if (kind != Kind::kNumber) return std::nullopt;
  std::int64_t whole = 0;
  if (const auto end = std::from_chars(text.data(), text.data() + text.size(), whole);
      end.ec == std::errc{} && end.ptr == text.data() + text.size())
    return whole;
  const auto value = number();
  if (!value || *value != std::floor(*value) || std::abs(*value) > 9e15) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

std::optional<std::string> JsonPiece::string() const {
  if (kind != Kind::kString) return std::nullopt;
  const std::string_view inner = text.substr(1, text.size() - 2);
  if (inner.find('\\') == std::string_view::npos) return std::string(inner);
  std::string out;
  for (std::size_t i = 0; i < inner.size(); ++i) {
    if (inner[i] != '\\') {
      out += inner[i];
      continue;
    }
    const char c = inner[++i];
    constexpr std::string_view from = "bfnrt", to = "\b\f\n\r\t";
    if (const auto at = from.find(c); at != std::string_view::npos) {
      out += to[at];
    } else if (c != 'u') {
      out += c;
    } else {
      std::uint32_t code = hex4(inner.substr(i + 1, 4));
      i += 4;
      if (code >= 0xD800 && code < 0xDC00 && inner.substr(i + 1, 2) == "\\u") {
        const std::uint32_t low = hex4(inner.substr(i + 3, 4));
        if (low >= 0xDC00 && low < 0xE000) {
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
          i += 6;
        }
      }
      append_utf8(out, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
    }
  }
  return out;
}

std::optional<JsonObject> JsonObject::parse(std::string_view text, std::size_t& bad_byte) {
  JsonObject object;
  Scanner scan(text);
  const auto fails = [&] {
    bad_byte = scan.at();
    return std::nullopt;
  };
  if (!is_valid_utf8(text) || !scan.take('{')) return fails();
  if (!scan.take('}')) {
    do {
      scan.blanks();
      const std::size_t from = scan.at();
      if (!scan.string()) return fails();
      const std::string_view key = text.substr(from + 1, scan.at() - from - 2);
      JsonPiece piece;
      if (!scan.take(':') || !scan.value(piece, 1) || object.count_ == kMostMembers) return fails();
      object.members_[object.count_++] = {key, piece};
    } while (scan.take(','));
    if (!scan.take('}')) return fails();
  }
  scan.blanks();
  if (!scan.done()) return fails();
  return object;
}

const JsonPiece* JsonObject::find(std::string_view key) const {
  for (const JsonMember& member : *this)
    if (member.key == key) return &member.value;
  return nullptr;
}

std::optional<std::vector<std::string>> string_items(const JsonPiece& array, std::size_t most) {
  std::vector<std::string> items;
  if (array.kind != JsonPiece::Kind::kArray) return std::nullopt;
  Scanner scan(array.text);
  scan.take('[');
  if (scan.take(']')) return items;
  do {
    JsonPiece piece;
    if (!scan.value(piece, 1) || piece.kind != JsonPiece::Kind::kString || items.size() == most) return std::nullopt;
    items.push_back(*piece.string());
  } while (scan.take(','));
  return items;
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20) {
          out += c;
        } else {
          constexpr char hex[] = "0123456789abcdef";
          out += "\\u00";
          out += hex[static_cast<unsigned char>(c) >> 4];
          out += hex[c & 15];
        }
    }
  }
  out += '"';
}

void append_json_number(std::string& out, double value) {
  if (!std::isfinite(value))
    out += "null";
  else
    append_chars(out, value);
}
void append_json_number(std::string& out, std::uint64_t value) { append_chars(out, value); }
void append_json_number(std::string& out, std::int64_t value) { append_chars(out, value); }

}  // namespace fathom::plan
