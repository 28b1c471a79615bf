// Experts of one or two tokens as their two kernels see them (experts_few.cuh).
#pragma once
#include "backends/cuda/experts.cuh"

namespace fathom::cuda {

inline constexpr std::int64_t kFewExpertTokens = 2;

struct FewExperts {
  MatrixOfExperts gate, up, down;
  tensor::WeightFormat format = tensor::WeightFormat::f32, down_format = tensor::WeightFormat::f32;
  std::int64_t inner = 0, h = 0;     // rows of gate and up; rows of down
  View<const std::int32_t> indices;  // [tokens, top_k]
  View<const float> weights;         // [tokens, top_k]
  const float* x = nullptr;          // [tokens, h]
  std::int64_t x_stride = 0;
  float* hidden = nullptr;  // [tokens, top_k, inner]
  View<float> out;          // [tokens, h]
  int top_k = 1, first_expert = 0, here = 0;
  float limit = 0;
  bool accumulate = false;
  const float* added = nullptr;  // [tokens, h] that is added too
  std::int64_t added_stride = 0;
};

/// The first kernel and the second. Rows of x and of all matrices can be read in eights.
void launch_few_experts_in(Context& context, const FewExperts& view, std::int64_t tokens);
void launch_few_experts_out(Context& context, const FewExperts& view, std::int64_t tokens);

}  // namespace fathom::cuda
