// The short forms in which architectures are written: allocate the output, call the op, hand it back.
#pragma once
#include "tensor/ops.h"

namespace fathom::tensor {

Value allocate(Ops& ops, Shape shape);  // activation type
Value allocate(Ops& ops, DType dtype, Shape shape);
Value embed(Ops& ops, const Tensor& ids, const Weight& table);                // [T, h]
Value gather_rows(Ops& ops, const Tensor& x, const Tensor& rows);             // [m, w]
Value rms_norm(Ops& ops, const Tensor& x, const Weight& weight, double eps);  // like x; weight may be undefined
/// The same; `only_products` (ops.h) holds unless a tape records.
Value rms_norm_for_products(Ops& ops, const Tensor& x, const Weight& weight, double eps);
Value layer_norm(Ops& ops, const Tensor& x, const Weight& weight, const Weight& bias, double eps);
Value linear(Ops& ops, const Tensor& x, const Weight& weight, const Weight& bias = {});  // [T, n]
void linear_add(Ops& ops, const Tensor& x, const Weight& weight, const Tensor& out);     // out += x · weightᵀ
Value add(Ops& ops, const Tensor& a, const Tensor& b);
void add_into(Ops& ops, const Tensor& out, const Tensor& b);  // out += b
Value swiglu(Ops& ops, const Tensor& gate, const Tensor& up, double limit = 0);
struct RotaryPair {
  Value cos, sin;
};
RotaryPair rotary(Ops& ops, const Tensor& positions, const Tensor& inverse_frequency, double scale);
struct Routed {
  Value indices, weights;
};
Routed route(Ops& ops, const Tensor& logits, const Routing& routing, const Weight& bias, const Weight& table,
             const Tensor& ids);
Value attention(Ops& ops, const Tensor& q, std::span<const KvSegment> segments, std::int64_t value_dim, double scale,
                const Weight& sink, const Batch& batch, DType rounds_to = DType::f32,
                bool only_products = false);  // [T, H, dv]

}  // namespace fathom::tensor
