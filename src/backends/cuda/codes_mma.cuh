// Clusters of blocks, bulk copies that tell a barrier how many bytes have come, and products of e4m3 by warpgroups: sm_90a alone. Tiles in
// shared memory, sums and barriers as in wgmma.cuh; a row of 128 bytes has 128 elements.
#pragma once
#include <cuda.h>

#include "backends/cuda/cluster.cuh"
#include "backends/cuda/wgmma.cuh"

namespace fathom::cuda {

#if defined(FATHOM_WGMMA_HERE)

// ---------------------------------------------------------------- clusters

/// All threads of all blocks of the cluster.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}
/// Says that what this block has in shared memory may be overwritten: nothing that was written is published. (With .release.cluster the compiler
/// puts a fence of the whole device before it: about a microsecond.)
__device__ inline void arrive_in(unsigned at, unsigned rank) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(address_in(at, rank)) : "memory"); }
/// Arrives, and what was written before can be seen by who waits with wait_phase_of_cluster.
__device__ inline void publish_in(unsigned at, unsigned rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];\n" ::"r"(address_in(at, rank)) : "memory");
}
/// As wait_phase, for what other blocks of the cluster did before they arrived.
__device__ inline void wait_phase_of_cluster(unsigned at, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}\n" ::"r"(at),
      "r"(parity)
      : "memory");
}
/// Barriers that were initialized can be seen by other blocks and by copies; before sync_cluster().
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// ---------------------------------------------------------------- copies

/// Arrives, and the phase waits for `bytes` more.
__device__ inline void arrive_expecting(unsigned at, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(at), "r"(bytes) : "memory");
}
/// Multiples of 16 bytes, to this block.
__device__ inline void copy_bulk(unsigned to, const void* from, unsigned bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
/// The same to the same place in every block of the cluster whose bit is set; each one's barrier is told.
__device__ inline void copy_bulk_to(unsigned blocks, unsigned to, const void* from, unsigned bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;\n" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier),
               "h"(static_cast<unsigned short>(blocks))
               : "memory");
}
/// A box of five dimensions.
__device__ inline void copy_box(unsigned to, const CUtensorMap* map, int c0, int c1, int c2, int c3, int c4, unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], [%7];\n" ::"r"(to), "l"(map), "r"(c0), "r"(c1),
               "r"(c2), "r"(c3), "r"(c4), "r"(barrier)
               : "memory");
}
__device__ inline void fetch_map(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory"); }

// ---------------------------------------------------------------- products

/// d (+)= a · b, 64 × 128 × 32, both by_rows.
__device__ inline void multiply_e4m3(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " FATHOM_SUMS_128 ", %64, %65, p, 1, 1;\n}\n"
               : FATHOM_D_128
               : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

#endif  // FATHOM_WGMMA_HERE

}  // namespace fathom::cuda
