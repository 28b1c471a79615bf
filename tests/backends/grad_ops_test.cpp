// Gradients of every backend that differentiates, against the reference's. The reference's own are held against
// differences in tests/train.
#include <gtest/gtest.h>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/isa.h"
#include "backends/op_cases.h"
#include "backends/reference/reference_backend.h"
#include "hardware/cpu_info.h"

namespace fathom::test {
namespace {
using tensor::WeightFormat;

TEST(GradOps, ReferenceAgreesWithItself) {
  const auto reference = std::move(*reference::make_reference_backend({}));
  EXPECT_GT(check_gradients_against_reference(*reference), 60);
}

TEST(GradOps, CpuAgreesWithReferenceUnderEveryIsa) {
  for (const cpu::Implementation& each : cpu::implementations()) {
    if (!cpu::missing_for(each, hardware::executable_isa()).empty()) continue;
    SCOPED_TRACE(std::string(each.name));
    auto plain = std::move(*reference::make_reference_backend({}));
    const auto backend = cpu::make_cpu_backend({.threads = 2, .isa = std::string(each.name)}, std::move(plain));
    ASSERT_TRUE(backend) << error_text(backend.error());
    CheckOptions options;
    options.wanted = [](const OpCase& c) { return c.format != WeightFormat::f64; };
    EXPECT_GT(check_gradients_against_reference(**backend, options), 60);
  }
}

}  // namespace
}  // namespace fathom::test
