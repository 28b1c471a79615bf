// Where tests find things.
#pragma once
#include <filesystem>

namespace fathom::test {

/// tests/fixtures of the source tree.
inline std::filesystem::path fixtures() { return std::filesystem::path(FATHOM_SOURCE_DIR) / "tests" / "fixtures"; }

}  // namespace fathom::test
