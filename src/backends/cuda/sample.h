// Choosing tokens where the logits are, as tensor/sampling.h says.
#pragma once
#include <cstdint>

#include "backends/cuda/context.h"
#include "tensor/backend.h"

namespace fathom::cuda {

/// Bytes of workspace for one row.
Bytes sample_bytes(std::int64_t vocabulary);
/// Launches it, as many rows at once as the workspace holds.
void launch_sample(Context& context, const tensor::SampleArgs& args);

}  // namespace fathom::cuda
