// Recording: what all calls share, and memory.
#include "backends/meta/meta_ops.h"

namespace fathom::meta {

using tensor::Shape;
using tensor::Tensor;
using tensor::Weight;

Rate TraceUnits::rate(std::int64_t rows) const {
  Rate rate;
  const auto count = static_cast<double>(rows);
  if (rows != 0 && token_prime != 0 && rows % token_prime == 0)
    rate.per_token = count / static_cast<double>(tokens);
  else if (rows != 0 && output_prime != 0 && rows % output_prime == 0)
    rate.per_output = count / static_cast<double>(outputs);
  else
    rate.fixed = count;
  return rate;
}

Trace MetaOps::take() {
  Trace taken;
  taken.ops.swap(trace_.ops);
  taken.events.swap(trace_.events);
  taken.buffers = trace_.buffers;
  return taken;
}

Tensor MetaOps::allocate(DType dtype, Shape shape) {
  Tensor tensor = tensor::make_tensor(reinterpret_cast<void*>(next_address_), dtype, shape);  // never followed
  tensor.root = static_cast<std::uint32_t>(trace_.buffers.size());
  // Blocks are padded to the arena's alignment where their size is known now; where it grows with the tokens, padding
  // is lost in it.
  Rate bytes = tensor_bytes(tensor);
  if (bytes.per_token == 0 && bytes.per_output == 0)
    bytes.fixed = static_cast<double>(tensor::arena_bytes(dtype, shape));
  next_address_ += tensor::arena_bytes(dtype, shape);
  trace_.buffers.push_back({bytes, static_cast<std::uint8_t>(dtype_bytes(dtype))});
  trace_.events.push_back({tensor.root, true, static_cast<std::uint32_t>(trace_.ops.size())});
  live_ += bytes;
  return tensor;
}

void MetaOps::release(const Tensor& tensor) {
  if (tensor.root == 0) return;
  FATHOM_CHECK(tensor.root < trace_.buffers.size());
  trace_.events.push_back({tensor.root, false, static_cast<std::uint32_t>(trace_.ops.size())});
  live_ += trace_.buffers[tensor.root].bytes * -1.0;
}

Rate MetaOps::elements(const Tensor& x) const {
  if (!x.defined()) return {};
  std::int64_t width = 1;
  for (int i = 1; i < x.shape.rank; ++i) width *= x.dim(i);
  return options_.units.rate(x.dim(0)) * static_cast<double>(width);
}

Rate MetaOps::tensor_bytes(const Tensor& x) const { return elements(x) * static_cast<double>(dtype_bytes(x.dtype)); }

OpRecord& MetaOps::record(OpKind kind, std::initializer_list<const Tensor*> reads,
                          std::initializer_list<const Tensor*> writes) {
  OpRecord op;
  op.kind = kind;
  std::size_t next = 0;
  for (const Tensor* x : reads) {
    op.read_bytes += tensor_bytes(*x);
    if (x->root != 0 && next < op.inputs.size()) op.inputs[next++] = x->root;
  }
  bool first = true;
  for (const Tensor* x : writes) {
    op.written_bytes += tensor_bytes(*x);
    if (!first || !x->defined()) continue;
    first = false;
    op.output = x->root;
    op.n = x->dim(x->shape.rank - 1);
    op.rows = elements(*x) * (1.0 / static_cast<double>(op.n > 0 ? op.n : 1));
  }
  for (const std::uint32_t input : op.inputs) op.in_place = op.in_place || (input != 0 && input == op.output);
  trace_.ops.push_back(op);
  return trace_.ops.back();
}

void MetaOps::set_weight(OpRecord& op, const Weight& weight, std::uint64_t copies) const {
  op.weight_elements += static_cast<std::uint64_t>(weight.rows) * static_cast<std::uint64_t>(weight.cols) * copies;
  op.weight_bytes += tensor::weight_bytes(weight.format, weight.rows, weight.cols) * copies;
  op.weight_format = weight.format;
  const auto parameter = static_cast<std::size_t>(weight.parameter);
  if (weight.parameter >= 0 && parameter < options_.weight_classes.size())
    op.weight_class = options_.weight_classes[parameter];
}

void MetaCollectives::all_reduce(tensor::Group group, const Tensor& x) {
  if (size(group) == 1) return;
  OpRecord& op = ops_.record(OpKind::kAllReduce, {&x}, {&x});
  op.group = group;
  op.comm_bytes = ops_.tensor_bytes(x);
}

void MetaCollectives::all_gather(tensor::Group group, const Tensor& x, const Tensor& out) {
  OpRecord& op = ops_.record(OpKind::kAllGather, {&x}, {&out});
  op.group = group;
  op.comm_bytes = size(group) == 1 ? Rate{} : ops_.tensor_bytes(out);
}

void MetaCollectives::all_gather_rows(tensor::Group group, const Tensor& x, std::span<const std::int64_t>,
                                      const Tensor& out) {
  all_gather(group, x, out);
}

void MetaCollectives::reduce_scatter(tensor::Group group, const Tensor& x, const Tensor& out) {
  OpRecord& op = ops_.record(OpKind::kReduceScatter, {&x}, {&out});
  op.group = group;
  op.comm_bytes = size(group) == 1 ? Rate{} : ops_.tensor_bytes(x);
}

void MetaCollectives::all_to_all(tensor::Group group, const Tensor& x, const Tensor& out) {
  OpRecord& op = ops_.record(OpKind::kAllToAll, {&x}, {&out});
  op.group = group;
  op.comm_bytes = size(group) == 1 ? Rate{} : ops_.tensor_bytes(x);
}

}  // namespace fathom::meta
