// An Ops that hands every call on, to be overridden where a test wants to look or to meddle.
#pragma once
#include "tensor/ops.h"

namespace fathom::test {

class ForwardingOps : public tensor::Ops {
 public:
  explicit ForwardingOps(tensor::Ops& inner) : inner_(inner) {}
  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override { return inner_.allocate(dtype, shape); }
  void release(const tensor::Tensor& tensor) override { inner_.release(tensor); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  void embed(const tensor::EmbedArgs& args) override { inner_.embed(args); }
  void gather_rows(const tensor::GatherRowsArgs& args) override { inner_.gather_rows(args); }
  void copy(const tensor::CopyArgs& args) override { inner_.copy(args); }
  void add(const tensor::AddArgs& args) override { inner_.add(args); }
  void expand_streams(const tensor::ExpandStreamsArgs& args) override { inner_.expand_streams(args); }
  void rms_norm(const tensor::RmsNormArgs& args) override { inner_.rms_norm(args); }
  void layer_norm(const tensor::LayerNormArgs& args) override { inner_.layer_norm(args); }
  void linear(const tensor::LinearArgs& args) override { inner_.linear(args); }
  void grouped_linear(const tensor::GroupedLinearArgs& args) override { inner_.grouped_linear(args); }
  void rotary(const tensor::RotaryArgs& args) override { inner_.rotary(args); }
  void rope(const tensor::RopeArgs& args) override { inner_.rope(args); }
  void cache_write(const tensor::CacheWriteArgs& args) override { inner_.cache_write(args); }
  void attention(const tensor::AttentionArgs& args) override { inner_.attention(args); }
  void index_select(const tensor::IndexSelectArgs& args) override { inner_.index_select(args); }
  void compress(const tensor::CompressArgs& args) override { inner_.compress(args); }
  void swiglu(const tensor::SwigluArgs& args) override { inner_.swiglu(args); }
  void gelu(const tensor::GeluArgs& args) override { inner_.gelu(args); }
  void route(const tensor::RouteArgs& args) override { inner_.route(args); }
  void experts(const tensor::ExpertsArgs& args) override { inner_.experts(args); }
  void hyper_mix(const tensor::HyperMixArgs& args) override { inner_.hyper_mix(args); }
  void hyper_merge(const tensor::HyperMergeArgs& args) override { inner_.hyper_merge(args); }
  void hyper_head(const tensor::HyperHeadArgs& args) override { inner_.hyper_head(args); }
  void cross_entropy(const tensor::CrossEntropyArgs& args) override { inner_.cross_entropy(args); }
  bool records() const override { return inner_.records(); }

 protected:
  tensor::Ops& inner_;
};

}  // namespace fathom::test
