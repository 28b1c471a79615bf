// Backend meta: computes nothing and writes down everything. An Ops, GradOps and Collectives whose calls become
// OpRecords, and whose memory is an arena that does not exist.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "backends/meta/trace.h"
#include "tensor/collectives.h"
#include "tensor/grad_ops.h"
#include "tensor/ops.h"

namespace fathom::meta {

/// What a row count stands for: a multiple of token_prime is so many times `tokens` (per token), one of output_prime so
/// many times `outputs`, and all else is fixed. Zero primes: everything is fixed, as in a trace of one particular pass.
struct TraceUnits {
  std::int64_t tokens = 0, token_prime = 0;
  std::int64_t outputs = 0, output_prime = 0;
  Rate rate(std::int64_t rows) const;
};
/// One sequence of kTraceTokens, logits of kTraceOutputs rows. Training: logits of all tokens.
inline constexpr TraceUnits kPrefillUnits{kTraceTokens, kTraceTokens / 128, kTraceOutputs, kTraceOutputs};
/// kTraceSequences sequences of one token.
inline constexpr TraceUnits kDecodeUnits{kTraceSequences, kTraceSequences, 0, 0};

struct MetaOptions {
  TraceUnits units;
  DType activations = DType::bf16;
  bool records = false;  // as under a tape: architectures keep what backward needs
  /// Class of each parameter by its number; empty: none is recorded.
  std::span<const std::int16_t> weight_classes;
};

class MetaOps : public tensor::Ops, public tensor::GradOps {
 public:
  explicit MetaOps(const MetaOptions& options) : options_(options) { trace_.buffers.emplace_back(); }

  /// What was recorded since the last take(). Buffers keep their numbers, so that a later section may name an earlier
  /// one's.
  Trace take();
  /// Bytes alive now, as a rate.
  const Rate& live() const { return live_; }

  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override;
  void release(const tensor::Tensor& tensor) override;
  DType activation_dtype() const override { return options_.activations; }
  bool records() const override { return options_.records; }

  void embed(const tensor::EmbedArgs& args) override;
  void gather_rows(const tensor::GatherRowsArgs& args) override;
  void copy(const tensor::CopyArgs& args) override;
  void add(const tensor::AddArgs& args) override;
  void expand_streams(const tensor::ExpandStreamsArgs& args) override;
  void rms_norm(const tensor::RmsNormArgs& args) override;
  void layer_norm(const tensor::LayerNormArgs& args) override;
  void linear(const tensor::LinearArgs& args) override;
  void grouped_linear(const tensor::GroupedLinearArgs& args) override;
  void rotary(const tensor::RotaryArgs& args) override;
  void rope(const tensor::RopeArgs& args) override;
  void cache_write(const tensor::CacheWriteArgs& args) override;
  void attention(const tensor::AttentionArgs& args) override;
  void index_select(const tensor::IndexSelectArgs& args) override;
  void compress(const tensor::CompressArgs& args) override;
  void swiglu(const tensor::SwigluArgs& args) override;
  void gelu(const tensor::GeluArgs& args) override;
  void route(const tensor::RouteArgs& args) override;
  void experts(const tensor::ExpertsArgs& args) override;
  void hyper_mix(const tensor::HyperMixArgs& args) override;
  void hyper_merge(const tensor::HyperMergeArgs& args) override;
  void hyper_head(const tensor::HyperHeadArgs& args) override;
  void cross_entropy(const tensor::CrossEntropyArgs& args) override;

  void zero(const tensor::Tensor& x) override;
  void embed_backward(const tensor::EmbedGrad& args) override;
  void gather_rows_backward(const tensor::GatherRowsGrad& args) override;
  void accumulate(const tensor::AccumulateGrad& args) override;
  void expand_streams_backward(const tensor::ExpandStreamsGrad& args) override;
  void rms_norm_backward(const tensor::RmsNormGrad& args) override;
  void layer_norm_backward(const tensor::LayerNormGrad& args) override;
  void linear_backward(const tensor::LinearGrad& args) override;
  void grouped_linear_backward(const tensor::GroupedLinearGrad& args) override;
  void rope_backward(const tensor::RopeGrad& args) override;
  void attention_backward(const tensor::AttentionGrad& args) override;
  void compress_backward(const tensor::CompressGrad& args) override;
  void swiglu_backward(const tensor::SwigluGrad& args) override;
  void gelu_backward(const tensor::GeluGrad& args) override;
  void route_backward(const tensor::RouteGrad& args) override;
  void experts_backward(const tensor::ExpertsGrad& args) override;
  void hyper_mix_backward(const tensor::HyperMixGrad& args) override;
  void hyper_merge_backward(const tensor::HyperMergeGrad& args) override;
  void hyper_head_backward(const tensor::HyperHeadGrad& args) override;
  void cross_entropy_backward(const tensor::CrossEntropyGrad& args) override;

 private:
  friend class MetaCollectives;
  /// A record whose rows, width, buffers and activation bytes come from its tensors.
  OpRecord& record(OpKind kind, std::initializer_list<const tensor::Tensor*> reads,
                   std::initializer_list<const tensor::Tensor*> writes);
  void set_weight(OpRecord& op, const tensor::Weight& weight, std::uint64_t copies = 1) const;
  Rate tensor_bytes(const tensor::Tensor& x) const;
  Rate elements(const tensor::Tensor& x) const;
  void set_segment(OpRecord& op, const tensor::Tensor& q, const tensor::KvSegment& segment,
                   std::int64_t value_dim) const;
  void add_attention(const tensor::AttentionArgs& args, bool backward);
  OpRecord& add_experts(const tensor::ExpertsArgs& args);

  MetaOptions options_;
  Trace trace_;
  Rate live_;
  std::uint64_t next_address_ = 1ULL << 20;
};

/// Sizes and this rank's place in each group, by Group.
struct GroupSizes {
  std::array<int, tensor::kGroupCount> size{1, 1, 1, 1, 1, 1};
  std::array<int, tensor::kGroupCount> rank{};
};

class MetaCollectives : public tensor::Collectives {
 public:
  MetaCollectives(MetaOps& ops, GroupSizes groups) : ops_(ops), groups_(groups) {}
  int size(tensor::Group group) const override { return groups_.size[static_cast<std::size_t>(group)]; }
  int rank(tensor::Group group) const override { return groups_.rank[static_cast<std::size_t>(group)]; }
  void all_reduce(tensor::Group group, const tensor::Tensor& x) override;
  void all_gather(tensor::Group group, const tensor::Tensor& x, const tensor::Tensor& out) override;
  void reduce_scatter(tensor::Group group, const tensor::Tensor& x, const tensor::Tensor& out) override;
  void all_to_all(tensor::Group group, const tensor::Tensor& x, const tensor::Tensor& out) override;
  void all_gather_rows(tensor::Group group, const tensor::Tensor& x, std::span<const std::int64_t> rows,
                       const tensor::Tensor& out) override;
  // What goes from stage to stage is priced by the layout, not by a trace of one stage.
  void send(tensor::Group, int, const tensor::Tensor&) override {}
  void receive(tensor::Group, int, const tensor::Tensor&) override {}

 private:
  MetaOps& ops_;
  GroupSizes groups_;
};

}  // namespace fathom::meta
