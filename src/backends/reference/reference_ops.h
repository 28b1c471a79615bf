// ReferenceOps: every op as its equation says, one loop an equation, sums in double. See tensor/ops.h for the contracts.
#pragma once
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

}  // namespace fathom::reference
