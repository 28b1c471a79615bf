// Small text helpers shared by every room.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

std::string to_lower(std::string_view text);  // ASCII only
std::vector<std::string_view> split(std::string_view text, char separator);
std::string_view trim(std::string_view text);
bool is_valid_utf8(std::string_view text);
/// `text` made safe for a message: invalid UTF-8 and control characters escaped, cut to `max_chars`.
std::string printable(std::string_view text, std::size_t max_chars = 80);
/// Levenshtein distance over bytes, case-insensitive in ASCII.
int edit_distance(std::string_view a, std::string_view b);
/// The candidates nearest to `name`, best first, only those near enough to be worth suggesting.
std::vector<std::string> nearest_names(std::string_view name, std::span<const std::string> candidates,
                                       int max_results = 3);
/// "a, b, c".
std::string join(std::span<const std::string> parts, std::string_view separator = ", ");

}  // namespace fathom
