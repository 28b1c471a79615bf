#include "text/byte_level.h"

#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

constexpr std::array<char32_t, 256> make_letters() {
  std::array<char32_t, 256> letters{};
  char32_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) letters[byte] = stands_for_itself(byte) ? byte : next++;
  return letters;
}
constexpr std::array<char32_t, 256> kLetters = make_letters();
constexpr char32_t kLetterEnd = 256 + 68;  // 68 bytes do not stand for themselves

constexpr std::array<short, kLetterEnd> make_bytes() {
  std::array<short, kLetterEnd> bytes{};
  for (short& byte : bytes) byte = -1;
  for (unsigned byte = 0; byte < 256; ++byte) bytes[kLetters[byte]] = static_cast<short>(byte);
  return bytes;
}
constexpr std::array<short, kLetterEnd> kBytes = make_bytes();

}  // namespace

const std::array<char32_t, 256>& byte_letters() { return kLetters; }

std::optional<unsigned char> byte_of_letter(char32_t letter) {
  if (letter >= kLetterEnd || kBytes[letter] < 0) return std::nullopt;
  return static_cast<unsigned char>(kBytes[letter]);
}

void append_byte_letters(std::string& out, std::string_view bytes) {
  for (const char c : bytes) append_utf8(out, kLetters[static_cast<unsigned char>(c)]);
}

std::optional<std::string> bytes_of_letters(std::string_view letters) {
  std::string bytes;
  bytes.reserve(letters.size());
  for (std::size_t i = 0; i < letters.size();) {
    const auto byte = byte_of_letter(next_char(letters, i));
    if (!byte) return std::nullopt;
    bytes += static_cast<char>(*byte);
  }
  return bytes;
}

}  // namespace fathom::text
