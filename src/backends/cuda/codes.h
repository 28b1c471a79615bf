// Experts whose operands are both e4m3 codes, on Hopper's matrix units: eight-bit activations
// (tensor::rounds_activations). codes_wide.cuh has the kernel, codes.cu who launches it.
#pragma once
#include "backends/cuda/experts_mma.h"

namespace fathom::cuda {

/// Whether a mixture of experts goes that way: fp8_block128, matrices that lie evenly, the device, shapes and
/// addresses.
bool can_multiply_codes(const Context& context, const tensor::ExpertsArgs& args, const Matrices& matrices);
/// The whole op, from the rest of the workspace.
void multiply_codes(Context& context, const tensor::ExpertsArgs& args, const Matrices& matrices);

}  // namespace fathom::cuda
