// Experts with weights of eight-bit floats that stream by: what ops_experts.cu hands over to ops_experts_stream.cu.
#pragma once
#include "backends/cuda/experts_mma.h"

namespace fathom::cuda {

/// Whether shapes, formats and addresses allow it. Activations are not rounded to eight bits here.
bool can_stream(const tensor::ExpertsArgs& args);
/// Hits of a run at most, for `pairs` of tokens and experts.
int stream_run(const tensor::ExpertsArgs& args, std::int64_t pairs);
/// Both products; the second's results [hits, h], in the workspace. gather.run is stream_run's.
float* multiply_stream(Context& context, const tensor::ExpertsArgs& args, const Matrices& matrices,
                       const tensor::Tensor& x, const GatherView& gather);

}  // namespace fathom::cuda
