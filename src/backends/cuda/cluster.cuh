// Clusters of blocks (compute capability 9.0): they run at the same time and can read each other's shared memory. Where there are none, a block is
// alone in its cluster.
#pragma once
#include "backends/cuda/launch.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kMostClusterParts = 16;  // blocks of a cluster; more than eight have to be allowed

__device__ inline int cluster_rank() {
  unsigned rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
/// A barrier of all threads of the cluster, in two halves: what was written before the first is seen after the second.
__device__ inline void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/// Where block `rank` of the cluster has, in its shared memory, what this block has at `at`.
__device__ inline unsigned address_in(unsigned at, unsigned rank) {
  unsigned there = at;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
#endif
  return there;
}
/// The float that lies where `at` does in this block's shared memory in that of block `rank` of the cluster.
__device__ inline float float_of_block(const float* at, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address_in(shared_address(at), static_cast<unsigned>(rank))) : "memory");
  return value;
#else
  return rank == 0 ? *at : 0.0f;
#endif
}
/// Two floats to where `at` is in the shared memory of block `rank` of the cluster.
__device__ inline void store_in_block(unsigned at, int rank, float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address_in(at, static_cast<unsigned>(rank))), "f"(first), "f"(second) : "memory");
#endif
}

/// 16 bytes to where `at` is in the shared memory of block `rank` of the cluster.
__device__ inline void send_16(unsigned at, unsigned rank, const uint4& v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address_in(at, rank)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}

/// A launch with clusters of `cluster` blocks, early as launch_early's. Attributes of the kernel (shared memory) are set.
struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  ClusterLaunch(const Context& context, dim3 grid, dim3 block, std::size_t shared_bytes, dim3 cluster) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context.stream;
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster.x;
    attributes[1].val.clusterDim.y = cluster.y;
    attributes[1].val.clusterDim.z = cluster.z;
    config.attrs = attributes;
    config.numAttrs = context.compute_capability < 90 ? 0 : cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
  template <class... Parameters, class... Arguments>
  void go(Context& context, void (*kernel)(Parameters...), Arguments&&... arguments) {
    close_stages(context);
    context.note(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...));
  }
};

/// How many clusters of `cluster` blocks run at the same time. More than eight blocks have to be allowed, which this does.
template <class Kernel>
int clusters_at_once(Context& context, Kernel* kernel, dim3 block, std::size_t shared_bytes, unsigned cluster) {
  if (cluster > 8) context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  ClusterLaunch launch(context, dim3(cluster), block, shared_bytes, dim3(cluster));
  int clusters = 0;
  context.note(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config));
  return clusters;
}

}  // namespace fathom::cuda
