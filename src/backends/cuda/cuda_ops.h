// CudaOps: every op of the vocabulary as kernels on one stream of one NVIDIA GPU. One file a family, as in
// src/backends/reference, which is the twin. Activations are f32; weights f32, f16, bf16 and the 8- and 4-bit formats;
// caches f32, f16, bf16, FP8 and INT8. Nothing is allocated and nothing waits while ops run: what a kernel needs beside
// its arguments comes from the workspace, and the host never reads device memory.
//
// Bits: the same arguments give the same bits on the same device. A token's result does not depend on the values of
// other tokens (attention on tensor cores: but for NaN and infinity among the values of later tokens in the same block
// of keys).
#pragma once
#include <memory>

#include "backends/cuda/context.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace fathom::cuda {

class CudaOps final : public tensor::Ops {
 public:
  CudaOps(Context& context, tensor::ActivationMemory& memory);
  ~CudaOps() override;
  /// Launches products that wait for others of the same x, to be launched as one. Every op but linear begins with it,
  /// and so must whoever reads results or ends a recording.
  void flush();

  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override { return memory_.allocate(dtype, shape); }
  void release(const tensor::Tensor& tensor) override { memory_.release(tensor); }
  DType activation_dtype() const override { return DType::f32; }

  // ops_rows.cu
  void embed(const tensor::EmbedArgs& args) override;
  void gather_rows(const tensor::GatherRowsArgs& args) override;
  void copy(const tensor::CopyArgs& args) override;
  void add(const tensor::AddArgs& args) override;
  void expand_streams(const tensor::ExpandStreamsArgs& args) override;
  void swiglu(const tensor::SwigluArgs& args) override;
  void gelu(const tensor::GeluArgs& args) override;
  // ops_norm.cu
  void rms_norm(const tensor::RmsNormArgs& args) override;
  void layer_norm(const tensor::LayerNormArgs& args) override;
  // ops_linear.cu
  void linear(const tensor::LinearArgs& args) override;
  void grouped_linear(const tensor::GroupedLinearArgs& args) override;
  // ops_cache.cu
  void rotary(const tensor::RotaryArgs& args) override;
  void rope(const tensor::RopeArgs& args) override;
  void cache_write(const tensor::CacheWriteArgs& args) override;
  // ops_attention.cu
  void attention(const tensor::AttentionArgs& args) override;
  // ops_select.cu
  void index_select(const tensor::IndexSelectArgs& args) override;
  // ops_compress.cu
  void compress(const tensor::CompressArgs& args) override;
  // ops_experts.cu
  void route(const tensor::RouteArgs& args) override;
  void experts(const tensor::ExpertsArgs& args) override;
  // ops_hyper.cu
  void hyper_mix(const tensor::HyperMixArgs& args) override;
  void hyper_merge(const tensor::HyperMergeArgs& args) override;
  void hyper_head(const tensor::HyperHeadArgs& args) override;
  // ops_loss.cu
  void cross_entropy(const tensor::CrossEntropyArgs& args) override;

 private:
  void launch_waiting();  // what flush launches, but for stages; what was rounded stays
  void settle();          // what flush does, but that stages go on
  Context& context_;
  tensor::ActivationMemory& memory_;
  class Waiting;
  std::unique_ptr<Waiting> waiting_;
};

}  // namespace fathom::cuda
