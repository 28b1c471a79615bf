#include "base/embedded.h"

#include <algorithm>

namespace fathom {

std::optional<std::string_view> embedded_file(std::string_view path) {
  const auto files = embedded_files();
  const auto found = std::lower_bound(files.begin(), files.end(), path,
                                      [](const EmbeddedFile& file, std::string_view p) { return file.path < p; });
  if (found != files.end() && found->path == path) return found->contents;
  // CMake's sort order need not be byte order: fall back to a scan before saying no.
  for (const EmbeddedFile& file : files)
    if (file.path == path) return file.contents;
  return std::nullopt;
}

}  // namespace fathom
