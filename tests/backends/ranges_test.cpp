// What of memory is left when a part of it is written over.
#include "backends/cuda/ranges.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace fathom::cuda {
namespace {

TEST(FloatRanges, APartThatIsWrittenOverIsAnothers) {
  const std::vector<float> memory(100);
  const float* const at = memory.data();
  FloatRanges ranges;
  EXPECT_FALSE(ranges.overlaps(at, 100));
  ranges.add(at + 20, 40);
  EXPECT_TRUE(ranges.overlaps(at, 21));
  EXPECT_FALSE(ranges.overlaps(at, 20));
  EXPECT_TRUE(ranges.overlaps(at + 59, 1));
  EXPECT_FALSE(ranges.overlaps(at + 60, 40));
  ranges.remove(at + 30, 10);  // what lies on both sides stays
  EXPECT_FALSE(ranges.overlaps(at + 30, 10));
  EXPECT_TRUE(ranges.overlaps(at + 29, 1));
  EXPECT_TRUE(ranges.overlaps(at + 40, 1));
  ranges.remove(at, 30);
  EXPECT_FALSE(ranges.overlaps(at, 40));
  EXPECT_TRUE(ranges.overlaps(at, 41));
}

TEST(FloatRanges, AreWhatAMarkAFloatWouldBe) {
  std::mt19937 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const std::vector<float> memory(64);
  for (int turn = 0; turn < 50; ++turn) {
    FloatRanges ranges;
    std::vector<bool> marks(memory.size());
    for (int step = 0; step < 40; ++step) {
      const int from = below(64), count = 1 + below(64 - from);
      const bool adds = below(2) == 0;
      if (adds)
        ranges.add(memory.data() + from, count);
      else
        ranges.remove(memory.data() + from, count);
      for (int i = from; i < from + count; ++i) marks[static_cast<std::size_t>(i)] = adds;
      for (int i = 0; i < 64; ++i)
        ASSERT_EQ(ranges.overlaps(memory.data() + i, 1), marks[static_cast<std::size_t>(i)]) << step << " " << i;
    }
  }
}

}  // namespace
}  // namespace fathom::cuda
