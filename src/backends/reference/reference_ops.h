// ReferenceOps and ReferenceGradOps: every op and its backward as their equations say, one loop an equation, sums in
// double. The two lie side by side in <family>.cpp. See tensor/ops.h and tensor/grad_ops.h for the contracts.
#pragma once
#include "tensor/grad_ops.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace fathom::reference {

class ReferenceOps final : public tensor::Ops {
 public:
  explicit ReferenceOps(DType activation_dtype) : activation_dtype_(activation_dtype) {}

  tensor::ActivationMemory& memory() { return memory_; }
  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override { return memory_.allocate(dtype, shape); }
  void release(const tensor::Tensor& tensor) override { memory_.release(tensor); }
  DType activation_dtype() const override { return activation_dtype_; }

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

 private:
  DType activation_dtype_;
  tensor::ActivationMemory memory_;
};

class ReferenceGradOps final : public tensor::GradOps {
 public:
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
};

}  // namespace fathom::reference
