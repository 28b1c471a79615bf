// Attention of single tokens over caches of 16 or 8 bits in one launch: the blocks of a cluster share the keys of a key head and join what they found over
// their shared memory. Rotations of q and k and the writing of k and v to the cache, where they have just been asked for, are done on the way.
#pragma once
#include "backends/cuda/attention_streams.cuh"
#include "backends/cuda/cluster.cuh"

namespace fathom::cuda {

inline constexpr int kClusterThreads = 256, kClusterWarps = kClusterThreads / kWarp;
inline constexpr int kHeldKeys = 6;  // of each stream, that come to shared memory before the launch's turn
template <class T>
inline constexpr unsigned kHeldBytes = kRowScales<T> ? 0 : 2 * kHeldKeys * kClusterThreads * 8 * sizeof(T);

/// The streams of a warp become one.
template <int kWidth, int kHeads>
__device__ inline void join_streams(StreamState<kHeads>& state) {
#pragma unroll
  for (int step = kWidth / 8; step < kWarp; step *= 2)
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      const float other = __shfl_xor_sync(kAllLanes, state.largest[g], step), total = __shfl_xor_sync(kAllLanes, state.total[g], step), largest = fmaxf(state.largest[g], other);
      const float own_share = relative(state.largest[g], largest), other_share = relative(other, largest);
      state.largest[g] = largest;
      state.total[g] = state.total[g] * own_share + total * other_share;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float value = __shfl_xor_sync(kAllLanes, state.acc[g][i], step);
        state.acc[g][i] = state.acc[g][i] * own_share + value * other_share;
      }
    }
}

/// One segment of kind kCache. Grid: sequences (of one token each), key heads, parts: a cluster.
template <class T, int kWidth, int kHeads>
__global__ void __launch_bounds__(kClusterThreads) attend_clusters(const __grid_constant__ AttentionView view, const __grid_constant__ FreshRows fresh) {
  constexpr int kLanes = kWidth / 8, kStreams = kClusterThreads / kLanes;
  __shared__ float sums[kClusterWarps][kHeads][kWidth], rotated[kHeads][kWidth];
  __shared__ float largest[kClusterWarps][kHeads], total[kClusterWarps][kHeads], shares[kClusterWarps][kHeads], joined[2][kHeads];
  extern __shared__ __align__(16) unsigned char held_keys[];  // kHeldBytes
  const SegmentView& segment = view.segments[0];
  const int kv_head = blockIdx.y, first_head = kv_head * view.group, part = blockIdx.z;
  const int lane = threadIdx.x % kLanes, stream = threadIdx.x / kLanes, warp = threadIdx.x / kWarp;
  const bool makes = fresh.cosines != nullptr;
  const auto range = [&](const int4& sequence, int& from, int& to) {  // of the keys in the cache that this block looks at
    const std::int64_t all = sequence.w + (makes ? 0 : 1);
    from = static_cast<int>(all * part / view.parts), to = static_cast<int>(all * (part + 1) / view.parts);
  };
  const auto* row_of_table = reinterpret_cast<const int4*>(view.table) + blockIdx.x;
  const int4 sequence = __ldcg(row_of_table);  // slot, first_token, tokens, past: older than this pass, as the rows of the cache before `past`
  const std::int64_t token = sequence.y, base = static_cast<std::int64_t>(sequence.x) * segment.rows_per_slot;
  int from = 0, to = 0;
  range(sequence, from, to);
  const CopiedKeys<T, kClusterThreads> held{shared_address(held_keys) + threadIdx.x * CopiedKeys<T, kClusterThreads>::kBytes};
  const int held_to = kRowScales<T> ? from : min(min(to, sequence.w), from + kHeldKeys * kStreams);
#pragma unroll
  for (int i = 0; i < kHeldKeys; ++i) {
    const int key = from + i * kStreams + stream;
    if (key >= held_to) break;
    held.copy(held.k(i), reinterpret_cast<const T*>(segment.k) + (base + key) * segment.k_row + kv_head * segment.k_head + 8 * lane);
    held.copy(held.v(i), reinterpret_cast<const T*>(segment.v) + (base + key) * segment.v_row + kv_head * segment.v_head + 8 * lane);
  }
  commit_copies();
  wait_for_previous();
  if (sequence.z == 0) return;  // so for the whole cluster
  StreamState<kHeads> state;
  float new_k[8] = {}, new_v[8] = {};
  const bool adds = makes && part == view.parts - 1 && warp == 0;
  if (adds) {
    read_eight_floats(fresh.k + token * fresh.k_token + kv_head * fresh.k_head + 8 * lane, new_k);
    read_eight_floats(fresh.v + token * fresh.v_token + kv_head * fresh.v_head + 8 * lane, new_v);
  }
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    state.largest[g] = -INFINITY;
    state.total[g] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) state.q[g][i] = state.acc[g][i] = 0.0f;
    if (g < view.group) read_eight_floats(view.q.at(token, first_head + g) + 8 * lane, state.q[g]);
  }
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    if (makes) rotate_eight<kWidth>(fresh, token, state.q[g]);
    if (makes && part == 0 && stream == 0) write_eight_floats(&rotated[g][8 * lane], state.q[g]);
