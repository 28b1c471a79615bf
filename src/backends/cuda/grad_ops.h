// CudaGradOps: the backward of every op as kernels on the stream of its ops. One file a family; the twins lie in
// src/backends/reference. Gradients are f32 and so is every sum; weights are read in every format that CudaOps
// multiplies with, exactly. What forward rounds (activations to a weight's 16 or 8 bits) backward takes for the
// identity.
//
// Bits: the same arguments give the same bits on the same device. Every element of an output has one owner, which sums
// in a fixed order; nothing is added by atomics.
#pragma once
#include "backends/cuda/cuda_ops.h"
#include "tensor/grad_ops.h"

namespace fathom::cuda {

class CudaGradOps final : public tensor::GradOps {
 public:
  /// Both outlive this.
  CudaGradOps(Context& context, CudaOps& ops) : context_(context), ops_(ops) {}

  // grad_rows.cu
  void zero(const tensor::Tensor& x) override;
  void embed_backward(const tensor::EmbedGrad& args) override;
  void gather_rows_backward(const tensor::GatherRowsGrad& args) override;
  void accumulate(const tensor::AccumulateGrad& args) override;
  void expand_streams_backward(const tensor::ExpandStreamsGrad& args) override;
  void rope_backward(const tensor::RopeGrad& args) override;
  void swiglu_backward(const tensor::SwigluGrad& args) override;
  void gelu_backward(const tensor::GeluGrad& args) override;
  void cross_entropy_backward(const tensor::CrossEntropyGrad& args) override;
  // grad_norm.cu
  void rms_norm_backward(const tensor::RmsNormGrad& args) override;
  void layer_norm_backward(const tensor::LayerNormGrad& args) override;
  // grad_linear.cu
  void linear_backward(const tensor::LinearGrad& args) override;
  void grouped_linear_backward(const tensor::GroupedLinearGrad& args) override;
  // grad_attention.cu
  void attention_backward(const tensor::AttentionGrad& args) override;
  // grad_compress.cu
  void compress_backward(const tensor::CompressGrad& args) override;
  // grad_experts.cu
  void route_backward(const tensor::RouteGrad& args) override;
  void experts_backward(const tensor::ExpertsGrad& args) override;
  // grad_hyper.cu
  void hyper_mix_backward(const tensor::HyperMixGrad& args) override;
  void hyper_merge_backward(const tensor::HyperMergeGrad& args) override;
  void hyper_head_backward(const tensor::HyperHeadGrad& args) override;

 private:
  /// Every op begins with it: what waits among the ops is launched, and the workspace is this op's.
  Context& begin() {
    ops_.flush();
    context_.workspace.reset();
    return context_;
  }

  Context& context_;
  CudaOps& ops_;
};

}  // namespace fathom::cuda
