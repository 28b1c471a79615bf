// What the tape keeps, frees, refuses and repeats. The mathematics of each op is tape_ops_test.cpp.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <set>

#include "backends/meta/meta_ops.h"
#include "train/finite_difference.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using Call = Problem::Call;
using train::Tape;

constexpr std::int64_t kTokens = 4, kWidth = 6;

/// norm, feed-forward, residual: the block of a small model. Parameters: norm, gate, up, down.
Value feed_forward(Ops& ops, const Call& call, const Tensor& x) {
  Value normed = rms_norm(ops, x, call.weight(0), 1e-3);
  Value gate = linear(ops, normed, call.weight(1)), up = linear(ops, normed, call.weight(2));
  if (ops.records()) {
    gate = swiglu(ops, gate, up);
  } else {
    ops.swiglu({.gate = gate, .up = up, .limit = 0, .out = gate});
  }
  Value out = linear(ops, gate, call.weight(3));
  add_into(ops, out, x);
  return out;
}

Problem three_blocks() {
  return {{waves({kTokens, kWidth}, 1)},
          {waves({1, kWidth}, 2, 0.2, 1.0), waves({8, kWidth}, 3), waves({8, kWidth}, 4), waves({kWidth, 8}, 5)},
          [](const Call& call) {
            Value hidden = add(call.ops, call.inputs[0], call.inputs[0]);
            for (int i = 0; i < 3; ++i)
              hidden = call.ops.block(hidden, [call](const Tensor& x) { return feed_forward(call.ops, call, x); });
            return hidden;
          }};
}

TEST(Tape, BlocksAgainstDifferences) { check_gradients(three_blocks()); }

TEST(Tape, CheckpointingGivesTheSameBits) {
  const Problem problem = three_blocks();
  EXPECT_TRUE(tape_gradients(problem, false) == tape_gradients(problem, true));
}

TEST(Tape, CheckpointingLowersThePeak) {
  const Problem problem = three_blocks();
  std::uint64_t peak[2];
  for (const bool checkpointing : {false, true}) {
    auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
    std::vector<Held> sums;
    train::ParameterGradients gradients;
    for (const Held& p : problem.parameters)
      gradients.tensors.push_back(sums.emplace_back(DType::f64, p.tensor().shape));
    Tape tape(backend->ops(), *backend->grad_ops(), gradients);
    tape.set_checkpointing(checkpointing);
    std::vector<double> choices;
    std::vector<Value> inputs = place(tape, problem.inputs);
    const auto tensors = tensors_of(inputs);
    Value out = problem.run({tape, tensors, problem, choices});
    EXPECT_EQ(tape.nodes(), checkpointing ? 3u : 18u);  // a block has 6; the sum before them depends on nothing trained
    tape.backward(out, loss_weights(out));
    peak[checkpointing ? 1 : 0] = backend->activations().peak_bytes();
  }
  EXPECT_LT(peak[1], peak[0] * 3 / 4);
}

TEST(Tape, FrozenParametersKeepAndCostNothing) {
  const Problem problem = three_blocks();
  // Everything frozen, nothing watched: nothing is recorded and every activation goes when its owner lets go.
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  const train::ParameterGradients none;
  {
    Tape tape(backend->ops(), *backend->grad_ops(), none);
    std::vector<double> choices;
    std::vector<Value> inputs = place(tape, problem.inputs);
    const auto tensors = tensors_of(inputs);
    Value out = problem.run({tape, tensors, problem, choices});
    EXPECT_EQ(tape.nodes(), 0u);
    inputs.clear();
    EXPECT_EQ(backend->activations().live_bytes(), arena_bytes(DType::f64, out->shape));
  }
  // One frozen: its gradient stays zero, the others do not change by a bit.
  const Gradients all = tape_gradients(problem),
                  without = tape_gradients(problem, false, [](std::size_t i) { return i != 2; });
  EXPECT_EQ(without.parameters[2], std::vector<double>(8 * kWidth, 0.0));
  for (const std::size_t i : {0u, 1u, 3u}) EXPECT_EQ(all.parameters[i], without.parameters[i]);
  EXPECT_EQ(all.inputs, without.inputs);
}

/// The input of a linear with a frozen weight is not kept, that of a trained one is.
TEST(Tape, LinearKeepsItsInputOnlyForItsWeight) {
  for (const bool trained : {false, true}) {
    auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
    const Held matrix = waves({3, kWidth}, 1), sum(DType::f64, {3, kWidth});
    train::ParameterGradients gradients;
    if (trained) gradients.tensors.push_back(sum);
    Tape tape(backend->ops(), *backend->grad_ops(), gradients);
    Weight weight = matrix.weight();
    weight.parameter = 0;
    Value input = allocate(tape, {kTokens, kWidth});
    tape.watch(input);
    Value middle = add(tape, input, input);
    Value out = linear(tape, middle, weight);
    const std::uint64_t before = backend->activations().live_bytes();
    middle.reset();
    EXPECT_EQ(before - backend->activations().live_bytes(), trained ? 0u : arena_bytes(DType::f64, {kTokens, kWidth}));
    tape.clear();
    EXPECT_EQ(backend->activations().live_bytes(), before - arena_bytes(DType::f64, {kTokens, kWidth}));
  }
}

