// Characters as tokenizers see them: UTF-8, categories, normal forms. Text is valid UTF-8 wherever it is called text;
// bytes may be anything.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace fathom::text {

/// The character at `at`, which is moved behind it. `text` is valid UTF-8 and `at` stands on a first byte.
char32_t next_char(std::string_view text, std::size_t& at);
/// The first byte of the character that ends just before `end` (> 0).
std::size_t char_start_before(std::string_view text, std::size_t end);
void append_utf8(std::string& out, char32_t c);
/// Characters in `text`: one pass, no validation.
std::size_t count_chars(std::string_view text);

bool is_white_space(char32_t c);  // Unicode White_Space
bool is_numeric(char32_t c);      // categories Nd, Nl, No
bool is_punctuation(char32_t c);  // categories P*, and ASCII punctuation (which includes symbols such as '$')
bool is_word(char32_t c);         // alphabetic, marks, decimal digits, connectors, joiners

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
/// Linear in the text, also for absurd runs of combining marks (but for sorting each run).
std::string normalized(std::string_view text, NormalForm form);
/// Lower case character by character, without context (the final sigma stays σ).
std::string lowercased(std::string_view text);

/// Appends `bytes` with every maximal ill-formed part replaced by U+FFFD.
void append_lossy(std::string& out, std::string_view bytes);
/// Bytes at the end of `bytes` that are the beginning of a character still to be completed: 0 to 3.
std::size_t incomplete_suffix(std::string_view bytes);

inline constexpr std::string_view kReplacementChar = "\xEF\xBF\xBD";

}  // namespace fathom::text
