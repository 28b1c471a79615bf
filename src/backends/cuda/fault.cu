#include "backends/cuda/fault.h"

namespace fathom::cuda {
namespace {
__global__ void write_nowhere(int* at) { *at = 1; }
}  // namespace

void launch_fault(Context& context) {
  write_nowhere<<<1, 1, 0, context.stream>>>(reinterpret_cast<int*>(16));  // an address that nobody has
  context.launched();
}

}  // namespace fathom::cuda