TEST(Tape, GradientsOfViewsMeetInTheirTensor) {
  check_gradients({{waves({3, 8}, 1)}, {waves({2, 4}, 2)}, [](const Call& call) {
                     const Tensor x = call.inputs[0];
                     Value left = linear(call.ops, x.columns(0, 4), call.weight(0)),
                           right = linear(call.ops, x.columns(4, 4), call.weight(0));
                     Value heads = rms_norm(call.ops, x.split_last(4), {}, 1e-2);
                     Value out = add(call.ops, left, right), rows = allocate(call.ops, {3, 2});
                     call.ops.copy({.x = heads->join_last().columns(3, 2), .out = rows});
                     add_into(call.ops, out, rows);
                     Value last = allocate(call.ops, {1, 2});
                     call.ops.copy({.x = x.rows(1, 1).columns(5, 2), .out = last});
                     add_into(call.ops, out->rows(2, 1), last);
                     return out;
                   }});
}

TEST(Tape, MemoryThatIsWrittenAgainStartsANewGradient) {
  check_gradients({{waves({2, 3}, 1), waves({2, 3}, 2)}, {}, [](const Call& call) {
                     Value buffer = allocate(call.ops, {2, 3}), out = allocate(call.ops, {2, 3});
                     call.ops.gelu({.x = call.inputs[0], .out = buffer});
                     call.ops.copy({.x = buffer, .out = out});
                     call.ops.gelu({.x = call.inputs[1], .out = buffer});  // what was there is gone
                     add_into(call.ops, out, buffer);
                     return out;
                   }});
}

TEST(Tape, ConstantWrittenOverCutsTheGradient) {
  const Held constant = waves({2, 3}, 3);
  const Problem problem{{waves({2, 3}, 1)}, {}, [=](const Call& call) {
                          Value out = allocate(call.ops, {2, 3});
                          call.ops.gelu({.x = call.inputs[0], .out = out});
                          call.ops.copy({.x = constant.tensor().rows(0, 1), .out = out->rows(0, 1)});
                          return out;
                        }};
  const std::vector<double> dx = tape_gradients(problem).inputs[0];
  EXPECT_EQ(std::vector<double>(dx.begin(), dx.begin() + 3), std::vector<double>(3, 0.0));
  EXPECT_NE(dx[3], 0.0);
}

TEST(Tape, GradientOfSomethingInTheMiddle) {
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  const train::ParameterGradients none;
  Tape tape(backend->ops(), *backend->grad_ops(), none);
  const Held x = waves({2, 3}, 1), dout = waves({2, 3}, 2);
  Value input = allocate(tape, {2, 3});
  tape.copy({.x = x, .out = input});
  tape.watch(input);
  Value middle = add(tape, input, input);
  tape.watch(middle);
  Value out = add(tape, middle, middle);
  tape.backward(out, dout);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(values_of(tape.gradient(middle))[i], 2 * dout.values()[i]);
    EXPECT_EQ(values_of(tape.gradient(input))[i], 4 * dout.values()[i]);
  }
  Value unread = allocate(tape, {2});
  tape.watch(unread);
  EXPECT_EQ(values_of(tape.gradient(unread)), std::vector<double>(2, 0.0));
}

class TapeDeath : public testing::Test {
 protected:
  TapeDeath()
      : backend_(std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}))),
        tape_(backend_->ops(), *backend_->grad_ops(), gradients_) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    x_ = allocate(tape_, {kTokens, kWidth});
    tape_.copy({.x = source_, .out = x_});
    tape_.watch(x_);
  }
  Held source_ = waves({kTokens, kWidth}, 1);
  std::unique_ptr<Backend> backend_;
  train::ParameterGradients gradients_;
  Tape tape_;
  Value x_;
};

TEST_F(TapeDeath, WritingOverWhatBackwardNeeds) {
  Value y = rms_norm(tape_, x_, {}, 1e-3);
  EXPECT_DEATH(add_into(tape_, x_, y), "backward needs");
  EXPECT_DEATH(tape_.copy({.x = source_.tensor().columns(1, 2), .out = x_->columns(1, 2)}), "backward needs");
  tape_.clear();
  add_into(tape_, x_, y);  // nobody needs it any more
}

TEST_F(TapeDeath, ColumnsBesideWhatBackwardNeedsMayBeWritten) {
  Value y = rms_norm(tape_, x_->columns(0, 4), {}, 1e-3);
  const Held cos = waves({kTokens, 1}, 2), sin = waves({kTokens, 1}, 3);
  tape_.rope({.x = x_->columns(4, 2).split_last(2),
              .cos = cos,
              .sin = sin,
              .first_dim = 0,
              .interleaved = true,
              .inverse = false});
  EXPECT_DEATH(tape_.rope({.x = x_->columns(3, 2).split_last(2),
                           .cos = cos,
                           .sin = sin,
                           .first_dim = 0,
                           .interleaved = true,
                           .inverse = false}),
               "backward needs");
}

