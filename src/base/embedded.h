// The files of data/, embedded in the binary.
#pragma once
#include <optional>
#include <span>
#include <string_view>

namespace fathom {

struct EmbeddedFile {
  std::string_view path;      // relative to data/, with forward slashes
  std::string_view contents;  // followed by a zero byte
};

/// All embedded files, sorted by path.
std::span<const EmbeddedFile> embedded_files();
std::optional<std::string_view> embedded_file(std::string_view path);

}  // namespace fathom
