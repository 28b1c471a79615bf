// What the tape records of the families experts and hyper.
#include <memory>

#include "train/tape.h"

namespace fathom::train {
using namespace tensor;  // NOLINT: the vocabulary

void Tape::swiglu(const SwigluArgs& args) {
  const Use use{.reads = {args.gate, args.up}, .writes = {args.out}};
  const bool records = open(use);
  inner_.swiglu(args);
  if (!records) return;
  record(use, {args.gate, args.up}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined())
      tape.grad_.swiglu_backward(
          {.f = args, .dout = dout, .dgate = tape.wanted(args.gate), .dup = tape.wanted(args.up)});
  });
}

void Tape::gelu(const GeluArgs& args) {
  const Use use{.reads = {args.x}, .writes = {args.out}};
  const bool records = open(use);
  inner_.gelu(args);
  if (!records) return;
  record(use, {args.x}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined()) tape.grad_.gelu_backward({.f = args, .dout = dout, .dx = tape.wanted(args.x)});
  });
}

// The choice is frozen: its bias and its table get nothing.
void Tape::route(const RouteArgs& args) {
  const Use use{.reads = {args.logits}, .writes = {args.weights}, .writes_other = {args.indices}};
  const bool records = open(use);
  inner_.route(args);
  if (!records) return;
  record(use, {args.logits}, {args.indices}, [args](Tape& tape) {
    const Tensor dweights = tape.reached(args.weights);
    if (dweights.defined())
      tape.grad_.route_backward({.f = args, .dweights = dweights, .dlogits = tape.wanted(args.logits)});
  });
}

void Tape::experts(const ExpertsArgs& args) {
  struct Kept {
    ExpertsArgs args;
    std::vector<Weight> gate, up, down;
    explicit Kept(const ExpertsArgs& from)
        : args(from),
          gate(from.gate.begin(), from.gate.end()),
          up(from.up.begin(), from.up.end()),
          down(from.down.begin(), from.down.end()) {
      args.gate = gate, args.up = up, args.down = down;
    }
  };
  const auto trains = [&](std::span<const Weight> weights) {
    for (const Weight& weight : weights)
      if (trainable(weight.parameter)) return true;
    return false;
  };
  const bool any = trains(args.gate) || trains(args.up) || trains(args.down);
  const Use use = args.accumulate
                      ? Use{.reads = {args.x, args.weights}, .writes = {}, .updates = {args.out}, .trains = any}
                      : Use{.reads = {args.x, args.weights}, .writes = {args.out}, .trains = any};
  const bool records = open(use);
  inner_.experts(args);
  if (!records) return;
  record(use, {args.x, args.indices, args.weights}, {}, [kept = std::make_shared<const Kept>(args)](Tape& tape) {
    const ExpertsArgs& f = kept->args;
    const Tensor dout = tape.reached(f.out);
    if (!dout.defined()) return;
    const auto gradients = [&](const std::vector<Weight>& weights) {
      std::vector<Tensor> out;
      bool frozen = true;
      for (const Weight& weight : weights) {
        out.push_back(tape.parameter_gradient(weight.parameter, weight.rows, weight.cols));
        frozen = frozen && !out.back().defined();
      }
      return frozen ? std::vector<Tensor>{} : out;
    };
    const std::vector<Tensor> dgate = gradients(kept->gate), dup = gradients(kept->up), ddown = gradients(kept->down);
    tape.grad_.experts_backward({.f = f,
                                 .dout = dout,
                                 .dx = tape.wanted(f.x),
                                 .dweights = tape.wanted(f.weights),
                                 .dgate = dgate,
                                 .dup = dup,
                                 .ddown = ddown});
  });
}

void Tape::hyper_mix(const HyperMixArgs& args) {
  const Use use{
      .reads = {args.streams},
      .writes = {args.collapsed, args.post, args.comb},
      .trains = trainable(args.fn.parameter) || trainable(args.base_parameter) || trainable(args.scale_parameter)};
  const bool records = open(use);
  inner_.hyper_mix(args);
  if (!records) return;
  record(use, {args.streams}, {}, [args](Tape& tape) {
    const Tensor dcollapsed = tape.reached(args.collapsed), dpost = tape.reached(args.post),
                 dcomb = tape.reached(args.comb);
    if (!dcollapsed.defined() && !dpost.defined() && !dcomb.defined()) return;
    tape.grad_.hyper_mix_backward({.f = args,
                                   .dcollapsed = dcollapsed,
                                   .dpost = dpost,
                                   .dcomb = dcomb,
                                   .dstreams = tape.wanted(args.streams),
                                   .dfn = tape.parameter_gradient(args.fn.parameter, args.fn.rows, args.fn.cols),
                                   .dbase = tape.vector_gradient(args.base_parameter),
                                   .dscale = tape.vector_gradient(args.scale_parameter)});
  });
}

void Tape::hyper_merge(const HyperMergeArgs& args) {
  const Use use{.reads = {args.x, args.streams, args.post, args.comb}, .writes = {args.out}};
  const bool records = open(use);
  inner_.hyper_merge(args);
  if (!records) return;
  record(use, {args.x, args.streams, args.post, args.comb}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined())
      tape.grad_.hyper_merge_backward({.f = args,
                                       .dout = dout,
                                       .dx = tape.wanted(args.x),
                                       .dstreams = tape.wanted(args.streams),
                                       .dpost = tape.wanted(args.post),
                                       .dcomb = tape.wanted(args.comb)});
  });
}

void Tape::hyper_head(const HyperHeadArgs& args) {
  const Use use{
      .reads = {args.streams},
      .writes = {args.out},
      .trains = trainable(args.fn.parameter) || trainable(args.base_parameter) || trainable(args.scale_parameter)};
  const bool records = open(use);
  inner_.hyper_head(args);
  if (!records) return;
  record(use, {args.streams}, {}, [args](Tape& tape) {
    const Tensor dout = tape.reached(args.out);
    if (dout.defined())
      tape.grad_.hyper_head_backward({.f = args,
                                      .dout = dout,
                                      .dstreams = tape.wanted(args.streams),
                                      .dfn = tape.parameter_gradient(args.fn.parameter, args.fn.rows, args.fn.cols),
                                      .dbase = tape.vector_gradient(args.base_parameter),
                                      .dscale = tape.vector_gradient(args.scale_parameter)});
  });
}

}  // namespace fathom::train
