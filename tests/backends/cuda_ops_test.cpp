// Backend cuda against the reference: every case of the registry, on memory that host and device share. Skipped where
// there is no device, saying why; what can be told without one is tested everywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "backends/backends.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/op_cases.h"

namespace fathom::test {
namespace {
using tensor::Backend;
using tensor::Placement;
using tensor::WeightFormat;

TEST(CudaBackend, IsListedAndSaysWhyItCannotBeHad) {
  for (const backends::BackendInfo& info : backends::list_backends()) {
    if (info.name != "cuda") continue;
    EXPECT_EQ(info.available, info.why_not.empty());
    EXPECT_EQ(info.why_not, cuda::why_unavailable());
    const auto made = backends::make_backend("cuda");
    if (info.available) return;
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(error_text(made.error()), info.why_not);
    EXPECT_EQ(made.error().key.substr(0, 5), "cuda.");
    return;
  }
  FAIL() << "cuda is not listed";
}

/// The way that cases go to a device, taken by a backend that needs none: its memory is enough for every case, and
/// their guard bands hold.
TEST(CaseMemory, HoldsEveryCase) {
  auto backend = backends::make_backend("cpu");
  ASSERT_TRUE(backend.has_value()) << error_text(backend.error());
  auto memory = make_case_memory(**backend);
  ASSERT_TRUE(memory.has_value()) << error_text(memory.error());
  CheckOptions options;
  options.memory = memory->get();
  options.wanted = [](const OpCase& c) { return c.format == WeightFormat::f32 || c.format == WeightFormat::mxfp4; };
  options.twice = false;
  EXPECT_GT(check_against_reference(**backend, options), 300);
}

/// FATHOM_CASES_EVERY=N takes every Nth case only, for devices that need long.
int every() {
  const char* const asked = std::getenv("FATHOM_CASES_EVERY");
  return asked != nullptr ? std::max(1, std::atoi(asked)) : 1;
}

class CudaDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = cuda::why_unavailable(); !why.empty()) GTEST_SKIP() << why;
    auto made = cuda::make_cuda_backend({});
    ASSERT_TRUE(made.has_value()) << error_text(made.error());
    backend_ = std::move(*made);
    auto memory = make_case_memory(*backend_);
    ASSERT_TRUE(memory.has_value()) << error_text(memory.error());
    memory_ = std::move(*memory);
  }
  bool wanted(const OpCase& c) { return c.format != WeightFormat::f64 && number_++ % every() == 0; }
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CaseMemory> memory_;
  int number_ = 0;
};

// Products of many tokens with 16-bit weights round activations to the weight's type, 2^-9 of each at most; with 8- and
// 4-bit weights the weights too, unless their scales are powers of two.
constexpr Tolerance kRounded{1.5e-2, 4e-3, 4e-3};
// Rows of scaled integers are larger than that, by their scale and by zero points far from the middle, and so is what
// rounding them to bf16 costs.
constexpr Tolerance kWidened{3e-2, 8e-3, 8e-3};
// Attention over 16-bit keys rounds queries and weights to their type, over 8-bit keys to bf16, and keys and values
// where it is told that they may be.
constexpr Tolerance kRoundedAttention{1e-2, 4e-3, 2e-3};

// FP8 experts: the matrix units' sums keep about 14 bits, so that of the elements that are rounded to codes in between
// about one in a hundred becomes the next code, by up to an eighth of itself; times an element of the down matrix that
// is what an element of the result may be off. A row hardly is, but where one element of a short one outweighs the
// rest.
constexpr Tolerance kOtherCodes{3e-2, 8e-3, 5e-2, 0.3};
// Of whole numbers the sums are exact; a code in many thousands is next to a tie and differs.
constexpr Tolerance kExactSums{1.5e-2, 4e-3, 4e-3, 0.1};

TEST_F(CudaDevice, AgreesWithReference) {
  CheckOptions options;
  options.memory = memory_.get();
  options.wanted = [this](const OpCase& c) { return wanted(c); };
  options.tolerance = [](const OpCase& c) {
    if (c.exact) return Tolerance{};
    if (c.op == "attention" && c.format != WeightFormat::f32) return kRoundedAttention;
    const bool products = c.op == "linear" || c.op == "grouped_linear" || c.op == "experts";
    if (c.op == "experts" && c.codes > 0) return kOtherCodes;
    if (c.name.find("/whole_") != std::string::npos) return kExactSums;
    if (products && c.format >= WeightFormat::int8_row) return kWidened;
    return products && c.format != WeightFormat::f32 ? kRounded : kF32Tolerance;
  };
  EXPECT_GT(check_against_reference(*backend_, options), 500 / every());
}

TEST_F(CudaDevice, GradientsAgreeWithReference) {
  CheckOptions options;
  options.memory = memory_.get();
  options.wanted = [this](const OpCase& c) { return wanted(c); };
  EXPECT_GT(check_gradients_against_reference(*backend_, options), 90 / every());
}

TEST_F(CudaDevice, CopiesToTheDeviceAndBack) {
  auto buffer = backend_->allocate_buffer(4096, Placement::kDevice);
  ASSERT_TRUE(buffer.has_value()) << error_text(buffer.error());
  std::vector<std::byte> sent(4000), back(4096, std::byte{1});
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i * 7 + 3);
  ASSERT_TRUE(backend_->upload((*buffer)->data(), sent).has_value());
  ASSERT_TRUE(backend_->download(back, (*buffer)->data()).has_value());
  EXPECT_TRUE(std::equal(sent.begin(), sent.end(), back.begin()));
  for (std::size_t i = sent.size(); i < back.size(); ++i)
    EXPECT_EQ(back[i], std::byte{0}) << "device memory starts as zero";
}

TEST_F(CudaDevice, SharedMemoryStartsAsZero) {
  auto buffer = backend_->allocate_buffer(777, Placement::kShared);
  ASSERT_TRUE(buffer.has_value()) << error_text(buffer.error());
  for (std::size_t i = 0; i < 777; ++i) EXPECT_EQ((*buffer)->data()[i], std::byte{0});
}

TEST_F(CudaDevice, SaysHowMuchMemoryWasMissing) {
  const auto buffer = backend_->allocate_buffer(Bytes{1} << 50, Placement::kDevice);
  ASSERT_FALSE(buffer.has_value());
  EXPECT_EQ(buffer.error().key, "cuda.no_memory");
  EXPECT_NE(error_text(buffer.error()).find(format_bytes(Bytes{1} << 50)), std::string::npos);
  EXPECT_TRUE(backend_->synchronize().has_value()) << "the device goes on after it";
}

}  // namespace
}  // namespace fathom::test
