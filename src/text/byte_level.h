// GPT-2's alphabet: every byte as one printable character, so that any text is a word over 256 letters.
#pragma once
#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace fathom::text {

/// The letter of each byte: itself where it is printable Latin-1, else one from U+0100 on.
const std::array<char32_t, 256>& byte_letters();
/// The byte of a letter, or nullopt for a character outside the alphabet.
std::optional<unsigned char> byte_of_letter(char32_t letter);
void append_byte_letters(std::string& out, std::string_view bytes);
/// The bytes that `letters` (valid UTF-8) spell; nullopt when a character is outside the alphabet.
std::optional<std::string> bytes_of_letters(std::string_view letters);

}  // namespace fathom::text