TEST_F(TapeDeath, NormInPlace) {
  EXPECT_DEATH(tape_.rms_norm({.x = x_, .weight = {}, .eps = 1, .out = x_}), "its own backward needs");
}

TEST_F(TapeDeath, CachesWhenTraining) {
  const Sequence sequence{.slot = 0, .first_token = 0, .tokens = kTokens, .past = 0};
  const Batch batch{.tokens = kTokens, .sequences = {&sequence, 1}};
  const Held cache = waves({8, 1, kWidth}, 4);
  const KvSegment segment{.kind = KvSegment::Kind::kCache, .k = cache, .k_shared = {}, .v = cache, .rows_per_slot = 8};
  EXPECT_DEATH(attention(tape_, x_->split_last(kWidth), std::span(&segment, 1), kWidth, 1.0, {}, batch),
               "not to caches");
}

TEST_F(TapeDeath, BlockThatReadsBesideItsInput) {
  tape_.set_checkpointing(true);
  Value middle = add(tape_, x_, x_);
  EXPECT_DEATH(tape_.block(middle, [&](const Tensor& input) { return add(tape_, input, x_); }), "not its input");
  EXPECT_DEATH(tape_.block(middle,
                           [&](const Tensor& input) {
                             add_into(tape_, input, input);
                             return add(tape_, input, input);
                           }),
               "backward needs");
}

// ---------------------------------------------------------------- on meta

/// The same model on meta: no data is followed, gradients are allocated there, and everything is given back.
TEST(Tape, WorksOnMeta) {
  const Problem problem = three_blocks();
  double peaks[2];
  for (const bool checkpointing : {false, true}) {
    meta::MetaOps ops({.units = {.tokens = kTokens, .token_prime = 0}, .activations = DType::bf16});
    train::ParameterGradients gradients;
    for (const Held& p : problem.parameters) {
      gradients.tensors.push_back(p);
      gradients.tensors.back().data = nullptr;  // never followed
      gradients.tensors.back().dtype = DType::f32;
    }
    {
      Tape tape(ops, ops, gradients);
      tape.set_checkpointing(checkpointing);
      Value input = allocate(tape, {kTokens, kWidth});
      tape.watch(input);
      std::vector<double> choices;
      const std::vector<Tensor> tensors = {input};
      Value out = problem.run({tape, tensors, problem, choices});
      const Tensor dloss = make_tensor(nullptr, DType::bf16, out->shape);
      tape.backward(out, dloss);
      EXPECT_EQ(tape.gradient(input).dtype, DType::bf16);
      tape.forget(input);
    }
    const meta::Trace trace = ops.take();
    int linears = 0, forward_linears = 0;
    for (const meta::OpRecord& op : trace.ops) {
      if (op.kind != meta::OpKind::kLinear) continue;
      op.backward ? ++linears : ++forward_linears;
    }
    EXPECT_EQ(linears, 3 * 3 * 2);  // both gradients of three linears of three blocks
    EXPECT_EQ(forward_linears, checkpointing ? 18 : 9);
    meta::Rate held;
    peaks[checkpointing ? 1 : 0] = meta::live_peak(trace, &held).at(0, 0);
    EXPECT_EQ(held.fixed, 0.0);
  }
  EXPECT_LT(peaks[1], peaks[0]);
}

// ---------------------------------------------------------------- overlap of views

/// Bytes that a view covers, counted out.
std::set<std::int64_t> bytes_of(const Tensor& x, const std::byte* start) {
  std::set<std::int64_t> bytes;
  for (std::int64_t i = 0; i < x.elements(); ++i)
    for (int b = 0; b < dtype_bytes(x.dtype); ++b) bytes.insert(element_address(x, i) - start + b);
  return bytes;
}

RC_GTEST_PROP(TapeOverlap, NeverMissesAndIsExactForColumnsAndRows, ()) {
  static std::byte memory[4096];
  const auto view = [](bool heads) {
    Tensor x = make_tensor(memory, DType::f32, {4, 24});
    const auto first_row = *rc::gen::inRange<std::int64_t>(0, 4);
    x = x.rows(first_row, *rc::gen::inRange<std::int64_t>(0, 5 - first_row));
    if (heads) x = x.split_last(6);
    const std::int64_t width = heads ? 6 : 24, first = *rc::gen::inRange<std::int64_t>(0, width);
    return x.columns(first, *rc::gen::inRange<std::int64_t>(0, width + 1 - first));
  };
  const bool heads_a = *rc::gen::arbitrary<bool>(), heads_b = *rc::gen::arbitrary<bool>();
  const Tensor a = view(heads_a), b = view(heads_b);
  const auto in_a = bytes_of(a, memory), in_b = bytes_of(b, memory);
  bool meet = false;
  for (const std::int64_t byte : in_a) meet = meet || in_b.contains(byte);
  const bool said = train::views_overlap(a, b, memory);
  RC_ASSERT(said || !meet);
  if (heads_a == heads_b) RC_ASSERT(said == meet);
}

}  // namespace
}  // namespace fathom::test
