// Quantities that must not be confused. GiB is 2^30 bytes, GB is 10^9; peak rates are dense.
#pragma once
#include <cstdint>
#include <string>

namespace fathom {

using Bytes = std::uint64_t;  // always whole bytes; names end in _bytes where the type alone does not say it

inline constexpr Bytes kKiB = Bytes{1} << 10;
inline constexpr Bytes kMiB = Bytes{1} << 20;
inline constexpr Bytes kGiB = Bytes{1} << 30;
inline constexpr double kGB = 1e9;

/// a + b and a * b that say so instead of wrapping: for arithmetic on what a file or a request says.
[[nodiscard]] inline bool checked_add(std::uint64_t a, std::uint64_t b, std::uint64_t& out) {
  return !__builtin_add_overflow(a, b, &out);
}
[[nodiscard]] inline bool checked_mul(std::uint64_t a, std::uint64_t b, std::uint64_t& out) {
  return !__builtin_mul_overflow(a, b, &out);
}

/// "12.3 GiB", "640.0 MiB", "17 B".
std::string format_bytes(Bytes bytes);
/// "512MiB", "24GiB", "24GB", "1048576" -> bytes; false when it is not a size.
[[nodiscard]] bool parse_bytes(const std::string& text, Bytes& out);
/// "1.2 s", "35.1 ms", "870 µs".
std::string format_seconds(double seconds);
/// "671.0B", "1.6T", "137M": parameters and other plain counts.
std::string format_count(double count);

}  // namespace fathom
