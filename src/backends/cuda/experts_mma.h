// Experts with 16-bit weights on tensor cores: what ops_experts.cu hands over to ops_experts_mma.cu.
#pragma once
#include "backends/cuda/experts.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

/// The matrices of all experts, the same for every chunk of tokens.
struct Matrices {
  MatrixOfExperts gate, up, down;
};

void launch_gather(Context& context, const GatherView& view);
/// Whether rows of eight elements can be read at once.
bool reads_vectors(std::span<const tensor::Weight> weights);
/// Whether shapes, formats and addresses allow it.
bool can_mma(const tensor::ExpertsArgs& args);
/// Hits of a run at most, for `pairs` of tokens and experts.
int mma_run(const tensor::ExpertsArgs& args, std::int64_t pairs);
/// Both products; the second's results [hits, h], in the workspace. gather.run is mma_run's. `kept`: x in the weights'
/// type, dense, or null.
float* multiply_mma(Context& context, const tensor::ExpertsArgs& args, const Matrices& matrices,
                    const tensor::Tensor& x, const std::byte* kept, const GatherView& gather);

}  // namespace fathom::cuda
