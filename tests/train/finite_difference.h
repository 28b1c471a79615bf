// Gradients by central differences, in doubles on the reference backend, held against the tape's.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "backends/held.h"
#include "backends/reference/reference_backend.h"
#include "tensor/functions.h"
#include "train/tape.h"

namespace fathom::test {

/// Numbers without pattern, in (-1, 1); `salt` gives others.
inline double wave(std::int64_t i, int salt = 0) {
  return std::sin(1.7 * static_cast<double>((i + 131 * salt) * (i + 131 * salt) % 10007) + 0.3 * salt + 0.1);
}
inline Held waves(tensor::Shape shape, int salt, double scale = 1.0, double mean = 0.0) {
  return Held(DType::f64, shape, [=](std::int64_t i) { return mean + scale * wave(i, salt); });
}

/// A function of some activations and parameters. `run` builds its value out of ops and may note choices (indices of
/// experts or of rows) that must not change when a number is nudged.
struct Problem {
  std::vector<Held> inputs;      // f64; the tape watches them
  std::vector<Held> parameters;  // f64; number i has parameter number i
  struct Call {
    tensor::Ops& ops;
    const std::vector<tensor::Tensor>& inputs;
    const Problem& problem;
    std::vector<double>& choices;
    tensor::Weight weight(std::size_t i) const {
      tensor::Weight weight = problem.parameters[i].weight();
      weight.parameter = static_cast<std::int32_t>(i);
      return weight;
    }
    const tensor::Tensor& parameter(std::size_t i) const { return problem.parameters[i]; }
    void choose(const tensor::Tensor& indices) const {
      for (const double value : values_of(indices)) choices.push_back(value);
    }
  };
  std::function<tensor::Value(const Call&)> run;
};

struct Gradients {
  std::vector<std::vector<double>> inputs, parameters;
  bool operator==(const Gradients&) const = default;
};

/// Weights of the sum that makes a number of the output.
inline Held loss_weights(const tensor::Tensor& out) { return waves(out.shape, 77); }

inline std::vector<tensor::Value> place(tensor::Ops& ops, const std::vector<Held>& held) {
  std::vector<tensor::Value> values;
  for (const Held& x : held) {
    values.push_back(allocate(ops, x.tensor().shape));
    ops.copy({.x = x, .out = values.back()});
  }
  return values;
}
inline std::vector<tensor::Tensor> tensors_of(const std::vector<tensor::Value>& values) {
  return {values.begin(), values.end()};
}

/// `train` says whether parameter i is trained.
inline Gradients tape_gradients(
    const Problem& problem, bool checkpointing = false,
    const std::function<bool(std::size_t)>& train = [](std::size_t) { return true; }) {
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  std::vector<Held> sums;
  train::ParameterGradients gradients;
  for (std::size_t i = 0; i < problem.parameters.size(); ++i) {
    sums.emplace_back(DType::f64, problem.parameters[i].tensor().shape);
    gradients.tensors.push_back(train(i) ? sums.back().tensor() : tensor::Tensor{});
  }
  Gradients result;
  {
    train::Tape tape(backend->ops(), *backend->grad_ops(), gradients);
    tape.set_checkpointing(checkpointing);
    std::vector<tensor::Value> inputs = place(tape, problem.inputs);
    for (const tensor::Value& input : inputs) tape.watch(input);
    std::vector<double> choices;
    const auto tensors = tensors_of(inputs);
    tensor::Value out = problem.run({tape, tensors, problem, choices});
    const Held dout = loss_weights(out);
    tape.backward(out, dout);
    EXPECT_EQ(tape.nodes(), 0u);
    out.reset();
    for (const tensor::Value& input : inputs) {
      result.inputs.push_back(values_of(tape.gradient(input)));
      tape.forget(input);
    }
  }
  EXPECT_EQ(backend->activations().live_bytes(), 0u) << "the tape kept something";
  for (const Held& sum : sums) result.parameters.push_back(sum.values());
  return result;
}

/// The number whose gradient is taken, without a tape.
inline double loss_of(tensor::Ops& ops, const Problem& problem, std::vector<double>& choices) {
  std::vector<tensor::Value> inputs = place(ops, problem.inputs);
  const auto tensors = tensors_of(inputs);
  choices.clear();
  const tensor::Value out = problem.run({ops, tensors, problem, choices});
  const auto values = values_of(out), weights = loss_weights(out).values();
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

inline constexpr double kStep = 2e-5;

/// Nudges every element of every input and parameter.
inline void check_gradients(const Problem& problem, double tolerance = 1e-5) {
  const Gradients got = tape_gradients(problem);
  EXPECT_TRUE(got == tape_gradients(problem)) << "not the same bits the second time";
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  std::vector<double> choices, other;
  loss_of(backend->ops(), problem, choices);
  const auto check = [&](const Held& x, const std::vector<double>& gradient, const std::string& name) {
    std::vector<double> want;
    for (std::int64_t i = 0; i < x.tensor().elements(); ++i) {
      double* element = x.tensor().as<double>() + i;
      const double kept = *element;
      double sides[2];
      for (const int side : {0, 1}) {
        *element = kept + (side == 0 ? kStep : -kStep);
        sides[side] = loss_of(backend->ops(), problem, other);
        ASSERT_EQ(choices, other) << name << "[" << i << "]: a nudge changed a choice; take other numbers";
      }
      *element = kept;
      want.push_back((sides[0] - sides[1]) / (2 * kStep));
    }
    double norm = 0;
    for (const double w : want) norm += w * w;
    const double rms = std::sqrt(norm / static_cast<double>(want.size()));
    EXPECT_GT(rms, 1e-6) << name << ": nothing depends on it, so nothing was tested";
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_LE(std::fabs(gradient[i] - want[i]), tolerance * std::max(std::fabs(want[i]), rms))
          << name << "[" << i << "]: tape " << gradient[i] << ", differences " << want[i];
  };
  for (std::size_t i = 0; i < problem.inputs.size(); ++i)
    check(problem.inputs[i], got.inputs[i], "input " + std::to_string(i));
  for (std::size_t i = 0; i < problem.parameters.size(); ++i)
    check(problem.parameters[i], got.parameters[i], "parameter " + std::to_string(i));
}

}  // namespace fathom::test
