#include "tensor/functions.h"

namespace fathom::tensor {
namespace {
Tensor vector_of(const Weight& weight) { return weight.defined() ? weight.tensor() : Tensor{}; }
}  // namespace

Value allocate(Ops& ops, Shape shape) { return Value(ops, ops.allocate(ops.activation_dtype(), shape)); }
Value allocate(Ops& ops, DType dtype, Shape shape) { return Value(ops, ops.allocate(dtype, shape)); }

Value embed(Ops& ops, const Tensor& ids, const Weight& table) {
  Value out = allocate(ops, {ids.dim(0), table.cols});
  ops.embed({.ids = ids, .table = table, .out = out});
  return out;
}

Value gather_rows(Ops& ops, const Tensor& x, const Tensor& rows) {
  Value out = allocate(ops, x.dtype, {rows.dim(0), x.dim(1)});
  ops.gather_rows({.x = x, .rows = rows, .out = out});
  return out;
}

Value rms_norm(Ops& ops, const Tensor& x, const Weight& weight, double eps) {
  Value out = allocate(ops, x.shape);
  ops.rms_norm({.x = x, .weight = vector_of(weight), .eps = eps, .out = out, .parameter = weight.parameter});
  return out;
}

Value rms_norm_for_products(Ops& ops, const Tensor& x, const Weight& weight, double eps) {
  Value out = allocate(ops, x.shape);
  ops.rms_norm({.x = x,
                .weight = vector_of(weight),
                .eps = eps,
                .out = out,
                .parameter = weight.parameter,
                .only_products = !ops.records()});
  return out;
}

Value layer_norm(Ops& ops, const Tensor& x, const Weight& weight, const Weight& bias, double eps) {
  Value out = allocate(ops, x.shape);
  ops.layer_norm({.x = x,
                  .weight = vector_of(weight),
                  .bias = vector_of(bias),
                  .eps = eps,
                  .out = out,
                  .weight_parameter = weight.parameter,
                  .bias_parameter = bias.parameter});
  return out;
}

Value linear(Ops& ops, const Tensor& x, const Weight& weight, const Weight& bias) {
  Value out = allocate(ops, {x.dim(0), weight.rows});
  ops.linear({.x = x,
              .weight = weight,
              .bias = vector_of(bias),
              .out = out,
              .accumulate = false,
              .bias_parameter = bias.parameter});
  return out;
}

void linear_add(Ops& ops, const Tensor& x, const Weight& weight, const Tensor& out) {
  ops.linear({.x = x, .weight = weight, .bias = {}, .out = out, .accumulate = true});
}

Value add(Ops& ops, const Tensor& a, const Tensor& b) {
  Value out = allocate(ops, a.shape);
  ops.add({.a = a, .b = b, .out = out});
  return out;
}

void add_into(Ops& ops, const Tensor& out, const Tensor& b) { ops.add({.a = out, .b = b, .out = out}); }

Value swiglu(Ops& ops, const Tensor& gate, const Tensor& up, double limit) {
  Value out = allocate(ops, gate.shape);
  ops.swiglu({.gate = gate, .up = up, .limit = limit, .out = out});
  return out;
}

RotaryPair rotary(Ops& ops, const Tensor& positions, const Tensor& inverse_frequency, double scale) {
  const Shape shape{positions.dim(0), inverse_frequency.dim(0)};
  const DType dtype = ops.activation_dtype() == DType::f64 ? DType::f64 : DType::f32;
  RotaryPair pair{allocate(ops, dtype, shape), allocate(ops, dtype, shape)};
  ops.rotary({.positions = positions,
              .inverse_frequency = inverse_frequency,
              .scale = scale,
              .cos = pair.cos,
              .sin = pair.sin});
  return pair;
}

Routed route(Ops& ops, const Tensor& logits, const Routing& routing, const Weight& bias, const Weight& table,
             const Tensor& ids) {
  const Shape shape{logits.dim(0), routing.top_k};
  Routed routed{allocate(ops, DType::i32, shape), allocate(ops, logits.dtype, shape)};
  ops.route({.logits = logits,
             .bias = vector_of(bias),
             .table = table,
             .ids = ids,
             .routing = routing,
             .indices = routed.indices,
             .weights = routed.weights});
  return routed;
}

Value attention(Ops& ops, const Tensor& q, std::span<const KvSegment> segments, std::int64_t value_dim, double scale,
                const Weight& sink, const Batch& batch, DType rounds_to, bool only_products) {
  Value out = allocate(ops, {q.dim(0), q.dim(1), value_dim});
  // Backward needs the log-sum-exp of every (token, head); the tape keeps it, everyone else does without.
  Value lse =
      ops.records() ? allocate(ops, q.dtype == DType::f64 ? DType::f64 : DType::f32, {q.dim(0), q.dim(1)}) : Value();
  ops.attention({.q = q,
                 .segments = segments,
                 .scale = scale,
                 .sink = vector_of(sink),
                 .out = out,
                 .lse = lse.tensor(),
                 .batch = &batch,
                 .sink_parameter = sink.parameter,
                 .rounds_to = rounds_to,
                 .only_products = only_products && !ops.records()});
  return out;
}

}  // namespace fathom::tensor
