// How the blocks of a launch of stages (stages.h), and the warps of each, wait for each other, and what they tell each other.
#pragma once
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/codes_mma.cuh"
#include "backends/cuda/streamed_x.cuh"
#include "backends/cuda/wgmma.cuh"

namespace fathom::cuda {

/// What other blocks read in this launch goes to memory by exchanges. An answer comes from the L2 cache, all multiprocessors' own, so who has its answers has
/// its values where others see them; they read past their first caches, which nobody empties. (That is how the device works; the programming model would ask
/// for a fence, which takes longer while weights are on their way.)
__device__ inline unsigned put_for_others(float* to, float value) {
  unsigned answer;
  asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;" : "=r"(answer) : "l"(to), "r"(__float_as_uint(value)) : "memory");
  return answer;
}
/// Waits for an answer: keeps it, which has to have come for that.
__device__ inline void await_answer(unsigned* to, unsigned answer) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared_address(to)), "r"(answer) : "memory"); }
__device__ inline float read_of_others(const float* from) {
  float value;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline float2 read_two_of_others(const float* from) {
  float2 value;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "l"(from) : "memory");
  return value;
}
__device__ inline void read_four_of_others(const float* from, float (&out)[4]) {
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(out[0]), "=f"(out[1]), "=f"(out[2]), "=f"(out[3]) : "l"(from) : "memory");
}
__device__ inline void read_eight_of_others(const float* from, float (&out)[8]) {
  float half[2][4];
  read_four_of_others(from, half[0]), read_four_of_others(from + 4, half[1]);
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = half[i / 4][i % 4];
}
/// Where blocks count the stages that they have ended: each at all of these places, by a warp, and it looks at one of them. Many who look at one place make each
/// other and those that count there wait.
inline constexpr int kStageCounts = 12, kCountStep = 256 / sizeof(unsigned);
__device__ inline void count_stage(unsigned* ended) {
  const unsigned lane = threadIdx.x % kWarp;
  if (lane < kStageCounts) asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(ended + lane * kCountStep) : "memory");
}
__device__ inline void await_stages(const unsigned* ended, unsigned wanted) {
  const unsigned* const own = ended + blockIdx.x % kStageCounts * kCountStep;
  unsigned seen = 0;
  do asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(own) : "memory");
  while (seen < wanted);
}

/// Two blocks that make x for each other, half of it each: a cluster. Or a block alone. What the other sends arrives at `filled`, a barrier in shared memory,
/// by its bytes: a barrier with release and acquire between blocks would wait for all that the device's memory is asked for.
struct StagedPair {
  unsigned filled, squared;  // squared: the same for the squares of a norm, which are wanted later
  unsigned blocks, rank, phase = 0, squares_phase = 0;
  /// Two barriers.
  __device__ explicit StagedPair(const std::uint64_t (&barriers)[2]) : filled(held(shared_address(&barriers[0]))), squared(filled + 8), rank(held(static_cast<unsigned>(cluster_rank()))) {
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  }
#if defined(FATHOM_WGMMA_HERE)
  /// A warp has put its part of x; `bytes` come from the other block. kByDescriptors: products read it so, as the copy engine does.
  template <bool kByDescriptors>
  __device__ void arrive_filled(unsigned bytes) const {
    if constexpr (kByDescriptors) publish_shared();
    __syncwarp();
    arrive_of_warp(filled, bytes);
  }
  /// What the warps that work wrote to shared memory before arriving, and what the other block sends, is seen by all and by products.
  template <bool kByDescriptors>
  __device__ void wait_filled() {
    wait_phase(filled, phase);
    if constexpr (kByDescriptors) publish_shared();
    phase ^= 1;
  }
  /// A warp's sum of squares, to 2 · kStreamedWarps floats in both blocks.
  __device__ void put_square(float* squares, float square) const;
  /// What the values of a norm are multiplied with, when all squares have come and until end_squares. Whole warps.
  __device__ float factor_of_norm(const NormedX& norm, const float* squares) const {
    wait_phase(squared, squares_phase);
    const unsigned lane = threadIdx.x % kWarp;
    return rsqrtf(warp_sum(lane < blocks * kStreamedWarps ? squares[lane] : 0.0f) / static_cast<float>(norm.n) + norm.eps);
  }
  __device__ void end_squares() {
    wait_phase(squared, squares_phase);
    squares_phase ^= 1;
  }

