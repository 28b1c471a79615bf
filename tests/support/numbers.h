// Numbers that tests need a name for.
#pragma once
#include <limits>

namespace fathom::test {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

}  // namespace fathom::test
