// CpuGradOps: the backward of what costs most, on all threads; every other op's is the plain backend's.
#pragma once
#include "backends/cpu/products.h"
#include "tensor/grad_ops.h"

namespace fathom::cpu {

class CpuGradOps final : public tensor::GradOps {
 public:
  /// `plain` outlives this and works on host memory.
  CpuGradOps(Context context, tensor::GradOps& plain) : context_(context), plain_(plain) {}

  void linear_backward(const tensor::LinearGrad& args) override;

  void zero(const tensor::Tensor& x) override { plain_.zero(x); }
  void embed_backward(const tensor::EmbedGrad& args) override { plain_.embed_backward(args); }
  void gather_rows_backward(const tensor::GatherRowsGrad& args) override { plain_.gather_rows_backward(args); }
  void accumulate(const tensor::AccumulateGrad& args) override { plain_.accumulate(args); }
  void expand_streams_backward(const tensor::ExpandStreamsGrad& args) override { plain_.expand_streams_backward(args); }
  void rms_norm_backward(const tensor::RmsNormGrad& args) override { plain_.rms_norm_backward(args); }
  void layer_norm_backward(const tensor::LayerNormGrad& args) override { plain_.layer_norm_backward(args); }
  void grouped_linear_backward(const tensor::GroupedLinearGrad& args) override { plain_.grouped_linear_backward(args); }
  void rope_backward(const tensor::RopeGrad& args) override { plain_.rope_backward(args); }
  void attention_backward(const tensor::AttentionGrad& args) override { plain_.attention_backward(args); }
  void compress_backward(const tensor::CompressGrad& args) override { plain_.compress_backward(args); }
  void swiglu_backward(const tensor::SwigluGrad& args) override { plain_.swiglu_backward(args); }
  void gelu_backward(const tensor::GeluGrad& args) override { plain_.gelu_backward(args); }
  void route_backward(const tensor::RouteGrad& args) override { plain_.route_backward(args); }
  void experts_backward(const tensor::ExpertsGrad& args) override { plain_.experts_backward(args); }
  void hyper_mix_backward(const tensor::HyperMixGrad& args) override { plain_.hyper_mix_backward(args); }
  void hyper_merge_backward(const tensor::HyperMergeGrad& args) override { plain_.hyper_merge_backward(args); }
  void hyper_head_backward(const tensor::HyperHeadGrad& args) override { plain_.hyper_head_backward(args); }
  void cross_entropy_backward(const tensor::CrossEntropyGrad& args) override { plain_.cross_entropy_backward(args); }

 private:
  void add_dx(const tensor::LinearGrad& args);
  void add_dweight(const tensor::LinearGrad& args);
  void add_dbias(const tensor::LinearGrad& args);

  Context context_;
  tensor::GradOps& plain_;
};

}  // namespace fathom::cpu
