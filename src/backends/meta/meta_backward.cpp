// Backward: each call is recorded with the kind of its forward. Products count twice the forward when both gradients
// are wanted. A gradient is added to what is there, so it is read and written.
#include "backends/meta/meta_ops.h"

namespace fathom::meta {

using namespace tensor;  // NOLINT: this file is about nothing else

void MetaOps::zero(const Tensor& x) { record(OpKind::kZero, {}, {&x}).backward = true; }

void MetaOps::embed_backward(const EmbedGrad& args) {
  OpRecord& op = record(OpKind::kEmbed, {&args.dout}, {});
  op.backward = op.weight_gradient = true;
  set_weight(op, args.f.table);
  op.weight_elements = op.weight_bytes = 0;
  op.n = args.f.table.cols;
  op.rows = options_.units.rate(args.dout.dim(0));
  op.written_bytes = op.read_bytes;
}

void MetaOps::gather_rows_backward(const GatherRowsGrad& args) {
  OpRecord& op = record(OpKind::kGatherRows, {&args.dout, &args.dx}, {&args.dx});
  op.backward = true;
  op.read_bytes = tensor_bytes(args.dout) * 2.0;
  op.written_bytes = tensor_bytes(args.dout);
}

void MetaOps::accumulate(const AccumulateGrad& args) {
  OpRecord& op = record(OpKind::kAdd, {&args.dout, &args.dx}, {&args.dx});
  op.backward = true;
  op.flops = elements(args.dx);
}

void MetaOps::expand_streams_backward(const ExpandStreamsGrad& args) {
  OpRecord& op = record(OpKind::kExpandStreams, {&args.dout, &args.dx}, {&args.dx});
  op.backward = true;
  op.flops = elements(args.dout);
}

void MetaOps::rms_norm_backward(const RmsNormGrad& args) {
  OpRecord& op = record(OpKind::kRmsNorm, {&args.f.x, &args.dout, &args.dx}, {&args.dx});
  op.backward = true;
  op.flops = elements(args.f.x) * 8.0;
}

void MetaOps::layer_norm_backward(const LayerNormGrad& args) {
  OpRecord& op = record(OpKind::kLayerNorm, {&args.f.x, &args.dout, &args.dx}, {&args.dx});
  op.backward = true;
  op.flops = elements(args.f.x) * 10.0;
}

void MetaOps::linear_backward(const LinearGrad& args) {
  const LinearArgs& f = args.f;
  const Rate rows = options_.units.rate(args.dout.dim(0));
  const double row_flops = 2.0 * static_cast<double>(f.weight.rows) * static_cast<double>(f.weight.cols);
  if (args.dx.defined()) {
    OpRecord& op = record(OpKind::kLinear, {&args.dout, &args.dx}, {&args.dx});
    op.backward = true;
    set_weight(op, f.weight);
    op.n = f.weight.cols;
    op.k = f.weight.rows;
    op.rows = rows;
    op.flops = rows * row_flops;
  }
  if (args.dweight.defined()) {
    OpRecord& op = record(OpKind::kLinear, {&args.dout, &f.x}, {});
    op.backward = op.weight_gradient = true;
    set_weight(op, f.weight);
    op.n = f.weight.rows;
    op.k = f.weight.cols;
    op.rows = rows;
    op.flops = rows * row_flops;
  }
}

void MetaOps::grouped_linear_backward(const GroupedLinearGrad& args) {
  const GroupedLinearArgs& f = args.f;
  const auto groups = f.x.dim(1);
  const double share = static_cast<double>(f.rows) / static_cast<double>(f.group_rows);
  const Rate rows = options_.units.rate(args.dout.dim(0));
  const Rate flops =
      rows * (2.0 * static_cast<double>(groups) * static_cast<double>(f.rows) * static_cast<double>(f.weight.cols));
  for (const bool weight_gradient : {false, true}) {
    if (!(weight_gradient ? args.dweight : args.dx).defined()) continue;
    OpRecord& op = weight_gradient ? record(OpKind::kGroupedLinear, {&args.dout, &f.x}, {})
                                   : record(OpKind::kGroupedLinear, {&args.dout, &args.dx}, {&args.dx});
    op.backward = true;
    op.weight_gradient = weight_gradient;
    set_weight(op, f.weight);
    op.weight_elements = static_cast<std::uint64_t>(static_cast<double>(op.weight_elements) * share);
    op.weight_bytes = static_cast<std::uint64_t>(static_cast<double>(op.weight_bytes) * share);
    op.groups = groups;
    op.n = f.transposed ? f.rows : f.weight.cols;
    op.k = f.transposed ? f.weight.cols : f.rows;
    op.rows = rows;
    op.flops = flops;
  }
}

void MetaOps::rope_backward(const RopeGrad& args) {
  OpRecord& op = record(OpKind::kRope, {&args.dx}, {&args.dx});
  op.backward = true;
  op.flops = elements(args.dx) * 3.0;
}

void MetaOps::attention_backward(const AttentionGrad& args) {
  const std::size_t first = trace_.ops.size();
  add_attention(args.f, true);
  if (first == trace_.ops.size()) return;
  OpRecord& op = trace_.ops[first];
  op.read_bytes += tensor_bytes(args.dout);
  op.read_bytes += tensor_bytes(args.f.out);
  op.read_bytes += tensor_bytes(args.f.lse);
  op.written_bytes = tensor_bytes(args.dq);
  for (const KvSegmentGrad& segment : args.segments) {
    op.written_bytes += tensor_bytes(segment.dk);
    op.written_bytes += tensor_bytes(segment.dk_shared);
    op.written_bytes += tensor_bytes(segment.dv);
  }
  op.output = args.dq.root;
}

void MetaOps::compress_backward(const CompressGrad& args) {
  OpRecord& op = record(OpKind::kCompress, {&args.f.kv, &args.f.gate, &args.dout, &args.dkv}, {&args.dkv, &args.dgate});
  op.backward = true;
  op.ratio = args.f.ratio;
  op.flops = elements(args.f.kv) * 10.0;
}

void MetaOps::swiglu_backward(const SwigluGrad& args) {
  OpRecord& op =
      record(OpKind::kSwiglu, {&args.f.gate, &args.f.up, &args.dout, &args.dgate, &args.dup}, {&args.dgate, &args.dup});
  op.backward = true;
  op.flops = elements(args.f.gate) * 10.0;
}

void MetaOps::gelu_backward(const GeluGrad& args) {
  OpRecord& op = record(OpKind::kGelu, {&args.f.x, &args.dout, &args.dx}, {&args.dx});
  op.backward = true;
  op.flops = elements(args.f.x) * 12.0;
}

void MetaOps::route_backward(const RouteGrad& args) {
  OpRecord& op = record(OpKind::kRoute, {&args.f.logits, &args.dweights, &args.dlogits}, {&args.dlogits});
  op.backward = true;
  op.experts_total = static_cast<std::int32_t>(args.f.routing.experts);
  op.experts_per_token = static_cast<std::int32_t>(args.f.routing.top_k);
  op.flops = elements(args.f.logits) * 5.0;
}

void MetaOps::experts_backward(const ExpertsGrad& args) {
  // Gradients of x: two products become three (the hidden rows are computed again from x), then those of the weights.
  for (const bool weight_gradient : {false, true}) {
    if (weight_gradient && args.dgate.empty()) continue;
    OpRecord& op = add_experts(args.f);
    op.backward = true;
    op.weight_gradient = weight_gradient;
    op.read_bytes += tensor_bytes(args.dout);
    op.written_bytes = weight_gradient ? Rate{} : tensor_bytes(args.dx);
    op.output = weight_gradient ? 0 : args.dx.root;
  }
}

void MetaOps::hyper_mix_backward(const HyperMixGrad& args) {
  OpRecord& op =
      record(OpKind::kHyperMix, {&args.f.streams, &args.dcollapsed, &args.dpost, &args.dcomb, &args.dstreams},
             {&args.dstreams});
  op.backward = true;
  set_weight(op, args.f.fn);
  op.k = args.f.fn.cols;
  op.flops = options_.units.rate(args.f.streams.dim(0)) *
             (4.0 * static_cast<double>(args.f.fn.rows) * static_cast<double>(args.f.fn.cols));
}

void MetaOps::hyper_merge_backward(const HyperMergeGrad& args) {
  OpRecord& op = record(OpKind::kHyperMerge, {&args.f.x, &args.f.streams, &args.dout, &args.dx, &args.dstreams},
                        {&args.dx, &args.dstreams, &args.dpost, &args.dcomb});
  op.backward = true;
  op.flops = elements(args.dout) * (4.0 + 4.0 * static_cast<double>(args.f.streams.dim(1)));
}

void MetaOps::hyper_head_backward(const HyperHeadGrad& args) {
  OpRecord& op = record(OpKind::kHyperHead, {&args.f.streams, &args.dout, &args.dstreams}, {&args.dstreams});
  op.backward = true;
  set_weight(op, args.f.fn);
  op.k = args.f.fn.cols;
  op.flops = options_.units.rate(args.f.streams.dim(0)) *
             (4.0 * static_cast<double>(args.f.fn.rows) * static_cast<double>(args.f.fn.cols));
}

void MetaOps::cross_entropy_backward(const CrossEntropyGrad& args) {
  OpRecord& op = record(OpKind::kCrossEntropy, {&args.f.logits, &args.dlosses, &args.dlogits}, {&args.dlogits});
  op.backward = true;
  op.k = args.f.logits.dim(1);
  op.flops = elements(args.f.logits) * 4.0;
}

}  // namespace fathom::meta
