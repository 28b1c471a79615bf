// GradOps: the backward of every op, beside its forward in each backend. Conventions are those of ops.h; every gradient
// output is ADDED to what is there (the tape zeroes it when it first appears), so that a tensor read twice gets both
// contributions. An undefined gradient output is not wanted and not computed. Gradients of weights are plain f32 (f64)
// tensors of the weight's shape.
#pragma once
#include "tensor/ops.h"

namespace fathom::tensor {

struct EmbedGrad {
  EmbedArgs f;
  Tensor dout;
  Tensor dtable;
};  // dtable [vocabulary, h]
struct GatherRowsGrad {
  GatherRowsArgs f;
  Tensor dout;
  Tensor dx;
};
struct AccumulateGrad {
  Tensor dout;
  Tensor dx;
};  // dx += dout: copy, add
struct ExpandStreamsGrad {
  ExpandStreamsArgs f;
  Tensor dout;
  Tensor dx;
};
struct RmsNormGrad {
  RmsNormArgs f;
  Tensor dout;
  Tensor dx;
  Tensor dweight;
};
struct LayerNormGrad {
  LayerNormArgs f;
  Tensor dout;
  Tensor dx;
  Tensor dweight;
  Tensor dbias;
};
struct LinearGrad {
  LinearArgs f;
  Tensor dout;
  Tensor dx;
  Tensor dweight;
  Tensor dbias;
};
struct GroupedLinearGrad {
  GroupedLinearArgs f;
  Tensor dout;
  Tensor dx;
  Tensor dweight;
};  // dweight: whole [G·group_rows, k]
struct RopeGrad {
  RopeArgs f;
  Tensor dx;
};  // in place: turns dx back
struct KvSegmentGrad {
  Tensor dk;
  Tensor dk_shared;
  Tensor dv;
};  // dv may be a view of dk
struct AttentionGrad {
  AttentionArgs f;
  Tensor dout;
  Tensor dq;
  std::span<const KvSegmentGrad> segments;
  Tensor dsink;
};
struct CompressGrad {
  CompressArgs f;
  Tensor dout;
  Tensor dkv;
  Tensor dgate;
  Tensor dape;
};
struct SwigluGrad {
  SwigluArgs f;
  Tensor dout;
  Tensor dgate;
  Tensor dup;
};
struct GeluGrad {
  GeluArgs f;
  Tensor dout;
  Tensor dx;
};
struct RouteGrad {
  RouteArgs f;
  Tensor dweights;
  Tensor dlogits;
};
struct ExpertsGrad {
  ExpertsArgs f;
  Tensor dout;
  Tensor dx;
  Tensor dweights;
  std::span<const Tensor> dgate, dup, ddown;
};  // spans empty: frozen
struct HyperMixGrad {
  HyperMixArgs f;
  Tensor dcollapsed;
  Tensor dpost;
  Tensor dcomb;
  Tensor dstreams;
  Tensor dfn;
  Tensor dbase;
  Tensor dscale;
};
struct HyperMergeGrad {
  HyperMergeArgs f;
  Tensor dout;
  Tensor dx;
  Tensor dstreams;
  Tensor dpost;
  Tensor dcomb;
};
struct HyperHeadGrad {
  HyperHeadArgs f;
  Tensor dout;
  Tensor dstreams;
  Tensor dfn;
  Tensor dbase;
  Tensor dscale;
};
struct CrossEntropyGrad {
  CrossEntropyArgs f;
  Tensor dlosses;
  Tensor dlogits;
};

class GradOps {
 public:
  virtual ~GradOps() = default;
  virtual void zero(const Tensor& x) = 0;
  virtual void embed_backward(const EmbedGrad& args) = 0;
  virtual void gather_rows_backward(const GatherRowsGrad& args) = 0;
  virtual void accumulate(const AccumulateGrad& args) = 0;
  virtual void expand_streams_backward(const ExpandStreamsGrad& args) = 0;
  virtual void rms_norm_backward(const RmsNormGrad& args) = 0;
  virtual void layer_norm_backward(const LayerNormGrad& args) = 0;
  virtual void linear_backward(const LinearGrad& args) = 0;
  virtual void grouped_linear_backward(const GroupedLinearGrad& args) = 0;
  virtual void rope_backward(const RopeGrad& args) = 0;
  virtual void attention_backward(const AttentionGrad& args) = 0;
  virtual void compress_backward(const CompressGrad& args) = 0;
  virtual void swiglu_backward(const SwigluGrad& args) = 0;
  virtual void gelu_backward(const GeluGrad& args) = 0;
  virtual void route_backward(const RouteGrad& args) = 0;
  virtual void experts_backward(const ExpertsGrad& args) = 0;
  virtual void hyper_mix_backward(const HyperMixGrad& args) = 0;
  virtual void hyper_merge_backward(const HyperMergeGrad& args) = 0;
  virtual void hyper_head_backward(const HyperHeadGrad& args) = 0;
  virtual void cross_entropy_backward(const CrossEntropyGrad& args) = 0;
};

}  // namespace fathom::tensor
