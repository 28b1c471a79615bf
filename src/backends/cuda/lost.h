// Devices that do not come back: a kernel there never ends. Whoever would free, destroy or wait for something on one
// would wait for ever, so everything of it is left to the end of the process.
#pragma once
#include <cuda_runtime.h>

namespace fathom::cuda {

void mark_lost(int device);
bool is_lost(int device);
/// After what waits for others on this stream has been cut off: marks its device lost unless it comes to its end within
/// two seconds.
void find_lost(int device, cudaStream_t stream);

}  // namespace fathom::cuda
