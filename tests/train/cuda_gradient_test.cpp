// The gradients of all parameters of one tiny model of each architecture, by the tape, on backend cuda: those of
// `reference`, both in f32. Skipped where there is no device, saying why.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/reference/reference_backend.h"
#include "train/tape.h"
#include "train/tiny_model.h"

namespace fathom::test {
namespace {

using GradientLists = std::vector<std::vector<double>>;

/// Of the mean cross entropy, in the order of the parameters; empty where a parameter is a table of integers.
GradientLists gradients_of(Backend& backend, TinyModel& tiny, bool checkpointing) {
  const std::uint64_t live = backend.activations().live_bytes();
  train::ParameterGradients gradients;
  std::vector<Tensor> sums;
  for (std::int32_t i = 0; i < tiny.parameters(); ++i) {
    const Tensor& parameter = tiny.parameter(i);
    const bool trained = parameter.defined() && parameter.dtype == tiny.dtype();
    sums.push_back(trained ? tiny.owned(Held(tiny.dtype(), parameter.shape)) : Tensor{});
    gradients.tensors.push_back(sums.back());
  }
  {
    train::Tape tape(backend.ops(), *backend.grad_ops(), gradients);
    tape.set_checkpointing(checkpointing);
    model::Pass pass = tiny.pass(tape);
    const Value losses = tiny.losses(pass);
    const double share = 1.0 / static_cast<double>(tiny.tokens());
    tape.backward(losses, tiny.owned(Held(tiny.dtype(), losses->shape, [&](std::int64_t) { return share; })));
    const Status done = backend.synchronize();
    EXPECT_TRUE(done.has_value()) << error_text(done.error());
  }
  EXPECT_EQ(backend.activations().live_bytes(), live);
  GradientLists out;
  for (const Tensor& sum : sums) out.push_back(sum.defined() ? values_of(sum) : std::vector<double>{});
  return out;
}

double length_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

class CudaGradient : public testing::TestWithParam<TinyConfig> {
 protected:
  void SetUp() override {
    if (const std::string why = cuda::why_unavailable(); !why.empty()) GTEST_SKIP() << why;
    backend_ = must(cuda::make_cuda_backend({}));
    memory_ = must(make_case_memory(*backend_));
  }
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CaseMemory> memory_;
};

TEST_P(CudaGradient, IsThatOfReference) {
  const auto reference = must(reference::make_reference_backend({}));
  TinyModel on_host(GetParam().text, DType::f32), on_device(GetParam().text, DType::f32, memory_.get());
  const GradientLists want = gradients_of(*reference, on_host, false), got = gradients_of(*backend_, on_device, false);
  EXPECT_EQ(got, gradients_of(*backend_, on_device, false)) << "not the same bits the second time";
  EXPECT_EQ(got, gradients_of(*backend_, on_device, true)) << "checkpointing changed bits";
  ASSERT_EQ(got.size(), want.size());
  for (const model::WeightEntry& entry : on_host.architecture().weights().entries())
    for (std::int64_t e = 0; entry.tied_to < 0 && e < entry.experts; ++e) {
      const auto i = static_cast<std::size_t>(entry.first_parameter + e);
      std::vector<double> error = got[i];
      for (std::size_t n = 0; n < error.size(); ++n) error[n] -= want[i][n];
      EXPECT_LE(length_of(error), 1e-4 * length_of(want[i]) + 1e-7) << entry.name(e) << " of " << length_of(want[i]);
    }
}

INSTANTIATE_TEST_SUITE_P(Tiny, CudaGradient, testing::ValuesIn(tiny_configs()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace fathom::test
