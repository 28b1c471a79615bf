// Backend cpu against the reference: every case of the registry under every instruction set that this machine has.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu_isas.h"
#include "backends/op_cases.h"
#include "backends/reference/reference_backend.h"

namespace fathom::test {
namespace {
using tensor::WeightFormat;

std::unique_ptr<tensor::Backend> checked_backend(const std::string& isa, int threads) {
  auto backend =
      cpu::make_cpu_backend({.threads = threads, .isa = isa}, std::move(*reference::make_reference_backend({})));
  EXPECT_TRUE(backend.has_value()) << (backend ? "" : error_text(backend.error()));
  return backend ? std::move(*backend) : nullptr;
}

// Products of bf16 weights may round activations to bf16, 2^-9 of each at most.
constexpr Tolerance kRoundedActivations{1.5e-2, 4e-3, 3e-3};

CheckOptions options_for(const std::string& isa) {
  const bool rounds = isa == "amx" || isa == "avx512_bf16";
  CheckOptions options;
  options.wanted = [](const OpCase& c) { return c.format != WeightFormat::f64; };
  options.tolerance = [rounds](const OpCase& c) {
    if (c.exact) return Tolerance{};
    const bool products = c.op == "linear" || c.op == "grouped_linear" || c.op == "experts" || c.op == "hyper_mix" ||
                          c.op == "hyper_head";
    return rounds && products && c.format == WeightFormat::bf16 ? kRoundedActivations : kF32Tolerance;
  };
  return options;
}

class CpuIsa : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(EveryIsa, CpuIsa, testing::ValuesIn(isas_here()), [](const auto& info) { return info.param; });

TEST_P(CpuIsa, AgreesWithReference) {
  const auto backend = checked_backend(GetParam(), 2);
  ASSERT_NE(backend, nullptr);
  EXPECT_GT(check_against_reference(*backend, options_for(GetParam())), 500);
}

TEST_P(CpuIsa, GradientsAgreeWithReference) {
  const auto backend = checked_backend(GetParam(), 2);
  ASSERT_NE(backend, nullptr);
  CheckOptions options;
  options.wanted = [](const OpCase& c) { return c.op == "linear_backward" && c.format != WeightFormat::f64; };
  EXPECT_GT(check_gradients_against_reference(*backend, options), 30);
}

/// One thread, and more threads than most machines that test have CPUs for.
TEST(CpuOps, AgreesWithReferenceForOtherNumbersOfThreads) {
  for (const int threads : {1, 3}) {
    SCOPED_TRACE(std::to_string(threads) + " threads");
    CheckOptions options = options_for(isas_here().front());
    options.twice = false;
    EXPECT_GT(check_against_reference(*checked_backend(isas_here().front(), threads), options), 500);
  }
}

}  // namespace
}  // namespace fathom::test
