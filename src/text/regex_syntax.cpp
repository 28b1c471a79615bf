#include "text/regex_syntax.h"

#include <optional>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "text/regex_sets.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr std::size_t kMaxPatternBytes = 64 * 1024;
constexpr int kMaxNesting = 100;

bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// A set of characters: `body` goes between brackets, each of `alternatives` matches one character by itself.
struct CharSet {
  bool negated = false;
  std::string body;
  std::vector<std::string> alternatives;

  std::string positive() const {
    if (alternatives.empty()) return body.empty() ? "(?!)" : "[" + body + "]";
    std::string out = "(?:";
    if (!body.empty()) out += "[" + body + "]|";
    for (const std::string& one : alternatives) out += one + "|";
    out.back() = ')';
    return out;
  }
  std::string expression() const {
    if (!negated) return positive();
    if (alternatives.empty()) return body.empty() ? "(?s:.)" : "[^" + body + "]";
    return "(?:(?!" + positive() + ")(?s:.))";
  }
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (at_ < in_.size()) FATHOM_TRY_VOID(item());
    while (!groups_.empty()) {
      if (!groups_.back().implied) return unsupported("(");
      close_group();
    }
    return std::move(out_);
  }

 private:
  struct Group {
    std::size_t out_start;
    bool implied;  // opened by an isolated (?i), closed with the group around it
  };
  static constexpr std::size_t kNoAtom = std::string::npos;

  tl::unexpected<Error> unsupported(std::string_view what) const {
    return fail_unsupported(
        "text.regex_unsupported",
        {{"what", printable(what)}, {"byte", std::to_string(at_)}, {"pattern", printable(in_, 120)}});
  }
  char peek(std::size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool skip(std::string_view what) {
    if (!in_.substr(at_).starts_with(what)) return false;
    at_ += what.size();
    return true;
  }
  void atom(std::string_view text) {
    atom_start_ = out_.size();
    quantified_ = false;
    out_ += text;
  }
  void no_atom(std::string_view text) {
    out_ += text;
    atom_start_ = kNoAtom;
  }
  void close_group() {
    out_ += ')';
    atom_start_ = groups_.back().out_start;
    quantified_ = false;
    groups_.pop_back();
  }

  Status item() {
    switch (peek()) {
      case '\\':
        return escape();
      case '[': {
        FATHOM_TRY(const CharSet set, char_class(0));
        atom(set.expression());
        return {};
      }
      case '(':
        return open_group();
      case ')': {
        while (!groups_.empty() && groups_.back().implied) close_group();
        if (groups_.empty()) return unsupported(")");
        ++at_;
        close_group();
        return {};
      }
      case '*':
      case '+':
      case '?':
      case '{':
        return quantifier();
      case '|':
      case '^':
      case '$':
        no_atom(in_.substr(at_++, 1));
        return {};
      case '.':
        atom(in_.substr(at_++, 1));
        return {};
      default: {
        const std::size_t start = at_;
        static_cast<void>(next_char(in_, at_));
        atom(in_.substr(start, at_ - start));
        return {};
      }
    }
  }

  // `{n}`, `{n,}`, `{,m}`, `{n,m}` for PCRE2, or empty when the brace is a plain character. Moves behind it.
  std::string interval(bool& exact) {
    std::size_t i = at_ + 1;
    std::string low, high;
    while (i < in_.size() && is_digit(in_[i])) low += in_[i++];
    exact = true;
    if (i < in_.size() && in_[i] == ',') {
      exact = false;
      ++i;
      while (i < in_.size() && is_digit(in_[i])) high += in_[i++];
    }
    if (i >= in_.size() || in_[i] != '}' || (low.empty() && high.empty())) return {};
    at_ = i + 1;
    if (exact) return "{" + low + "}";
    return "{" + (low.empty() ? "0" : low) + "," + high + "}";
  }

  Status quantifier() {
    std::string op;
    bool exact = false, braces = peek() == '{';
    if (braces) {
      op = interval(exact);
      if (op.empty()) {
        ++at_;
        atom("\\{");
        return {};
      }
    } else {
      op = in_[at_++];
    }
    if (atom_start_ == kNoAtom) return unsupported(op);
    if (quantified_) wrap();
    out_ += op;
    quantified_ = true;
    // Behind braces only the lazy mark of a range is a mark; all else is another quantifier on the whole.
    if (peek() == '?' && !(braces && exact)) {
      out_ += in_[at_++];
    } else if (peek() == '+' && !braces) {
      out_ += in_[at_++];
    }
    return {};
  }
  void wrap() {
    out_.insert(atom_start_, "(?:");
    out_ += ')';
  }

  Status open_group() {
    if (static_cast<int>(groups_.size()) >= kMaxNesting) return unsupported("(");
    if (skip("(?#")) {
      const std::size_t end = in_.find(')', at_);
      if (end == std::string_view::npos) return unsupported("(?#");
      at_ = end + 1;
      return {};
    }
    const std::size_t start = out_.size();
    for (const std::string_view opener : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (!skip(opener)) continue;
      groups_.push_back({start, false});
      no_atom(opener);
      return {};
    }
    if (in_.substr(at_).starts_with("(?<") && is_alpha(peek(3))) {
      const std::size_t end = in_.find('>', at_);
      if (end == std::string_view::npos) return unsupported("(?<");
      groups_.push_back({start, false});
      no_atom(in_.substr(at_, end + 1 - at_));
      at_ = end + 1;
      return {};
    }
    if (skip("(?")) return options(start);
    ++at_;
    groups_.push_back({start, false});
    no_atom("(");
    return {};
  }

  // (?i-mx) and (?i-mx:…): `m` means that the dot matches newlines. Alone, it holds to the end of the group around it.
  Status options(std::size_t start) {
    std::string flags;
    while (at_ < in_.size() && peek() != ')' && peek() != ':') {
      switch (peek()) {
        case 'i':
          flags += 'i';
          break;
        case 'm':
          flags += 's';
          break;
        case '-':
          flags += '-';
          break;
        default:
          return unsupported(in_.substr(at_, 1));
      }
      ++at_;
    }
    if (at_ >= in_.size()) return unsupported("(?");
    const bool implied = peek() == ')';
    ++at_;
    groups_.push_back({start, implied});
    if (static_cast<int>(groups_.size()) > kMaxNesting) return unsupported("(");
    no_atom("(?" + flags + ":");
    return {};
  }

  // One character as it must stand in a class or outside, escaped where it could mean something.
  static std::string literal(char32_t c) {
    std::string out;
    if (c < 0x20 || c == 0x7f) {
      constexpr char digits[] = "0123456789abcdef";
      return {'\\', 'x', digits[c >> 4], digits[c & 15]};
    }
    if (c < 0x80 && !is_alpha(static_cast<char>(c)) && !is_digit(static_cast<char>(c))) out += '\\';
    append_utf8(out, c);
    return out;
  }

  // The single character that an escape stands for (\n, \t, \xHH, \x{H…}, \uHHHH, \-), or nullopt when it is none.
  // Behind the backslash.
  Result<std::optional<char32_t>> escaped_char() {
    const auto hex = [&](std::size_t max_digits) -> std::optional<char32_t> {
      char32_t value = 0;
      std::size_t n = 0;
      for (; n < max_digits && is_hex(peek()); ++n, ++at_) {
        const char c = peek();
        value = value * 16 + static_cast<char32_t>(is_digit(c) ? c - '0' : (c | 32) - 'a' + 10);
      }
      if (n == 0 || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return std::nullopt;
      return value;
    };
    constexpr std::string_view simple = "ntrfvae", values = "\n\t\r\f\v\a\x1b";
    const char c = peek();
    if (const std::size_t k = simple.find(c); c != '\0' && k != std::string_view::npos) {
      ++at_;
      return static_cast<char32_t>(values[k]);
    }
    if (c == 'x' || c == 'u') {
      ++at_;
      const bool braced = c == 'x' && peek() == '{';
      if (braced) ++at_;
      const auto value = hex(braced ? 8 : c == 'x' ? 2 : 4);
      if (!value || (braced && peek() != '}')) return unsupported(std::string("\\") + c);
      if (braced) ++at_;
      if (c == 'x' && !braced && *value >= 0x80) return unsupported("\\x");  // a raw byte, not a character
      return *value;
    }
    if (c == '0' && !is_digit(peek(1))) {
      ++at_;
      return char32_t{0};
    }
    if (is_alpha(c) || is_digit(c) || at_ >= in_.size()) return std::optional<char32_t>();
    return next_char(in_, at_);
  }

  // \p{Name}, \P{Name}, \p{^Name}: a class body that matches it. Behind the 'p' or 'P'.
  Result<std::string> property(bool negated) {
    const std::size_t end = in_.find('}', at_);
    if (peek() != '{' || end == std::string_view::npos) return unsupported("\\p");
    std::string name;
    for (const char c : to_lower(in_.substr(at_ + 1, end - at_ - 1)))
      if (c != ' ' && c != '_' && c != '-') name += c;
    if (name.starts_with('^')) {
      negated = !negated;
      name.erase(0, 1);
    }
    for (const char c : name)
      if (!is_alpha(c) && !is_digit(c)) return unsupported(in_.substr(at_, end + 1 - at_));
    if (name.empty()) return unsupported("\\p{}");
    at_ = end + 1;
    if (name == "punct") name = "p";  // as a property it lacks the symbols that [:punct:] has
    if (const auto body = named_set(name)) {
      if (!negated) return std::string(*body);
      if (body->starts_with(R"(\p{)") && body->find('}') + 1 == body->size())
        return R"(\P)" + std::string(body->substr(2));
      return unsupported("\\P{" + name + "}");
    }
    // What is no category is a script's or a boolean property's name; a bare script name would mean its extensions to
    // PCRE2.
    const std::string mark = negated ? R"(\P{)" : R"(\p{)";
    if (is_general_category(name) || name == "lc") return mark + name + "}";
    if (is_boolean_property(name)) return mark + name + "}";
    return mark + "sc:" + name + "}";
  }
  Status escape() {
    ++at_;
    const char c = peek();
    bool negated = false;
    if (const auto body = shorthand_set(c, negated)) {
      ++at_;
      atom(CharSet{negated, std::string(*body) + std::string((c | 32) == 'w' ? kLatin1WordSet : ""), {}}.expression());
      return {};
    }
    const std::string word = "[" + std::string(kWordSet) + std::string(kLatin1WordSet) + "]";
    switch (c) {
      case 'p':
      case 'P': {
        ++at_;
        FATHOM_TRY(const std::string body, property(c == 'P'));
        atom("[" + body + "]");
        return {};
      }
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
        ++at_;
        no_atom(std::string("\\") + c);
        return {};
      case 'b':
      case 'B': {
        ++at_;
        const std::string here = "(?<=" + word + ")", behind = "(?<!" + word + ")", next = "(?=" + word + ")",
                          not_next = "(?!" + word + ")";
        no_atom(c == 'b' ? "(?:" + here + not_next + "|" + behind + next + ")"
                         : "(?:" + here + next + "|" + behind + not_next + ")");
        return {};
      }
      case 'R':
      case 'X':
        ++at_;
        atom(std::string("\\") + c);
        return {};
      default:
        break;
    }
    if (c >= '1' && c <= '9' && !is_digit(peek(1))) {  // a back reference
      ++at_;
      atom(std::string("(?:\\") + c + ")");
      return {};
    }
    FATHOM_TRY(const auto value, escaped_char());
    if (!value) return unsupported(std::string("\\") + c);
    atom(literal(*value));
    return {};
  }

  // One operand of && in a class, up to "&&" or the closing bracket.
  Result<CharSet> class_operand(int depth, bool first) {
    CharSet set;
    std::int64_t range_start = -1;  // the last single character, which a '-' may turn into a range
    while (true) {
      if (at_ >= in_.size()) return unsupported("[");
      const char c = peek();
      if ((c == ']' && !first) || in_.substr(at_).starts_with("&&")) return set;
      first = false;
      if (c == '[') {
        FATHOM_TRY_VOID(nested(set, depth));
        range_start = -1;
        continue;
      }
      if (c == '-' && range_start >= 0 && peek(1) != ']' && peek(1) != '\0' && !in_.substr(at_ + 1).starts_with("&&")) {
        ++at_;
        std::string body;
        FATHOM_TRY(const auto end, class_char(body));
        if (!end) {  // "a-\d": the dash is itself
          set.body += literal('-') + body;
        } else {
          if (static_cast<std::int64_t>(*end) < range_start) return unsupported("-");
          set.body += '-' + literal(*end);
        }
        range_start = -1;
        continue;
      }
      std::string body;
      FATHOM_TRY(const auto value, class_char(body));
      set.body += value ? literal(*value) : body;
      range_start = value ? static_cast<std::int64_t>(*value) : -1;
    }
  }
  // A character of a class, or nullopt with `body` holding the class that an escape stands for.
  Result<std::optional<char32_t>> class_char(std::string& body) {
    if (peek() != '\\') return next_char(in_, at_);
    ++at_;
    const char c = peek();
    bool negated = false;
    if (const auto set = shorthand_set(c, negated)) {
      if (negated && c == 'S')
        body = R"(\P{White_Space})";
      else if (negated && c == 'D')
        body = R"(\P{Nd})";
      else if (negated)
        return unsupported(std::string("[\\") + c + "]");
      else
        body = *set;
      ++at_;
      return std::optional<char32_t>();
    }
    if (c == 'p' || c == 'P') {
      ++at_;
      FATHOM_TRY(body, property(c == 'P'));
      return std::optional<char32_t>();
    }
    if (c == 'b') {
      ++at_;
      return char32_t{8};
    }
    FATHOM_TRY(const auto value, escaped_char());
    if (!value) return unsupported(std::string("[\\") + c + "]");
    return *value;
  }
  Status nested(CharSet& set, int depth) {
    if (in_.substr(at_).starts_with("[:")) {
      const std::size_t end = in_.find(":]", at_);
      if (end != std::string_view::npos && end - at_ < 20) {
        std::string_view name = in_.substr(at_ + 2, end - at_ - 2);
        const auto body = named_set(name);
        if (!body) return unsupported(in_.substr(at_, end + 2 - at_));
        at_ = end + 2;
        set.body += *body;
        return {};
      }
    }
    FATHOM_TRY(const CharSet inner, char_class(depth + 1));
    if (!inner.negated && inner.alternatives.empty())
      set.body += inner.body;
    else
      set.alternatives.push_back(inner.expression());
    return {};
  }
  Result<CharSet> char_class(int depth) {
    if (depth > 10) return unsupported("[[");
    ++at_;
    const bool negated = skip("^");
    std::vector<CharSet> operands;
    do {
      FATHOM_TRY(CharSet operand, class_operand(depth, operands.empty()));
      operands.push_back(std::move(operand));
    } while (skip("&&"));
    ++at_;  // the closing bracket
    CharSet set = std::move(operands.front());
    if (operands.size() > 1) {
      std::string all = "(?:";
      for (std::size_t i = 1; i < operands.size(); ++i) all += "(?=" + operands[i].expression() + ")";
      set = CharSet{false, "", {all + set.expression() + ")"}};
    }
    set.negated = negated;
    return set;
  }

  std::string_view in_;
  std::size_t at_ = 0;
  std::string out_;
  std::size_t atom_start_ = kNoAtom;  // where in out_ the last repeatable thing begins
  bool quantified_ = false;           // and whether it already has a quantifier
  std::vector<Group> groups_;
};

}  // namespace

Result<std::string> to_pcre_syntax(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes)
    return fail("text.regex_too_long",
                {{"size", std::to_string(pattern.size())}, {"limit", std::to_string(kMaxPatternBytes)}});
  return Translator(pattern).run();
}

}  // namespace fathom::text