#pragma unroll
    for (int i = 0; i < 8; ++i) state.q[g][i] *= view.scale;
  }
  held.template wait<0>();
  constexpr int kAtOnce = kHeads == 1 ? kHeldKeys : 2;
  static_assert(kHeldKeys % kAtOnce == 0);
#pragma unroll
  for (int first = 0; first < kHeldKeys; first += kAtOnce) {
    const int at = from + first * kStreams;
    if (at >= held_to) break;  // so for the whole block
    held.template add<kWidth, kHeads, kAtOnce>(first, [&](int u) { return at + u * kStreams + stream < held_to; }, state);
  }
  stream_keys<T, kWidth, kHeads, kClusterThreads>(segment, kv_head, base, 0, max(held_to, from), to, state);
  let_next_start();  // not before: the weights of what comes next would stand in the way
  if (adds) {
    rotate_eight<kWidth>(fresh, token, new_k);
    const Eight<T> k = round_eight<T, kWidth>(new_k), v = round_eight<T, kWidth>(new_v);
    add_key<T, kWidth, kHeads>(k, v, stream == 0, state);
    if (stream == 0) {
      const std::int64_t row = base + sequence.w;
      if (!fresh.unread) write_eight_floats(fresh.k + token * fresh.k_token + kv_head * fresh.k_head + 8 * lane, new_k);
      write_eights<T>(segment, row, kv_head, 8 * lane, k, v);
    }
  }
  join_streams<kWidth, kHeads>(state);
  if (threadIdx.x % kWarp < kLanes) {
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      if (lane == 0) largest[warp][g] = state.largest[g], total[warp][g] = state.total[g];
      write_eight_floats(&sums[warp][g][8 * lane], state.acc[g]);
    }
  }
  __syncthreads();
  if (threadIdx.x < kClusterWarps * kHeads) {
    const int own = threadIdx.x / kHeads, g = threadIdx.x % kHeads;
    float most = -INFINITY;
    for (int i = 0; i < kClusterWarps; ++i) most = fmaxf(most, largest[i][g]);
    shares[own][g] = relative(largest[own][g], most);
    if (own == 0) joined[0][g] = most;
  }
  __syncthreads();
  for (int item = threadIdx.x; item < kHeads * kWidth; item += kClusterThreads) {
    const int g = item / kWidth, d = item % kWidth;
    float value = 0.0f, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kClusterWarps; ++i) {
      value += sums[i][g][d] * shares[i][g];
      sum += total[i][g] * shares[i][g];
    }
    sums[0][g][d] = value;  // nobody else looks at this column
    if (d == 0) joined[1][g] = sum;
  }
  cluster_arrive();
  cluster_wait();
  // The parts are joined in their order: a stretch of the outputs a block.
  const int items = view.group * kWidth, own_from = items * part / view.parts, own_to = items * (part + 1) / view.parts;
  for (int item = own_from + static_cast<int>(threadIdx.x); item < own_to; item += kClusterThreads) {
    const int g = item / kWidth, d = item % kWidth, head = first_head + g;
    float most = -INFINITY, sum = 0.0f, value = 0.0f;
    float mosts[kMostClusterParts], totals[kMostClusterParts], values[kMostClusterParts];
    // All at once, without a branch between them: one by one each would take as long as all. Those that are not there are the last one again.
#pragma unroll
    for (int i = 0; i < kMostClusterParts; ++i) {
      const int block = min(i, view.parts - 1);
      mosts[i] = float_of_block(&joined[0][g], block), totals[i] = float_of_block(&joined[1][g], block), values[i] = float_of_block(&sums[0][g][d], block);
    }
#pragma unroll
    for (int i = 0; i < kMostClusterParts; ++i) most = fmaxf(most, mosts[i]);
#pragma unroll
    for (int i = 0; i < kMostClusterParts; ++i) {
      const float share = i < view.parts ? relative(mosts[i], most) : 0.0f;
      if (i < view.parts) sum += totals[i] * share, value += values[i] * share;
    }
    const Finish finish = finish_row(view, head, most, sum);
    view.out.at(token, head)[d] = value * finish.factor;
    store_rounded(view, (token * view.heads + head) * view.dv + d, value * finish.factor);
    if (d == 0 && view.lse.defined()) view.lse.at(token)[head] = finish.lse;
  }
  if (makes && part == 0 && !fresh.unread)  // everybody has read what was there
    for (int item = static_cast<int>(threadIdx.x); item < items; item += kClusterThreads)
      fresh.q[token * fresh.q_token + (first_head + item / kWidth) * fresh.q_head + item % kWidth] = rotated[item / kWidth][item % kWidth];
  cluster_arrive();  // the others may still be looking
  cluster_wait();
}

}  // namespace fathom::cuda
