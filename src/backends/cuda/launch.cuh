// How kernels are launched one after the other without the device idling in between (programmatic dependent launch, compute capability 9.0
// on): a kernel's blocks may take their places while those before it still run. Such a kernel reads what nobody writes (weights) at once, and
// everything else after after_previous(), which returns when all launches before it have finished. It must call that in every block, so that
// "finished" includes the ones before those. A pass begins with a launch that waits for all before it (CudaOps::embed, or what NCCL brings), so
// attention of single tokens may read the table of sequences and cache rows of earlier passes at once too. Elsewhere a launch waits for the one
// before, and after_previous() does nothing.
// A kernel that calls wait_for_previous() first and let_next_start() then lets the next one run beside it: that one begins when all before both has
// finished, and one of its blocks still has to wait, so that it does not finish sooner. Only gathering (experts_gather.cuh) is such a kernel.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "backends/cuda/context.h"

namespace fathom::cuda {

/// Lets the next launch take places from now on; to be called by every block, early.
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
/// Returns when everything launched before has finished and its writes can be seen.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The first statement of kernels that have nothing to do before their turn.
__device__ inline void after_previous() {
  let_next_start();
  wait_for_previous();
}

/// Launches a kernel that calls wait_for_previous() before it reads or writes anything that another launch writes or reads.
template <class... Parameters, class... Arguments>
void launch_early(Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Arguments&&... arguments) {
  close_stages(context);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = context.compute_capability >= 90 ? 1 : 0;
  context.note(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...));
}

}  // namespace fathom::cuda
