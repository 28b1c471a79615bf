// What the tape records of the families rows, norm, linear, rope and loss.
#include "train/tape.h"

namespace fathom::train {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
bool same_view(const Tensor& a, const Tensor& b) {
  return a.root != 0 && a.root == b.root && a.data == b.data && a.shape == b.shape && a.strides == b.strides;
}

/// A tensor that backward takes the shape of, and never reads.
Tensor shape_only(Tensor x) {
  x.data = nullptr;
  return x;
}
}  // namespace

void Tape::embed(const EmbedArgs& args) {
  const Use use{.reads = {}, .writes = {args.out}, .trains = trainable(args.table.parameter)};
  const bool records = open(use);
  inner_.embed(args);
  if (!records) return;
  record(use, {args.ids}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined())
      tape.grad_.embed_backward(
          {.f = args,
           .dout = dout,
           .dtable = tape.parameter_gradient(args.table.parameter, args.table.rows, args.table.cols)});
  });
}

void Tape::gather_rows(const GatherRowsArgs& args) {
  const Use use{.reads = {args.x}, .writes = {args.out}};
  const bool records = open(use);
  inner_.gather_rows(args);
  if (!records) return;
  record(use, {args.rows}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined()) tape.grad_.gather_rows_backward({.f = args, .dout = dout, .dx = tape.wanted(args.x)});
  });
}

void Tape::copy(const CopyArgs& args) {
  const Use use{.reads = {args.x}, .writes = {args.out}};
  const bool records = open(use);
  inner_.copy(args);
  if (!records) return;
  record(use, {}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined()) tape.grad_.accumulate({.dout = dout, .dx = tape.wanted(args.x)});
  });
}

// In place the gradient of the operand is that of the sum: it stays where it is.
void Tape::add(const AddArgs& args) {
  const bool into_a = same_view(args.out, args.a), into_b = same_view(args.out, args.b);
  const Use use = into_a   ? Use{.reads = {args.b}, .writes = {}, .updates = {args.out}}
                  : into_b ? Use{.reads = {args.a}, .writes = {}, .updates = {args.out}}
                           : Use{.reads = {args.a, args.b}, .writes = {args.out}};
  const bool records = open(use);
  inner_.add(args);
  if (!records) return;
  record(use, {}, {}, [args, into_a, into_b](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (!dout.defined()) return;
    if (!into_a)
      if (const Tensor da = tape.wanted(args.a); da.defined()) tape.grad_.accumulate({.dout = dout, .dx = da});
    if (!into_b || into_a)
      if (const Tensor db = tape.wanted(args.b); db.defined()) tape.grad_.accumulate({.dout = dout, .dx = db});
  });
}

void Tape::expand_streams(const ExpandStreamsArgs& args) {
  const Use use{.reads = {args.x}, .writes = {args.out}};
  const bool records = open(use);
  inner_.expand_streams(args);
  if (!records) return;
  record(use, {}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined()) tape.grad_.expand_streams_backward({.f = args, .dout = dout, .dx = tape.wanted(args.x)});
  });
}

void Tape::rms_norm(const RmsNormArgs& args) {
  const Use use{.reads = {args.x}, .writes = {args.out}, .trains = trainable(args.parameter)};
  const bool records = open(use);
  inner_.rms_norm(args);
  if (!records) return;
  record(use, {args.x}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined())
      tape.grad_.rms_norm_backward(
          {.f = args, .dout = dout, .dx = tape.wanted(args.x), .dweight = tape.vector_gradient(args.parameter)});
  });
}

void Tape::layer_norm(const LayerNormArgs& args) {
  const Use use{.reads = {args.x},
                .writes = {args.out},
                .trains = trainable(args.weight_parameter) || trainable(args.bias_parameter)};
  const bool records = open(use);
  inner_.layer_norm(args);
  if (!records) return;
  record(use, {args.x}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined())
      tape.grad_.layer_norm_backward({.f = args,
                                      .dout = dout,
                                      .dx = tape.wanted(args.x),
                                      .dweight = tape.vector_gradient(args.weight_parameter),
                                      .dbias = tape.vector_gradient(args.bias_parameter)});
  });
}

// A frozen weight needs no input kept: its product goes back through the weight alone.
void Tape::linear(const LinearArgs& args) {
  const bool trains = trainable(args.weight.parameter);
  const Use use =
      args.accumulate
          ? Use{.reads = {args.x},
                .writes = {},
                .updates = {args.out},
                .trains = trains || trainable(args.bias_parameter)}
          : Use{.reads = {args.x}, .writes = {args.out}, .trains = trains || trainable(args.bias_parameter)};
  const bool records = open(use);
  inner_.linear(args);
  if (!records) return;
  LinearArgs kept = args;
  if (!trains) kept.x = shape_only(args.x);
  record(use, {trains ? args.x : Tensor{}}, {}, [kept, x = args.x](Tape& tape) {
    const Tensor dout = tape.reached(kept.out);
    if (dout.defined())
      tape.grad_.linear_backward(
          {.f = kept,
           .dout = dout,
           .dx = tape.wanted(x),
           .dweight = tape.parameter_gradient(kept.weight.parameter, kept.weight.rows, kept.weight.cols),
           .dbias = tape.vector_gradient(kept.bias_parameter)});
  });
}

void Tape::grouped_linear(const GroupedLinearArgs& args) {
  const bool trains = trainable(args.weight.parameter);
  const Use use{.reads = {args.x}, .writes = {args.out}, .trains = trains};
  const bool records = open(use);
  inner_.grouped_linear(args);
  if (!records) return;
  GroupedLinearArgs kept = args;
  if (!trains) kept.x = shape_only(args.x);
  record(use, {trains ? args.x : Tensor{}}, {}, [kept, x = args.x](Tape& tape) {
    const Tensor dout = tape.reached(kept.out);
    if (dout.defined())
      tape.grad_.grouped_linear_backward(
          {.f = kept,
           .dout = dout,
           .dx = tape.wanted(x),
           .dweight = tape.parameter_gradient(kept.weight.parameter, kept.weight.rows, kept.weight.cols)});
  });
}

void Tape::rotary(const RotaryArgs& args) {
  open({.reads = {}, .writes = {args.cos, args.sin}});
  inner_.rotary(args);
}

// The gradient is turned back where it lies.
void Tape::rope(const RopeArgs& args) {
  const Use use{.reads = {}, .writes = {}, .updates = {args.x}};
  const bool records = open(use);
  inner_.rope(args);
  if (!records) return;
  RopeArgs kept = args;
  kept.x = shape_only(args.x);
  record(use, {args.cos, args.sin}, {}, [kept, x = args.x](Tape& tape) {
    const Tensor dx = tape.reached(x);
    if (dx.defined()) tape.grad_.rope_backward({.f = kept, .dx = dx});
  });
}

void Tape::cross_entropy(const CrossEntropyArgs& args) {
  const Use use{.reads = {args.logits}, .writes = {args.losses}};
  const bool records = open(use);
  inner_.cross_entropy(args);
  if (!records) return;
  record(use, {args.logits, args.targets}, {}, [args](Tape& tape) {
    const Tensor dlosses = tape.reached(args.losses);
    if (dlosses.defined())
      tape.grad_.cross_entropy_backward({.f = args, .dlosses = dlosses, .dlogits = tape.wanted(args.logits)});
  });
}

}  // namespace fathom::train
