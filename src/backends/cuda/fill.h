// Synthetic weights drawn where they lie: the same bits as weights/random.h gives on the host.
#pragma once
#include "backends/cuda/context.h"
#include "tensor/backend.h"

namespace fathom::cuda {

/// Launches it. `codes`: the fill's table on the device, when it has one. False: a type that is not drawn here.
bool launch_fill(Context& context, const tensor::RandomFill& fill, const std::uint8_t* codes);

}  // namespace fathom::cuda
