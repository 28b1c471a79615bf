// One tiny model of each architecture, in doubles on `reference`: the gradient of the mean cross entropy, through the
// tape, against differences along a random direction of every parameter tensor. Relative error at most 1e-4. Choices
// (experts, selected rows) are frozen: a nudge that changes one is made smaller until none does.
#include <gtest/gtest.h>

#include <cmath>

#include "backends/forwarding_ops.h"
#include "backends/reference/reference_backend.h"
#include "train/tape.h"
#include "train/tiny_model.h"

namespace fathom::test {
namespace {

/// The choices that a pass made.
class Choices final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;
  void route(const RouteArgs& args) override { inner_.route(args), note(args.indices); }
  void index_select(const IndexSelectArgs& args) override { inner_.index_select(args), note(args.selected); }
  std::vector<double> made;

 private:
  void note(const Tensor& indices) {
    for (const double value : values_of(indices)) made.push_back(value);
  }
};

using GradientLists = std::vector<std::vector<double>>;

GradientLists gradients_of(TinyModel& tiny, bool checkpointing) {
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  std::vector<Held> sums;
  train::ParameterGradients gradients;
  for (std::int32_t i = 0; i < tiny.parameters(); ++i) {
    const Tensor& parameter = tiny.parameter(i);
    const bool trained = parameter.defined() && parameter.dtype == DType::f64;
    sums.push_back(trained ? Held(DType::f64, parameter.shape) : Held());
    gradients.tensors.push_back(sums.back());
  }
  {
    train::Tape tape(backend->ops(), *backend->grad_ops(), gradients);
    tape.set_checkpointing(checkpointing);
    model::Pass pass = tiny.pass(tape);
    const Value losses = tiny.losses(pass);
    const Held share(DType::f64, losses->shape, [&](std::int64_t) { return 1.0 / static_cast<double>(tiny.tokens()); });
    tape.backward(losses, share);
  }
  EXPECT_EQ(backend->activations().live_bytes(), 0u);
  GradientLists out;
  for (const Held& sum : sums) out.push_back(sum.tensor().defined() ? sum.values() : std::vector<double>{});
  return out;
}

double mean_loss(TinyModel& tiny, Backend& backend, std::vector<double>& choices) {
  Choices ops(backend.ops());
  model::Pass pass = tiny.pass(ops);
  const std::vector<double> losses = values_of(tiny.losses(pass));
  choices = ops.made;
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum / static_cast<double>(losses.size());
}

/// The slope of the loss along `direction` of one parameter, by differences of the fourth order that change no choice.
double slope_along(TinyModel& tiny, Backend& backend, Held& parameter, const std::vector<double>& direction,
                   const std::vector<double>& choices) {
  auto* values = parameter.tensor().as<double>();
  const std::vector<double> kept(values, values + direction.size());
  for (double step = 1e-3; step > 1e-7; step /= 10) {
    double loss[4];
    bool frozen = true;
    for (int i = 0; i < 4; ++i) {
      constexpr double kSteps[] = {1, -1, 2, -2};
      for (std::size_t n = 0; n < kept.size(); ++n) values[n] = kept[n] + kSteps[i] * step * direction[n];
      std::vector<double> made;
      loss[i] = mean_loss(tiny, backend, made);
      frozen = frozen && made == choices;
    }
    std::copy(kept.begin(), kept.end(), values);
    if (frozen) return (8 * (loss[0] - loss[1]) - (loss[2] - loss[3])) / (12 * step);
  }
  ADD_FAILURE() << "every nudge changes a choice";
  return 0;
}

void check_model(const std::string& config) {
  TinyModel tiny(config);
  const GradientLists gradients = gradients_of(tiny, false);
  EXPECT_EQ(gradients, gradients_of(tiny, false)) << "not the same bits the second time";
  EXPECT_EQ(gradients, gradients_of(tiny, true)) << "checkpointing changed bits";
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  std::vector<double> choices;
  mean_loss(tiny, *backend, choices);
  Random random(11);
  std::int64_t reached = 0, total = 0;
  for (const model::WeightEntry& entry : tiny.architecture().weights().entries())
    for (std::int64_t e = 0; entry.tied_to < 0 && e < entry.experts; ++e) {
      const auto i = static_cast<std::size_t>(entry.first_parameter + e);
      const std::vector<double>& gradient = gradients[i];
      if (gradient.empty()) continue;
      std::vector<double> direction;
      double length = 0, along = 0, norm = 0;
      for (std::size_t n = 0; n < gradient.size(); ++n) {
        direction.push_back(random.normal());
        length += direction[n] * direction[n], norm += gradient[n] * gradient[n];
      }
      for (std::size_t n = 0; n < gradient.size(); ++n) along += (direction[n] /= std::sqrt(length)) * gradient[n];
      const double want = slope_along(tiny, *backend, tiny.parameter(static_cast<std::int32_t>(i)), direction, choices);
      const double size =
          std::max(std::fabs(want),
                   std::sqrt(norm / static_cast<double>(gradient.size())));  // a direction may happen to be level
      EXPECT_LE(std::fabs(along - want), 1e-4 * size + 1e-10)
          << entry.name(e) << ": tape " << along << ", differences " << want;
      ++total;
      if (norm > 0) ++reached;
    }
  EXPECT_GE(reached * 10, total * 7) << "most parameters must matter";
}

class ModelGradient : public testing::TestWithParam<TinyConfig> {};

TEST_P(ModelGradient, IsThatOfDifferences) { check_model(GetParam().text); }

INSTANTIATE_TEST_SUITE_P(Tiny, ModelGradient, testing::ValuesIn(tiny_configs()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace fathom::test
