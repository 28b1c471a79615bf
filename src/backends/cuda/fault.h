// A failure on purpose: a kernel that writes where there is no memory.
#pragma once
#include "backends/cuda/context.h"

namespace fathom::cuda {

/// The device's stream, and all of this process on the device, ends with cudaErrorIllegalAddress.
void launch_fault(Context& context);

}  // namespace fathom::cuda
