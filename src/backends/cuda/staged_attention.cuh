// Attention of one token as a stage (stages.h): heads and parts of keys are dealt out to the blocks, and who wants what they make joins the parts.
#pragma once
#include "backends/cuda/staged_ring.cuh"

namespace fathom::cuda {

inline constexpr int kStagedHeld = 2;  // keys of each stream that come to shared memory before the stage's turn
inline constexpr int kStagedAhead = 4;  // keys of each stream on their way behind those
template <class T>
inline constexpr unsigned kStagedHeldBytes = kRowScales<T> ? 0 : kStagedHeld * CopiedKeys<T, kStreamedThreads>::kBytesAKey;
inline constexpr int kStagedJoin = kStreamedWarps * (128 + 2);  // floats that join the warps

/// Heads and parts of keys, by all threads. `held`: kStagedHeldBytes; `room`: kStagedJoin floats.
template <class T, int kWidth>
__device__ inline void attend_parts(const StagedAttention& own, const int4& sequence, unsigned held_keys, float* room, unsigned* answers) {
  constexpr int kLanes = kWidth / 8, kStreams = kStreamedThreads / kLanes;
  const AttentionView& view = own.view;
  const FreshRows& fresh = own.fresh;
  const SegmentView& segment = view.segments[0];
  float* const sums = room;
  float* const largest = room + kStreamedWarps * kWidth;
  float* const total = largest + kStreamedWarps;
  const int lane = threadIdx.x % kLanes, stream = threadIdx.x / kLanes, warp = threadIdx.x / kWarp;
  const std::int64_t base = static_cast<std::int64_t>(sequence.x) * segment.rows_per_slot;
  const CopiedKeys<T, kStreamedThreads> held{held_keys + threadIdx.x * CopiedKeys<T, kStreamedThreads>::kBytes};
  bool waits = true;
  for (int item = static_cast<int>(blockIdx.x); item < view.heads * view.parts || waits; item += static_cast<int>(gridDim.x)) {
    const int head = min(item / view.parts, view.heads - 1), part = item % view.parts, kv_head = head / view.group;
    const bool mine = item < view.heads * view.parts;
    const int each = (sequence.w + view.parts - 1) / view.parts, from = min(part * each, sequence.w), to = mine ? min(from + each, sequence.w) : from;
    const int held_to = kRowScales<T> || !waits ? from : min(to, from + kStagedHeld * kStreams);
    if (waits) {
#pragma unroll
      for (int i = 0; i < kStagedHeld; ++i) {
        const int key = from + i * kStreams + stream;
        if (key >= held_to) break;
        held.copy(held.k(i), reinterpret_cast<const T*>(segment.k) + (base + key) * segment.k_row + kv_head * segment.k_head + 8 * lane);
        held.copy(held.v(i), reinterpret_cast<const T*>(segment.v) + (base + key) * segment.v_row + kv_head * segment.v_head + 8 * lane);
      }
      commit_copies();
      begin_stage();
      waits = false;
    }
    if (!mine) return;
    StreamState<1> state;
    state.largest[0] = -INFINITY;
    state.total[0] = 0.0f;
    read_eight_of_others(view.q.at(0, head) + 8 * lane, state.q[0]);
    const bool adds = part == view.parts - 1 && warp == 0;
    float new_k[8] = {}, new_v[8] = {};
    if (adds) {
      read_eight_of_others(fresh.k + kv_head * fresh.k_head + 8 * lane, new_k);
      read_eight_of_others(fresh.v + kv_head * fresh.v_head + 8 * lane, new_v);
    }
    rotate_eight<kWidth>(fresh, 0, state.q[0]);
#pragma unroll
    for (int i = 0; i < 8; ++i) state.q[0][i] *= view.scale, state.acc[0][i] = 0.0f;
    if (held_to > from) {
      held.template wait<0>();
#pragma unroll 1
      for (int first = 0; first < kStagedHeld; first += 2) held.template add<kWidth, 1, 2>(first, [&](int u) { return from + (first + u) * kStreams + stream < held_to; }, state);
    }
    stream_keys<T, kWidth, 1, kStreamedThreads, kStagedAhead>(segment, kv_head, base, 0, held_to, to, state);
    if (adds) {
      rotate_eight<kWidth>(fresh, 0, new_k);
      const Eight<T> k = round_eight<T, kWidth>(new_k), v = round_eight<T, kWidth>(new_v);
      add_key<T, kWidth, 1>(k, v, stream == 0, state);
      if (stream == 0 && head % view.group == 0 && sequence.z > 0) write_eights<T>(segment, base + sequence.w, kv_head, 8 * lane, k, v);
    }
    join_streams<kWidth, 1>(state);
    if (threadIdx.x % kWarp < kLanes) {
      if (lane == 0) largest[warp] = state.largest[0], total[warp] = state.total[0];
      write_eight_floats(sums + warp * kWidth + 8 * lane, state.acc[0]);
    }
    meet_workers();
    if (threadIdx.x < kWidth) {
      float most = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll 4
      for (int w = 0; w < kStreamedWarps; ++w) most = fmaxf(most, largest[w]);
#pragma unroll 4
      for (int w = 0; w < kStreamedWarps; ++w) {
        const float share = relative(largest[w], most);
        sum += total[w] * share;
        value += sums[w * kWidth + threadIdx.x] * share;
      }
      const std::int64_t at = static_cast<std::int64_t>(part) * view.heads + head;
      await_answer(answers + threadIdx.x, put_for_others(view.part_out + at * kWidth + threadIdx.x, value));
      if (threadIdx.x < 2) await_answer(answers + kWidth + threadIdx.x, put_for_others(view.part_state + 2 * at + threadIdx.x, threadIdx.x == 0 ? most : sum));
    }
    meet_workers();
  }
}

/// What the parts of attention make, where it is asked for.
__device__ inline void join_stage(const AttentionView& view) {
  const JoinedParts joined(view);
  for (int quad = static_cast<int>(blockIdx.x * kStreamedThreads + threadIdx.x); quad * 4 < view.heads * view.dv; quad += static_cast<int>(gridDim.x) * kStreamedThreads) {
    JoinedParts::Raw raw;
    float x[4];
    joined.read(quad * 4, 0, raw);
    joined.join(quad * 4, raw, x);
    joined.write(quad * 4, x);
  }
}

template <class T>
__device__ inline void attend_stage(const StagedAttention& own, const int4& sequence, unsigned held, float* room, unsigned* answers) {
  if (own.view.dv == 64) attend_parts<T, 64>(own, sequence, held, room, answers);
  else attend_parts<T, 128>(own, sequence, held, room, answers);
}

}  // namespace fathom::cuda
