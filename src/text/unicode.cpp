#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/result.h"

namespace fathom::text {
namespace {

unsigned char byte_at(std::string_view text, std::size_t i) { return static_cast<unsigned char>(text[i]); }

// What a first byte promises: the length of its character and the range that its second byte must lie in.
struct Lead {
  std::size_t length = 0;  // 0: no character starts with this byte
  unsigned char low = 0x80, high = 0xbf;
};

Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xc2) return {0};
  if (byte < 0xe0) return {2};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte < 0xf0) return {3};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0};
}

// Bytes from `at` that agree with one well-formed character: its whole length, or fewer where it breaks off.
std::size_t well_formed_part(std::string_view bytes, std::size_t at, const Lead& lead) {
  std::size_t n = 1;
  for (; n < lead.length && at + n < bytes.size(); ++n) {
    const unsigned char byte = byte_at(bytes, at + n);
    const unsigned char low = n == 1 ? lead.low : 0x80, high = n == 1 ? lead.high : 0xbf;
    if (byte < low || byte > high) break;
  }
  return n;
}

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

// Characters that every normal form NFC leaves alone wherever they stand: of class 0, never changed, never the second
// of a pair.
bool inert_in_nfc(char32_t c) {
  return c < 0x300 || (c >= 0x400 && c < 0x483) || (c >= 0x2010 && c < 0x2028) || (c >= 0x3000 && c < 0x302a) ||
         (c >= 0x3040 && c < 0x3099) || (c >= 0x30a0 && c < 0x3100) || (c >= 0x4e00 && c < 0xa000) ||
         (c >= 0xac00 && c < 0xd7a4) || (c >= 0xff01 && c < 0xff60) || (c >= 0x1f300 && c < 0x1fb00);
}

bool already_nfc(std::string_view text) {
  for (std::size_t i = 0; i < text.size();)
    if (!inert_in_nfc(next_char(text, i))) return false;
  return true;
}

// Canonical ordering: marks of a run sorted by class, equal ones in place. A stable sort keeps absurd runs cheap.
void order_marks(std::vector<utf8proc_int32_t>& chars) {
  const auto mark_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (std::size_t i = 0; i < chars.size();) {
    if (mark_class(chars[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i + 1;
    while (end < chars.size() && mark_class(chars[end]) != 0) ++end;
    if (end - i > 1)
      std::stable_sort(chars.begin() + static_cast<std::ptrdiff_t>(i), chars.begin() + static_cast<std::ptrdiff_t>(end),
                       [&](auto a, auto b) { return mark_class(a) < mark_class(b); });
    i = end;
  }
}

}  // namespace

char32_t next_char(std::string_view text, std::size_t& at) {
  const unsigned char first = byte_at(text, at);
  const auto tail = [&](std::size_t k) { return static_cast<char32_t>(byte_at(text, at + k) & 0x3f); };
  char32_t c = first;
  std::size_t length = 1;
  if (first >= 0xf0) {
    c = (c & 7) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
    length = 4;
  } else if (first >= 0xe0) {
    c = (c & 15) << 12 | tail(1) << 6 | tail(2);
    length = 3;
  } else if (first >= 0xc0) {
    c = (c & 31) << 6 | tail(1);
    length = 2;
  }
  at += length;
  return c;
}

std::size_t char_start_before(std::string_view text, std::size_t end) {
  do --end;
  while (end > 0 && (byte_at(text, end) & 0xc0) == 0x80);
  return end;
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6), put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 0x3f)), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  }
}

std::size_t count_chars(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

bool is_white_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_numeric(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
}

bool is_word(char32_t c) {
  const auto kind = category(c);
  if (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_ND) return true;  // letters, marks, decimal digits
  if (kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_PC) return true;
  return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
         (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);  // joiners; symbols that are alphabetic
}

std::string normalized(std::string_view text, NormalForm form) {
  if (form == NormalForm::kNfc && already_nfc(text)) return std::string(text);
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> chars;
  chars.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    constexpr int kRoom = 32;  // the longest decomposition has 18 characters
    utf8proc_int32_t parts[kRoom];
    int boundary = 0;
    const auto c = static_cast<utf8proc_int32_t>(next_char(text, i));
    const auto n = utf8proc_decompose_char(c, parts, kRoom, options, &boundary);
    FATHOM_CHECK(n >= 0 && n <= kRoom, "decomposition");
    chars.insert(chars.end(), parts, parts + n);
  }
  order_marks(chars);
  auto length = static_cast<utf8proc_ssize_t>(chars.size());
  if (compose) {
    length = utf8proc_normalize_utf32(chars.data(), length,
                                      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    FATHOM_CHECK(length >= 0, "composition");
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i)
    append_utf8(out, static_cast<char32_t>(chars[static_cast<std::size_t>(i)]));
  return out;
}

std::string lowercased(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = next_char(text, i);
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    if (c == 0x130) append_utf8(out, 0x307);  // İ is the one character whose lower case has two
  }
  return out;
}

void append_lossy(std::string& out, std::string_view bytes) {
  for (std::size_t i = 0; i < bytes.size();) {
    const Lead lead = lead_of(byte_at(bytes, i));
    const std::size_t n = lead.length == 0 ? 1 : well_formed_part(bytes, i, lead);
    out += lead.length == n ? bytes.substr(i, n) : kReplacementChar;
    i += n;
  }
}

std::size_t incomplete_suffix(std::string_view bytes) {
  for (std::size_t n = 1; n <= 3 && n <= bytes.size(); ++n) {
    const std::size_t at = bytes.size() - n;
    if ((byte_at(bytes, at) & 0xc0) == 0x80) continue;
    const Lead lead = lead_of(byte_at(bytes, at));
    return lead.length > n && well_formed_part(bytes, at, lead) == n ? n : 0;
  }
  return 0;
}

}  // namespace fathom::text
