// Pieces of PTX's text that its readers share.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::emulator {

bool is_space(char c);
std::string_view trimmed(std::string_view text);
/// Parts of `text` between commas that lie in no brackets.
std::vector<std::string_view> split(std::string_view text);
/// A number as PTX writes it, whole or real (0f3F800000, 1.0), as bits. False: it is none.
bool number(std::string_view text, std::uint64_t& bits);

/// A variable or parameter: ".align 16 .b8 name[32][2]", ".u32 name".
struct Declared {
  std::string name;
  std::uint32_t element = 0, bytes = 0, alignment = 1;
};
Declared read_declared(std::string_view text);

}  // namespace fathom::emulator
