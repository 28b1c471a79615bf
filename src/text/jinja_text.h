// Text as Python's str treats it: by characters, with Python's idea of blanks.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text::jinja {

bool is_python_space(char32_t c);
std::string_view python_lstrip(std::string_view text);
std::string_view python_rstrip(std::string_view text);
/// Without any of `chars` at the left and right ends, as wanted; blanks when `chars` is absent.
std::string_view python_strip(std::string_view text, const std::optional<std::string_view>& chars, bool left,
                              bool right);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
/// First character upper, the rest lower case.
std::string capitalized(std::string_view text);
/// Every word so. `jinja`: words begin where Jinja's filter says, else where Python's method does.
std::string titled(std::string_view text, bool jinja);

/// Parts between `separator`, or between runs of blanks when absent; at most `max_splits` cuts unless negative.
std::vector<std::string_view> python_split(std::string_view text, const std::optional<std::string_view>& separator,
                                           std::int64_t max_splits, bool from_right);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
std::string replaced(std::string_view text, std::string_view old, std::string_view by, std::int64_t max_count);

/// Byte offsets of the characters, and the end: text[i:j] is bytes offsets[i] to offsets[j].
std::vector<std::size_t> char_offsets(std::string_view text);

enum class Class : std::uint8_t { kDigit, kAlpha, kAlnum, kSpace, kUpper, kLower };
/// Python's isdigit() and so on: not empty, and all characters are of the class.
bool is_all(std::string_view text, Class wanted);

}  // namespace fathom::text::jinja