 private:
  __device__ static void arrive_of_warp(unsigned barrier, unsigned bytes) {
    if (threadIdx.x == 0) arrive_expecting(barrier, bytes);
    else if (threadIdx.x % kWarp == 0) arrive(barrier);
  }
#endif
  /// A value that is kept and not looked up again, which takes long of what depends on the block's place in its cluster.
  __device__ static unsigned held(unsigned value) {
    asm volatile("" : "+r"(value));
    return value;
  }
};
/// A place in this block's shared memory and the same in that of the other of its pair, which counts what is sent there at `barrier`.
struct PairPlace {
  unsigned char* own;
  unsigned other, barrier;  // 0: the block is alone
  __device__ PairPlace(unsigned char* at, const StagedPair& pair, unsigned own_barrier) : own(at), other(0), barrier(0) {
    if (pair.blocks > 1) other = address_in(shared_address(at), pair.rank ^ 1), barrier = address_in(own_barrier, pair.rank ^ 1);
  }
  __device__ void put(int at, unsigned value) const {
    *reinterpret_cast<unsigned*>(own + at) = value;
    if (other != 0) asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];\n" ::"r"(other + static_cast<unsigned>(at)), "r"(value), "r"(barrier) : "memory");
  }
  __device__ void put(int at, uint2 value) const {
    *reinterpret_cast<uint2*>(own + at) = value;
    if (other != 0)
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];\n" ::"r"(other + static_cast<unsigned>(at)), "r"(value.x), "r"(value.y), "r"(barrier) : "memory");
  }
};
#if defined(FATHOM_WGMMA_HERE)
__device__ inline void StagedPair::put_square(float* squares, float square) const {
  const unsigned warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) PairPlace(reinterpret_cast<unsigned char*>(squares), *this, squared).put(static_cast<int>(rank * kStreamedWarps + warp) * 4, __float_as_uint(square));
  __syncwarp();
  arrive_of_warp(squared, blocks > 1 ? kStreamedWarps * 4 : 0);
}
#endif

/// Behind the warps that work a block has a keeper, which brings tables, counts, and waits for the other blocks, and two that fetch weights and keys: pieces, and
/// what lies beside them. The workers meet without them.
inline constexpr int kStagedThreads = kStreamedThreads + 4 * kWarp;  // registers are dealt out to four warps at a time
inline constexpr int kWorkerRegisters = 104, kKeeperRegisters = 64;  // of a thread; all warps together have 65536
__device__ inline void meet_workers() { __barrier_sync_count(1, kStreamedThreads); }
/// The workers have done a stage, which they tell the keeper without waiting for it.
inline constexpr int kTellingThreads = kStreamedThreads + kWarp;
__device__ inline void tell_keeper() {
  __syncwarp();
  asm volatile("barrier.arrive 2, %0;" ::"n"(kTellingThreads) : "memory");
}
__device__ inline void await_workers() { __barrier_sync_count(2, kTellingThreads); }

#if defined(FATHOM_WGMMA_HERE)
/// The beginnings of stages, which the keeper tells the workers, and what these tell who fetches.
struct StagedStart {
  struct Shared {
    std::uint64_t come;      // a barrier
    volatile int throttled;  // what other blocks tell is waited for or soon will be: it is there sooner with few weights on their way
  };
  Shared& shared;
  unsigned come, phase = 0;
  __device__ explicit StagedStart(Shared& at) : shared(at), come(shared_address(&at.come)) {}
  __device__ void init() const {
    init_barrier(come, 1);
    shared.throttled = 1;
  }
  /// The next stage's turn has come: one thread of the keeper.
  __device__ void tell() const { arrive(come); }
  __device__ void wait() {
    wait_phase(come, phase);
    phase ^= 1;
  }
  __device__ void throttle(bool on) const {
    if (threadIdx.x == 0) shared.throttled = on ? 1 : 0;
  }
};
#endif

}  // namespace fathom::cuda
