// CpuOps: every op of the vocabulary, multi-threaded, over the kernels of one instruction set. One file a family, as in
// src/backends/reference, which is the twin. Activations are f32; weights f32, f16, bf16 and, through f32 copies of a
// few rows at a time, the 8- and 4-bit formats.
//
// Bits: the same arguments give the same bits for the same instruction set and number of threads; matrix products even
// for any number of threads. A token's result does not depend on the values of other tokens; it may depend on how many
// there are, because products with few rows sum in another order than larger ones and keep f32 activations where larger
// ones may round to bf16 (products.h: kDirectRows).
#pragma once
#include "backends/cpu/products.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace fathom::cpu {

class CpuOps final : public tensor::Ops {
 public:
  CpuOps(const Kernels& kernels, ThreadPool& pool, Workspace& workspace, tensor::ActivationMemory& memory)
      : context_{kernels, pool, workspace}, memory_(memory) {}

  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override { return memory_.allocate(dtype, shape); }
  void release(const tensor::Tensor& tensor) override { memory_.release(tensor); }
  DType activation_dtype() const override { return DType::f32; }

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
  void select_like_torch(const tensor::IndexSelectArgs& args);
  Scratch& fresh_shared() {  // the shared workspace, all of it
    context_.workspace.shared().reset();
    return context_.workspace.shared();
  }
  Scratch& fresh(int thread) {
    context_.workspace.of(thread).reset();
    return context_.workspace.of(thread);
  }
  void grouped_transposed(const tensor::GroupedLinearArgs& args);

  Context context_;
  tensor::ActivationMemory& memory_;
};

}  // namespace fathom::cpu
