// Reading the kernel's small text files under a root that tests can replace. Nothing here fails: what is absent,
// unreadable or malformed is nullopt or empty.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"

namespace fathom::hardware {

class SystemFiles {
 public:
  explicit SystemFiles(Path root) : root_(std::move(root)) {}
  /// "sys/class/drm" below the root.
  Path path(std::string_view relative) const { return root_ / relative; }
  bool is_real() const { return root_ == "/"; }
  bool exists(std::string_view relative) const;
  /// The contents, at most `max_bytes` of them, never blocking on what is not a plain file.
  std::optional<std::string> text(std::string_view relative, std::size_t max_bytes = std::size_t{4} << 20) const;
  /// The first line without blanks around it; nullopt when absent or empty.
  std::optional<std::string> line(std::string_view relative) const;
  /// A decimal integer, or 0x… hexadecimal, alone on the first line.
  std::optional<std::int64_t> integer(std::string_view relative) const;
  /// Names inside a folder, sorted with numbers in numeric order ("cpu2" before "cpu10").
  std::vector<std::string> names(std::string_view relative) const;
  /// The last part of what a symbolic link points to, empty when it is none.
  std::string link_name(std::string_view relative) const;

 private:
  Path root_;
};

/// A whole decimal or 0x… number; nullopt for anything else, also for one that does not fit.
std::optional<std::int64_t> parse_integer(std::string_view text);
/// A finite decimal number at the start of `text`, after blanks; what follows does not matter.
std::optional<double> parse_leading_number(std::string_view text);
/// "0-3,8,10-11" -> {0,1,2,3,8,10,11}; parts that make no sense are passed over; at most 65536 entries.
std::vector<int> parse_cpu_list(std::string_view text);
/// The value behind "key:" or "key\t:" on the first line that starts so; nullopt when there is none.
std::optional<std::string_view> value_of(std::string_view text, std::string_view key);
/// All lines of `text`, without line ends.
std::vector<std::string_view> lines_of(std::string_view text);

}  // namespace fathom::hardware
