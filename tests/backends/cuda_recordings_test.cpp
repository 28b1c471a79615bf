// Recorded passes of single tokens go in launches of many stages, however many passes were recorded before. Skipped
// where there is no device, or none that has such launches.
#include "backends/cuda_fixture.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

class CudaRecordings : public CudaTest {};

TEST_F(CudaRecordings, TablesOfNewLaunchesFindRoom) {
  if (!cuda::stages_launched(*backend_)) GTEST_SKIP() << "this device has no such launches";
  constexpr std::int64_t kColumns = 512;
  constexpr int kProducts = 250, kPasses = 15;  // whose tables, some 370 KB a pass, are more than there is room for
  const Weight w = weight(WeightFormat::int8_row, kColumns, kColumns);
  const Tensor x[2] = {random(DType::f32, {1, kColumns}), make(DType::f32, {1, kColumns})};
  const auto pass = [&] {
    for (int i = 0; i < kProducts; ++i)
      backend_->ops().linear({.x = x[i % 2], .weight = w, .bias = {}, .out = x[1 - i % 2]});
  };
  for (std::uint64_t key = 1; key <= kPasses; ++key) {
    const std::int64_t before = *cuda::stages_launched(*backend_);
    // A pass is recorded when it comes the second time, or the third if the first was forgotten to make room.
    std::int64_t recorded = 0;
    for (int turn = 0; turn < 3 && recorded == 0; ++turn) {
      const auto called = backend_->run_pass(key, [&] {
        if (turn > 0) pass();
      });
      ASSERT_TRUE(called.has_value()) << error_text(called.error());
      recorded = *cuda::stages_launched(*backend_) - before;
    }
    wait();
    EXPECT_EQ(recorded, kProducts) << "pass " << key;
  }
}

}  // namespace
}  // namespace fathom::test
