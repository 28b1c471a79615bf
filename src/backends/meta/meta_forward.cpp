// The price of each op, as ops.h states it.
#include "backends/meta/meta_ops.h"

namespace fathom::meta {

using namespace tensor;  // NOLINT: this file is about nothing else

namespace {
// FLOPs an element of the elementwise families: adds, multiplies and transcendental functions counted one each.
constexpr double kNormFlops = 4, kLayerNormFlops = 6, kSwigluFlops = 5, kGeluFlops = 8, kRopeFlops = 3,
                 kSoftmaxFlops = 5;
}  // namespace

void MetaOps::embed(const EmbedArgs& args) {
  OpRecord& op = record(OpKind::kEmbed, {}, {&args.out});
  op.read_bytes += op.written_bytes;  // as many rows of the table
  set_weight(op, args.table);
  op.weight_elements = op.weight_bytes = 0;
}

void MetaOps::gather_rows(const GatherRowsArgs& args) {
  OpRecord& op = record(OpKind::kGatherRows, {&args.x}, {&args.out});
  op.read_bytes = op.written_bytes;
}

void MetaOps::copy(const CopyArgs& args) { record(OpKind::kCopy, {&args.x}, {&args.out}); }

void MetaOps::add(const AddArgs& args) {
  OpRecord& op = record(OpKind::kAdd, {&args.a, &args.b}, {&args.out});
  op.flops = elements(args.out);
}

void MetaOps::expand_streams(const ExpandStreamsArgs& args) { record(OpKind::kExpandStreams, {&args.x}, {&args.out}); }

void MetaOps::rms_norm(const RmsNormArgs& args) {
  OpRecord& op = record(OpKind::kRmsNorm, {&args.x}, {&args.out});
  op.flops = elements(args.out) * kNormFlops;
}

void MetaOps::layer_norm(const LayerNormArgs& args) {
  OpRecord& op = record(OpKind::kLayerNorm, {&args.x}, {&args.out});
  op.flops = elements(args.out) * kLayerNormFlops;
}

void MetaOps::linear(const LinearArgs& args) {
  OpRecord& op = record(OpKind::kLinear, {&args.x}, {&args.out});
  if (args.accumulate) {
    op.read_bytes += op.written_bytes;
    op.in_place = true;
  }
  set_weight(op, args.weight);
  op.n = args.weight.rows;
  op.k = args.weight.cols;
  op.flops = op.rows * (2.0 * static_cast<double>(op.n) * static_cast<double>(op.k));
}

void MetaOps::grouped_linear(const GroupedLinearArgs& args) {
  OpRecord& op = record(OpKind::kGroupedLinear, {&args.x}, {&args.out});
  set_weight(op, args.weight);
  op.groups = args.x.dim(1);
  op.n = args.transposed ? args.weight.cols : args.rows;
  op.k = args.transposed ? args.rows : args.weight.cols;
  // Only this part of each group's rows is read.
  const double share = static_cast<double>(args.rows) / static_cast<double>(args.group_rows);
  op.weight_elements = static_cast<std::uint64_t>(static_cast<double>(op.weight_elements) * share);
  op.weight_bytes = static_cast<std::uint64_t>(static_cast<double>(op.weight_bytes) * share);
  op.rows = options_.units.rate(args.x.dim(0));
  op.flops = op.rows * (2.0 * static_cast<double>(op.groups) * static_cast<double>(op.n) * static_cast<double>(op.k));
}

void MetaOps::rotary(const RotaryArgs& args) {
  OpRecord& op = record(OpKind::kRotary, {}, {&args.cos, &args.sin});
  op.flops = elements(args.cos) * 3.0;
}

void MetaOps::rope(const RopeArgs& args) {
  OpRecord& op = record(OpKind::kRope, {&args.x, &args.cos, &args.sin}, {&args.x});
  const double share =
      static_cast<double>(2 * args.cos.dim(1)) / static_cast<double>(args.x.dim(args.x.shape.rank - 1));
  op.flops = elements(args.x) * (kRopeFlops * share);
  op.read_bytes = tensor_bytes(args.x) * share;
  op.written_bytes = op.read_bytes;
  op.read_bytes += tensor_bytes(args.cos) * 2.0;
}

void MetaOps::cache_write(const CacheWriteArgs& args) {
  OpRecord& op = record(OpKind::kCacheWrite, {&args.src}, {});
  op.n = args.src.elements() / std::max<std::int64_t>(args.src.dim(0), 1);
  op.rows = options_.units.rate(args.src.dim(0));
  op.ratio = args.ratio;
  op.written_bytes = op.rows * (static_cast<double>(op.n) * static_cast<double>(dtype_bytes(args.cache.dtype)));
}

void MetaOps::set_segment(OpRecord& op, const Tensor& q, const KvSegment& segment, std::int64_t value_dim) const {
  op.segment = segment.kind;
  op.heads = static_cast<std::int32_t>(q.dim(1));
  op.kv_heads = static_cast<std::int32_t>(segment.k.dim(1));
  op.key_dim = static_cast<std::int32_t>(segment.k.dim(2));
  op.shared_key_dim = segment.k_shared.defined() ? static_cast<std::int32_t>(segment.k_shared.dim(1)) : 0;
  op.value_dim = static_cast<std::int32_t>(value_dim);
  op.shares_value = segment.v.data == segment.k.data;
  op.window = segment.window;
  op.ratio = segment.ratio;
  op.top_k = segment.selected.defined() ? segment.selected.dim(1) : 0;
}

void MetaOps::add_attention(const AttentionArgs& args, bool backward) {
  bool first = true;
  for (const KvSegment& segment : args.segments) {
    const Tensor none;
    OpRecord& op =
        first ? record(OpKind::kAttention, {&args.q, &segment.k, &segment.k_shared, &segment.v, &segment.selected},
                       {&args.out, &args.lse})
              : record(OpKind::kAttention, {&none, &segment.k, &segment.k_shared, &segment.v, &segment.selected}, {});
    op.backward = backward;
    op.rows = options_.units.rate(args.q.dim(0));
    op.n = args.out.dim(1) * args.out.dim(2);
    set_segment(op, args.q, segment, args.out.dim(2));
    // Caches are priced by what is visible; the batch's own keys and values are activations, read once.
    op.read_bytes = first ? tensor_bytes(args.q) : Rate{};
    op.read_bytes += tensor_bytes(segment.selected);
    const bool fresh = segment.kind == KvSegment::Kind::kFresh || segment.kind == KvSegment::Kind::kFreshEntries;
    if (fresh) {
      op.read_bytes += tensor_bytes(segment.k);
      op.read_bytes += tensor_bytes(segment.k_shared);
      if (!op.shares_value) op.read_bytes += tensor_bytes(segment.v);
    }
    first = false;
  }
}

void MetaOps::attention(const AttentionArgs& args) { add_attention(args, false); }

void MetaOps::index_select(const IndexSelectArgs& args) {
  OpRecord& op = record(OpKind::kIndexSelect, {&args.q, &args.weights, &args.keys.k}, {&args.selected});
  op.rows = options_.units.rate(args.q.dim(0));
  op.n = args.selected.dim(1);
  set_segment(op, args.q, args.keys, 0);
  op.top_k = args.selected.dim(1);
  op.shares_value = true;
  op.read_bytes = tensor_bytes(args.q);
  op.read_bytes += tensor_bytes(args.weights);
}

void MetaOps::compress(const CompressArgs& args) {
  OpRecord& op = record(OpKind::kCompress, {&args.kv, &args.gate}, {&args.out, &args.positions});
  op.ratio = args.ratio;
  op.flops = elements(args.kv) * kSoftmaxFlops;
}

void MetaOps::swiglu(const SwigluArgs& args) {
  OpRecord& op = record(OpKind::kSwiglu, {&args.gate, &args.up}, {&args.out});
  op.flops = elements(args.out) * kSwigluFlops;
}

void MetaOps::gelu(const GeluArgs& args) {
  OpRecord& op = record(OpKind::kGelu, {&args.x}, {&args.out});
  op.flops = elements(args.out) * kGeluFlops;
}

void MetaOps::route(const RouteArgs& args) {
  OpRecord& op = record(OpKind::kRoute, {&args.logits}, {&args.indices, &args.weights});
  op.experts_total = static_cast<std::int32_t>(args.routing.experts);
  op.experts_per_token = static_cast<std::int32_t>(args.routing.top_k);
  op.flops = elements(args.logits) * kSoftmaxFlops;
}

OpRecord& MetaOps::add_experts(const ExpertsArgs& args) {
  OpRecord& op = record(OpKind::kExperts, {&args.x, &args.indices, &args.weights}, {&args.out});
  for (const std::span<const Weight> part : {args.gate, args.up, args.down})
    if (!part.empty()) set_weight(op, part.front(), part.size());
  op.experts_here = static_cast<std::int32_t>(args.gate.size());
  op.experts_total = static_cast<std::int32_t>(args.total_experts);
  op.experts_per_token = static_cast<std::int32_t>(args.indices.dim(1));
  op.expert_intermediate = args.gate.empty() ? 0 : args.gate.front().rows;
  op.n = args.x.dim(1);
  op.k = args.x.dim(1);
  const double hits = static_cast<double>(op.experts_per_token) * static_cast<double>(op.experts_here) /
                      static_cast<double>(std::max(op.experts_total, 1));
  op.flops = op.rows * (6.0 * static_cast<double>(op.n) * static_cast<double>(op.expert_intermediate) * hits);
  return op;
}

void MetaOps::experts(const ExpertsArgs& args) {
  OpRecord& op = add_experts(args);
  if (!args.accumulate) return;
  op.read_bytes += tensor_bytes(args.out);
  op.in_place = true;
}

void MetaOps::hyper_mix(const HyperMixArgs& args) {
  OpRecord& op = record(OpKind::kHyperMix, {&args.streams}, {&args.collapsed, &args.post, &args.comb});
  set_weight(op, args.fn);
  op.k = args.fn.cols;
  const double row =
      2.0 * static_cast<double>(args.fn.rows) * static_cast<double>(args.fn.cols) +
      4.0 * static_cast<double>(args.fn.cols) +
      static_cast<double>(args.iterations) * 4.0 * static_cast<double>(args.comb.dim(1) * args.comb.dim(2));
  op.flops = options_.units.rate(args.streams.dim(0)) * row;
}

void MetaOps::hyper_merge(const HyperMergeArgs& args) {
  OpRecord& op = record(OpKind::kHyperMerge, {&args.x, &args.streams, &args.post, &args.comb}, {&args.out});
  op.flops = elements(args.out) * (2.0 + 2.0 * static_cast<double>(args.streams.dim(1)));
}

void MetaOps::hyper_head(const HyperHeadArgs& args) {
  OpRecord& op = record(OpKind::kHyperHead, {&args.streams}, {&args.out});
  set_weight(op, args.fn);
  op.k = args.fn.cols;
  op.flops = options_.units.rate(args.streams.dim(0)) *
             (2.0 * static_cast<double>(args.fn.rows) * static_cast<double>(args.fn.cols) +
              4.0 * static_cast<double>(args.fn.cols));
}

void MetaOps::cross_entropy(const CrossEntropyArgs& args) {
  OpRecord& op = record(OpKind::kCrossEntropy, {&args.logits}, {&args.losses});
  op.k = args.logits.dim(1);
  op.flops = elements(args.logits) * kSoftmaxFlops;
}

}  // namespace fathom::meta
