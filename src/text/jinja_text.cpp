#include "text/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>

#include "text/unicode.h"

namespace fathom::text::jinja {
namespace {

char32_t upper_of(char32_t c) { return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))); }
char32_t lower_of(char32_t c) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }

bool is_letter(char32_t c) {
  const auto kind = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

}  // namespace

bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

std::string_view python_strip(std::string_view text, const std::optional<std::string_view>& chars, bool left,
                              bool right) {
  const auto drop = [&](char32_t c) {
    if (!chars) return is_python_space(c);
    for (std::size_t i = 0; i < chars->size();)
      if (next_char(*chars, i) == c) return true;
    return false;
  };
  while (left && !text.empty()) {
    std::size_t next = 0;
    if (!drop(next_char(text, next))) break;
    text.remove_prefix(next);
  }
  while (right && !text.empty()) {
    const std::size_t start = char_start_before(text, text.size());
    std::size_t at = start;
    if (!drop(next_char(text, at))) break;
    text = text.substr(0, start);
  }
  return text;
}
std::string_view python_lstrip(std::string_view text) { return python_strip(text, std::nullopt, true, false); }
std::string_view python_rstrip(std::string_view text) { return python_strip(text, std::nullopt, false, true); }

std::string upper(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = next_char(text, i);
    if (c == 0xdf)
      out += "SS";  // the one letter in common use that grows
    else
      append_utf8(out, upper_of(c));
  }
  return out;
}

std::string lower(std::string_view text) { return lowercased(text); }

std::string capitalized(std::string_view text) {
  if (text.empty()) return {};
  std::size_t next = 0;
  std::string out;
  const char32_t first = next_char(text, next);
  append_utf8(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(first))));
  return out + lower(text.substr(next));
}

std::string titled(std::string_view text, bool jinja) {
  std::string out;
  bool inside = false;
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = next_char(text, i);
    append_utf8(out, inside ? lower_of(c) : upper_of(c));
    inside = jinja ? !(is_python_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<') : is_letter(c);
  }
  return out;
}

std::vector<std::string_view> python_split(std::string_view text, const std::optional<std::string_view>& separator,
                                           std::int64_t max_splits, bool from_right) {
  std::vector<std::string_view> parts;
  const auto full = [&] { return max_splits >= 0 && static_cast<std::int64_t>(parts.size()) >= max_splits; };
  if (separator) {
    while (!full()) {
      const std::size_t at = from_right ? text.rfind(*separator) : text.find(*separator);
      if (at == std::string_view::npos) break;
      const std::string_view before = text.substr(0, at), behind = text.substr(at + separator->size());
      parts.push_back(from_right ? behind : before);
      text = from_right ? before : behind;
    }
    parts.push_back(text);
  } else {
    for (text = from_right ? python_rstrip(text) : python_lstrip(text); !text.empty();) {
      if (full()) {
        parts.push_back(from_right ? python_rstrip(text) : text);
        break;
      }
      std::size_t cut = from_right ? text.size() : 0;
      if (from_right) {
        while (cut > 0) {
          const std::size_t start = char_start_before(text, cut);
          std::size_t at = start;
          if (is_python_space(next_char(text, at))) break;
          cut = start;
        }
        parts.push_back(text.substr(cut));
        text = python_rstrip(text.substr(0, cut));
      } else {
        while (cut < text.size()) {
          std::size_t next = cut;
          if (is_python_space(next_char(text, next))) break;
          cut = next;
        }
        parts.push_back(text.substr(0, cut));
        text = python_lstrip(text.substr(cut));
      }
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t end = i;
    const char32_t c = next_char(text, i);
    const bool breaks = (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == '\r' && i < text.size() && text[i] == '\n') ++i;
    lines.push_back(text.substr(start, (keep_ends ? i : end) - start));
    start = i;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::string replaced(std::string_view text, std::string_view old, std::string_view by, std::int64_t max_count) {
  std::string out;
  std::int64_t count = 0;
  std::size_t at = 0;
  const auto more = [&] { return max_count < 0 || count < max_count; };
  if (old.empty()) {  // between all characters
    while (more()) {
      out += by;
      ++count;
      if (at >= text.size()) return out;
      const std::size_t start = at;
      static_cast<void>(next_char(text, at));
      out += text.substr(start, at - start);
    }
    return out.append(text.substr(at));
  }
  for (std::size_t found; more() && (found = text.find(old, at)) != std::string_view::npos; ++count) {
    out += text.substr(at, found - at);
    out += by;
    at = found + old.size();
  }
  return out.append(text.substr(at));
}

std::vector<std::size_t> char_offsets(std::string_view text) {
  std::vector<std::size_t> offsets;
  for (std::size_t i = 0; i < text.size();) {
    offsets.push_back(i);
    static_cast<void>(next_char(text, i));
  }
  offsets.push_back(text.size());
  return offsets;
}

bool is_all(std::string_view text, Class wanted) {
  bool any = false;  // for case: at least one letter that has it
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = next_char(text, i);
    const auto kind = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    const bool digit = kind == UTF8PROC_CATEGORY_ND || c == 0xb2 || c == 0xb3 || c == 0xb9;
    switch (wanted) {
      case Class::kDigit:
        any = digit;
        break;
      case Class::kAlpha:
        any = is_letter(c);
        break;
      case Class::kAlnum:
        any = is_letter(c) || is_numeric(c);
        break;
      case Class::kSpace:
        any = is_python_space(c);
        break;
      case Class::kUpper:
        if (kind == UTF8PROC_CATEGORY_LL || kind == UTF8PROC_CATEGORY_LT) return false;
        any |= kind == UTF8PROC_CATEGORY_LU;
        continue;
      case Class::kLower:
        if (kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LT) return false;
        any |= kind == UTF8PROC_CATEGORY_LL;
        continue;
    }
    if (!any) return false;
  }
  return any;
}

}  // namespace fathom::text::jinja
