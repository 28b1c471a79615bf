// How the blocks of a launch of stages (stages.h), and the warps of each, wait for each other, and what they tell each other.
#pragma once
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
/// One more block has ended a stage.
__device__ inline void count_stage(unsigned* ended) { asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(ended) : "memory"); }
__device__ inline void await_stages(const unsigned* ended, unsigned wanted) {
  unsigned seen = 0;
  do asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(ended) : "memory");
  while (seen < wanted);
}

/// Behind the warps that work a block has a keeper, which brings tables and waits for the other blocks, and two that fetch weights, codes and scales. The
/// others meet without them.
inline constexpr int kStagedThreads = kStreamedThreads + 4 * kWarp, kMeetingThreads = kStreamedThreads + kWarp;  // registers are dealt out to four warps at a time
inline constexpr int kWorkerRegisters = 104, kKeeperRegisters = 64;  // of a thread; all warps together have 65536
__device__ inline void meet_workers() { __barrier_sync_count(1, kStreamedThreads); }
/// A stage's turn has come: the keeper tells the workers.
__device__ inline void begin_stage() { __barrier_sync_count(2, kMeetingThreads); }
/// The workers have done a stage, which they tell the keeper without waiting for it.
__device__ inline void tell_keeper() {
  __syncwarp();
  asm volatile("barrier.arrive 3, %0;" ::"n"(kMeetingThreads) : "memory");
}
__device__ inline void await_workers() { __barrier_sync_count(3, kMeetingThreads); }

}  // namespace fathom::cuda
