// Attention of one token as a stage (stages.h): heads and parts of keys are dealt out to the blocks, and who wants what they make joins the parts.
#pragma once
#include "backends/cuda/staged_ring.cuh"

namespace fathom::cuda {

inline constexpr int kStagedAhead = 4;  // keys of each stream at a time
inline constexpr int kStagedJoin = kStreamedWarps * (128 + 2);  // floats that join the warps
/// Keys of a piece of the ring, whose second half are their values; 1: keys of this type do not come by the ring.
template <class T>
constexpr int keys_of_piece(int width) { return kRowScales<T> ? 1 : kPieceBytes / 2 / (width * static_cast<int>(sizeof(T))); }

#if defined(FATHOM_WGMMA_HERE)
/// A block's share of a head's keys, piece by piece.
template <tensor::WeightFormat F, class T, int kWidth>
__device__ inline void attend_pieces(const StagedShare& share, const StagedRing<F>& ring, StagedTurns& turns, StreamState<1>& state) {
  constexpr int kLanes = kWidth / 8, kStreams = kGroupOfWarps / kLanes, kKeys = keys_of_piece<T>(kWidth), kBytes = 8 * sizeof(T);
  static_assert(kKeys % (kStreams * kStagedAhead) == 0);
  const int own = static_cast<int>(threadIdx.x) % kGroupOfWarps, stream = own / kLanes;
  turns.take(static_cast<unsigned>((share.to - share.from + kKeys - 1) / kKeys), ring.depth, [&](unsigned number) {
    const CopiedKeys<T, kGroupOfWarps> piece{ring.at + turns.place * kPieceBytes + static_cast<unsigned>(own) * kBytes};
    const int left = share.to - share.from - static_cast<int>(number) * kKeys - stream;
    wait_phase(ring.full(turns.place), turns.phase);
#pragma unroll 1
    for (int first = 0; first < kKeys; first += kStagedAhead * kStreams) {
      const auto here = [&](int u) { return first + u * kStreams < left; };
      Eight<T> k[kStagedAhead], v[kStagedAhead];
#pragma unroll
      for (int u = 0; u < kStagedAhead; ++u) {
        const unsigned at = piece.at + static_cast<unsigned>(first + u * kStreams) * (kLanes * kBytes);
        k[u] = v[u] = Eight<T>{};  // a row behind the last key may be anything, and nothing times a NaN is one
        if (here(u)) k[u] = piece.read(at), v[u] = piece.read(at + kPieceBytes / 2);
      }
      add_keys<T, kWidth, 1, kStagedAhead>(k, v, here, state);
    }
    __syncwarp();
    if (threadIdx.x % kWarp == 0) arrive(ring.empty(turns.place));
  });
}

/// Heads and parts of keys, by all threads. `room`: kStagedJoin floats.
template <tensor::WeightFormat F, class T, int kWidth>
__device__ inline void attend_parts(const StagedAttention& own, const int4& sequence, const StagedRing<F>& ring, StagedTurns& turns, float* room, unsigned* answers, StagedStart& start) {
  constexpr int kLanes = kWidth / 8;
  const AttentionView& view = own.view;
  const FreshRows& fresh = own.fresh;
  const SegmentView& segment = view.segments[0];
  float* const sums = room;
  float* const largest = room + kStreamedWarps * kWidth;
  float* const total = largest + kStreamedWarps;
  const int lane = threadIdx.x % kLanes, stream = threadIdx.x / kLanes, warp = threadIdx.x / kWarp;
  const std::int64_t base = static_cast<std::int64_t>(sequence.x) * segment.rows_per_slot;
  Rotation<kWidth> rotation(fresh, 0);
  start.wait();
#pragma unroll 1
  for (int item = static_cast<int>(blockIdx.x); item < view.heads * view.parts; item += static_cast<int>(gridDim.x)) {
    const StagedShare share(item, view.parts, sequence.w, keys_of_piece<T>(kWidth));
    const int head = share.head, kv_head = head / view.group;
    StreamState<1> state;
    state.largest[0] = -INFINITY;
    state.total[0] = 0.0f;
    read_eight_of_others(view.q.at(0, head) + 8 * lane, state.q[0]);
    const bool adds = share.part == view.parts - 1 && warp == 0;
    Eight<T> new_k{}, new_v{};
    if (adds) {
      float k[8], v[8];
      read_eight_of_others(fresh.k + kv_head * fresh.k_head + 8 * lane, k);
      read_eight_of_others(fresh.v + kv_head * fresh.v_head + 8 * lane, v);
      rotation.rotate(k);
      new_k = round_eight<T, kWidth>(k), new_v = round_eight<T, kWidth>(v);
    }
    rotation.rotate(state.q[0]);
#pragma unroll
    for (int i = 0; i < 8; ++i) state.q[0][i] *= view.scale, state.acc[0][i] = 0.0f;
    if constexpr (kRowScales<T>) stream_keys<T, kWidth, 1, kStreamedThreads, kStagedAhead>(segment, kv_head, base, 0, share.from, share.to, state);
    else attend_pieces<F, T, kWidth>(share, ring, turns, state);
    if (adds) {
      add_key<T, kWidth, 1>(new_k, new_v, stream == 0, state);
      if (stream == 0 && head % view.group == 0 && sequence.z > 0) write_eights<T>(segment, base + sequence.w, kv_head, 8 * lane, new_k, new_v);
    }
    join_streams<kWidth, 1>(state);
    if (threadIdx.x % kWarp < kLanes) {
      if (lane == 0) largest[warp] = state.largest[0], total[warp] = state.total[0];
      write_eight_floats(sums + warp * kWidth + 8 * lane, state.acc[0]);
    }
    meet_workers();
    if (threadIdx.x < kWidth) {
      // A lane has a warp's share, and again.
      const int of = threadIdx.x % kStreamedWarps;
      const float own_most = largest[of];
      float most = own_most, value = 0.0f;
#pragma unroll
      for (int step = kStreamedWarps / 2; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
      const float factor = relative(own_most, most);
      float sum = total[of] * factor;
#pragma unroll
      for (int step = kStreamedWarps / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
#pragma unroll
      for (int w = 0; w < kStreamedWarps; ++w) value += sums[w * kWidth + threadIdx.x] * __shfl_sync(kAllLanes, factor, w);
      const std::int64_t at = static_cast<std::int64_t>(share.part) * view.heads + head;
      await_answer(answers + threadIdx.x, put_for_others(view.part_out + at * kWidth + threadIdx.x, value));
      if (threadIdx.x < 2) await_answer(answers + kWidth + threadIdx.x, put_for_others(view.part_state + 2 * at + threadIdx.x, threadIdx.x == 0 ? most : sum));
    }
    if (item + static_cast<int>(gridDim.x) >= view.heads * view.parts) break;
    meet_workers();
    rotation = Rotation<kWidth>(fresh, 0);  // not kept over a part: registers are few
  }
}

/// What the parts of attention make, where it is asked for.
__device__ inline void join_stage(const AttentionView& view) {
  const JoinedParts joined(view, 1);
  for (int quad = static_cast<int>(blockIdx.x * kStreamedThreads + threadIdx.x); quad * 4 < view.heads * view.dv; quad += static_cast<int>(gridDim.x) * kStreamedThreads) {
    JoinedParts::Raw raw;
    float x[4];
    joined.read(quad * 4, 0, raw);
    joined.join(quad * 4, raw, x);
    joined.write(quad * 4, x);
  }
}

template <tensor::WeightFormat F, class T>
__device__ inline void attend_stage(const StagedAttention& own, const int4& sequence, const StagedRing<F>& ring, StagedTurns& turns, float* room, unsigned* answers, StagedStart& start) {
  if (own.view.dv == 64) attend_parts<F, T, 64>(own, sequence, ring, turns, room, answers, start);
  else attend_parts<F, T, 128>(own, sequence, ring, turns, room, answers, start);
}
#endif

}  // namespace fathom::cuda
