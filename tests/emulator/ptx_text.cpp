#include "emulator/ptx_text.h"

#include <bit>
#include <cctype>
#include <charconv>

namespace fathom::emulator {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}
std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> out;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '{' || text[i] == '[') ++depth;
    if (text[i] == '}' || text[i] == ']') --depth;
    if (text[i] == ',' && depth == 0) out.push_back(trimmed(text.substr(begin, i - begin))), begin = i + 1;
  }
  if (const std::string_view last = trimmed(text.substr(begin)); !last.empty()) out.push_back(last);
  return out;
}
bool number(std::string_view text, std::uint64_t& bits) {
  if (text.size() == 10 && (text.starts_with("0f") || text.starts_with("0F")))
    return std::from_chars(text.data() + 2, text.data() + 10, bits, 16).ec == std::errc{};
  if (text.size() == 18 && (text.starts_with("0d") || text.starts_with("0D")))
    return std::from_chars(text.data() + 2, text.data() + 18, bits, 16).ec == std::errc{};
  const bool minus = text.starts_with("-");
  if (minus) text.remove_prefix(1);
  if (text.empty() || std::isdigit(static_cast<unsigned char>(text.front())) == 0) return false;
  if (text.find('.') != std::string_view::npos) {
    bits = std::bit_cast<std::uint32_t>(std::stof(std::string(text)) * (minus ? -1.0f : 1.0f));
    return true;
  }
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) base = 16, text.remove_prefix(2);
  if (text.ends_with("U")) text.remove_suffix(1);
  if (std::from_chars(text.data(), text.data() + text.size(), bits, base).ec != std::errc{}) return false;
  if (minus) bits = 0 - bits;
  return true;
}

Declared read_declared(std::string_view text) {
  Declared out;
  bool wants_alignment = false;
  for (text = trimmed(text); !text.empty(); text = trimmed(text)) {
    std::size_t end = 0;
    while (end < text.size() && !is_space(text[end])) ++end;
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(end);
    if (wants_alignment) {
      out.alignment = static_cast<std::uint32_t>(std::stoul(std::string(word))), wants_alignment = false;
    } else if (word == ".align") {
      wants_alignment = true;
    } else if (word.starts_with('.')) {  // its type, or (.ptr, .global) what a pointer points to
      const std::uint32_t bytes = word.ends_with("64")   ? 8
                                  : word.ends_with("32") ? 4
                                  : word.ends_with("16") ? 2
                                  : word.ends_with("8")  ? 1
                                                         : 0;
      if (bytes != 0) out.element = bytes;
    } else {
      out.name = word.substr(0, word.find('['));
      out.bytes = out.element;
      for (std::size_t at = word.find('['); at != std::string_view::npos; at = word.find('[', at + 1))
        out.bytes *= static_cast<std::uint32_t>(std::stoul(std::string(word.substr(at + 1))));
    }
  }
  if (out.alignment < out.element) out.alignment = out.element;
  return out;
}

}  // namespace fathom::emulator
