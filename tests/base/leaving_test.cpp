#include "base/leaving.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace fathom {
namespace {

/// Sets an exit code of its own, as whatever goes wrong in an orderly end would.
struct Spoiler {
  ~Spoiler() {
    if (armed) std::_Exit(9);
  }
  bool armed = false;
};

TEST(Leaving, FinishHandsTheCodeOn) { EXPECT_EQ(finish(2), 2); }

TEST(Leaving, AtOnceNothingIsTakenApart) {
  const auto leave = [](bool at_once) {
    static Spoiler spoiler;
    spoiler.armed = true;
    if (at_once) leave_at_once();
    std::exit(finish(2));
  };
  EXPECT_EXIT(leave(false), testing::ExitedWithCode(9), "");
  EXPECT_EXIT(leave(true), testing::ExitedWithCode(2), "");
}

}  // namespace
}  // namespace fathom
