#include "text/jinja_lexer.h"

#include <algorithm>

#include "base/strings.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"
#include "text/unicode.h"

namespace fathom::text::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Line ends become \n, and one at the very end goes.
std::string with_plain_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      i += source.substr(i).starts_with("\r\n");
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), in_(source_) {}

  std::vector<Token> run() {
    while (at_ < in_.size()) {
      const std::size_t tag = next_tag();
      if (tag == std::string_view::npos) {
        add(TokenKind::kData, std::string(in_.substr(at_)));
        break;
      }
      std::size_t behind = 0;
      if (raw_begin(tag, behind))
        raw(tag, behind);
      else if (in_[tag + 1] == '#')
        comment(tag);
      else
        inside(tag, in_[tag + 1] == '{');
    }
    add(TokenKind::kEnd, "");
    return std::move(out_);
  }

 private:
  void add(TokenKind kind, std::string text) { out_.push_back({kind, line_, std::move(text)}); }
  // Moves to `to`, counting lines.
  void move(std::size_t to) {
    line_ += static_cast<int>(std::count(in_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         in_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    line_starting_ = to > 0 && in_[to - 1] == '\n';
    at_ = to;
  }
  char peek(std::size_t i) const { return i < in_.size() ? in_[i] : '\0'; }
  std::size_t skip_space(std::size_t i) const {
    while (i < in_.size()) {
      std::size_t next = i;
      if (!is_python_space(next_char(in_, next))) break;
      i = next;
    }
    return i;
  }
  std::size_t next_tag() const {
    for (std::size_t i = in_.find('{', at_); i != std::string_view::npos; i = in_.find('{', i + 1)) {
      const char c = peek(i + 1);
      if (c == '{' || c == '%' || c == '#') return i;
    }
    return std::string_view::npos;
  }

  // Emits the text before a tag: without the blanks that its sign, or its standing first in a line, takes away.
  void data_before(std::size_t tag, std::size_t end, bool variable) {
    std::string_view text = in_.substr(at_, end - at_);
    const char sign = peek(tag + 2);
    if (sign == '-') {
      text = python_rstrip(text);
    } else if (sign != '+' && !variable) {
      const std::size_t newline = text.rfind('\n');
      const std::size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_start > 0 || line_starting_) && python_lstrip(text.substr(line_start)).empty())
        text = text.substr(0, line_start);
    }
    if (!text.empty()) add(TokenKind::kData, std::string(text));
    move(end);
  }
  std::size_t behind_sign(std::size_t tag) const {
    const char sign = peek(tag + 2);
    return tag + 2 + (sign == '-' || sign == '+');
  }
  // Behind "}%" and the like at `i`: a minus before it eats all blanks, a plus nothing, else one newline goes.
  std::size_t behind_end(std::size_t i, char sign) const {
    if (sign == '-') return skip_space(i + 2);
    if (sign == '+') return i + 2;
    return i + 2 + (peek(i + 2) == '\n');
  }

  void comment(std::size_t tag) {
    data_before(tag, tag, false);
    const std::size_t start = behind_sign(tag), end = in_.find("#}", start);
    if (end == std::string_view::npos) stop("text.template_unclosed", line_, {{"what", "{#"}});
    move(behind_end(end, end > start ? in_[end - 1] : '\0'));
  }

  bool raw_begin(std::size_t tag, std::size_t& behind) const {
    if (in_[tag + 1] != '%') return false;
    std::size_t i = skip_space(behind_sign(tag));
    if (!in_.substr(i).starts_with("raw")) return false;
    i = skip_space(i + 3);
    if (in_.substr(i).starts_with("-%}"))
      behind = skip_space(i + 3);
    else if (in_.substr(i).starts_with("%}"))
      behind = i + 2;
    else
      return false;
    return true;
  }
  void raw(std::size_t tag, std::size_t behind) {
    data_before(tag, tag, false);
    move(behind);
    for (std::size_t i = in_.find("{%", at_); i != std::string_view::npos; i = in_.find("{%", i + 1)) {
      std::size_t j = skip_space(behind_sign(i));
      if (!in_.substr(j).starts_with("endraw")) continue;
      j = skip_space(j + 6);
      const char sign = peek(j);
      j += sign == '-' || sign == '+';
      if (!in_.substr(j).starts_with("%}")) continue;
      data_before(i, i, false);
      move(behind_end(j, sign));
      return;
    }
    stop("text.template_unclosed", line_, {{"what", "{% raw %}"}});
  }

  // A {{ … }} or {% … %}: its tokens.
  void inside(std::size_t tag, bool variable) {
    data_before(tag, tag, variable);
    const int opened = line_;
    add(variable ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "");
    move(behind_sign(tag));
    std::string open;  // brackets that wait for their partners
    while (at_ < in_.size()) {
      if (open.empty() && end_of_tag(variable)) return;
      std::size_t next = at_;
      const char32_t c = next_char(in_, next);
      if (is_python_space(c))
        move(skip_space(at_));
      else if (is_digit(in_[at_]))
        number();
      else if (c == '_' || is_word(c))
        name();
      else if (c == '\'' || c == '"')
        string();
      else
        op(open);
    }
    stop("text.template_unclosed", opened, {{"what", variable ? "{{" : "{%"}});
  }
  bool end_of_tag(bool variable) {
    const std::string_view end = variable ? "}}" : "%}";
    const char first = in_[at_];
    const bool sign = first == '-' || (first == '+' && !variable);
    if (!in_.substr(at_ + sign).starts_with(end)) return false;
    add(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
    const std::size_t at = at_ + sign;
    if (variable)
      move(sign ? skip_space(at + 2) : at + 2);
    else
      move(behind_end(at, first));
    return true;
  }

  void name() {
    std::size_t end = at_;
    while (end < in_.size()) {
      std::size_t next = end;
      const char32_t c = next_char(in_, next);
      if (c != '_' && !is_word(c)) break;
      end = next;
    }
    add(TokenKind::kName, std::string(in_.substr(at_, end - at_)));
    move(end);
  }

  std::size_t digits(std::size_t i) const {
    while (is_digit(peek(i)) || (peek(i) == '_' && is_digit(peek(i + 1)))) ++i;
    return i;
  }
  void number() {
    std::size_t end = digits(at_);
    bool real = false;
    const bool behind_dot = at_ > 0 && in_[at_ - 1] == '.';  // a.0.1 is two subscripts
    if (!behind_dot && peek(end) == '.' && is_digit(peek(end + 1))) {
      end = digits(end + 1);
      real = true;
    }
    if (!behind_dot && (peek(end) | 32) == 'e') {
      std::size_t i = end + 1;
      i += peek(i) == '+' || peek(i) == '-';
      if (is_digit(peek(i))) {
        end = digits(i);
        real = true;
      }
    }
    std::string text(in_.substr(at_, end - at_));
    if (!real && text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != std::string::npos)
      text = "0";  // as Jinja: 0, then 77
    if (!real && text == "0" && std::string_view("xXoObB").find(peek(at_ + 1)) != std::string_view::npos &&
        peek(at_ + 1) != '\0')
      stop("text.template_unsupported", line_, {{"what", std::string(in_.substr(at_, 2))}}, ErrorKind::kUnsupported);
    const std::size_t length = text.size();
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    add(real ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    move(at_ + length);
  }

  void op(std::string& open) {
    static constexpr std::string_view kOperators[] = {"**", "//", "==", "!=", ">=", "<=", "+", "-", "/",
                                                      "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (const std::string_view known : kOperators) {
      if (!in_.substr(at_).starts_with(known)) continue;
      const char c = known[0];
      if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
      if (c == ')' || c == ']' || c == '}') {
        if (!open.ends_with(c)) stop("text.template_unexpected", line_, {{"found", std::string(known)}});
        open.pop_back();
      }
      if (open.size() > 200) stop("text.template_deep", line_, {{"limit", "200"}});
      add(TokenKind::kOperator, std::string(known));
      move(at_ + known.size());
      return;
    }
    stop("text.template_unexpected", line_, {{"found", printable(in_.substr(at_), 1)}});
  }

  void string() {
    const char quote = in_[at_];
    std::size_t end = at_ + 1;
    while (end < in_.size() && in_[end] != quote) end += in_[end] == '\\' ? 2 : 1;
    if (end >= in_.size()) stop("text.template_unclosed", line_, {{"what", std::string(1, quote)}});
    add(TokenKind::kString, unescaped(in_.substr(at_ + 1, end - at_ - 1)));
    move(end + 1);
  }
  // Python's escapes; an unknown one stays as it is written.
  std::string unescaped(std::string_view text) const {
    constexpr std::string_view letters = "abfnrtv\\'\"", meanings = "\a\b\f\n\r\t\v\\'\"";
    std::string out;
    for (std::size_t i = 0; i < text.size();) {
      if (text[i] != '\\') {
        out += text[i++];
        continue;
      }
      const char c = text[i + 1];  // the string ends with a quote, so something follows
      i += 2;
      if (const std::size_t k = letters.find(c); k != std::string_view::npos) {
        out += meanings[k];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        append_utf8(out, hex_escape(text, i, c == 'x' ? 2 : c == 'u' ? 4 : 8));
      } else if (c >= '0' && c <= '7') {
        char32_t value = static_cast<char32_t>(c - '0');
        for (int n = 1; n < 3 && i < text.size() && text[i] >= '0' && text[i] <= '7'; ++n)
          value = value * 8 + static_cast<char32_t>(text[i++] - '0');
        append_utf8(out, value);
      } else if (c == 'N') {
        stop("text.template_unsupported", line_, {{"what", "\\N"}}, ErrorKind::kUnsupported);
      } else if (c != '\n') {
        out += '\\';
        out += c;
      }
    }
    return out;
  }
  char32_t hex_escape(std::string_view text, std::size_t& i, int digits) const {
    char32_t value = 0;
    for (int n = 0; n < digits; ++n, ++i) {
      const char c = i < text.size() ? text[i] : '\0';
      const char lower = static_cast<char>(c | 32);
      const bool hex = is_digit(c) || (lower >= 'a' && lower <= 'f');
      value = value * 16 + static_cast<char32_t>(is_digit(c) ? c - '0' : lower - 'a' + 10);
      if (!hex || value > 0x10ffff) stop("text.template_bad_escape", line_);
    }
    if (value >= 0xd800 && value < 0xe000) stop("text.template_bad_escape", line_);
    return value;
  }

  std::string source_;
  std::string_view in_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> out_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(with_plain_newlines(source)).run(); }

}  // namespace fathom::text::jinja
