// Files: read whole, map, write so that nothing is ever half-written.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fathom {

using Path = std::filesystem::path;

/// Reads a regular file; refuses one larger than `max_bytes`, naming both sizes.
Result<std::string> read_file(const Path& path, std::uint64_t max_bytes);
/// Writes to a temporary name beside `path`, fsyncs, renames: afterwards the old or the new content stands, whole.
Status write_file_atomic(const Path& path, std::string_view contents);
/// "No such file or directory" and the like, for error arguments.
std::string errno_text(int error_number);

/// A read-only mapping of a whole file.
class MappedFile {
 public:
  static Result<MappedFile> open(const Path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// The user's folder for profiles, overrides and caches: $FATHOM_HOME, else $XDG_CONFIG_HOME/fathom, else
/// ~/.config/fathom.
Path user_folder();
/// data/<relative> from the user's folder when it is there, else the embedded file; nullopt when neither is.
std::optional<std::string> data_file(std::string_view relative);

}  // namespace fathom
