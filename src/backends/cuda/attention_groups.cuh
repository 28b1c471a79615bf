// Attention of single tokens over caches of 16 or 8 bits in one launch: the blocks of a cluster share the keys of a key head, on tensor cores, and send each
// other what they found. Rotations of q and k and the writing of k and v to the cache, where they have just been asked for, are done on the way.
//
// What counts here is how long one thing waits for another, not bytes. So keys and values of earlier passes are on their way to shared memory before
// the launch's turn: a pass begins with a launch that waits for all before it (CudaOps::embed). Up to eight heads of a key head are rows 0 to 7 of
// operand A, rounded to the cache's type (bf16 where that has 8 bits), and rows 8 to 15 are what that rounding left, rounded in turn; so with the weights of the values. Every warp computes the weights of
// all keys by itself, and has some columns of the values. Sums go to the block of the cluster whose columns they are, which joins them.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/eight_bits.cuh"

namespace fathom::cuda {

inline constexpr int kGroupThreads = 256, kGroupWarps = kGroupThreads / kWarp;
inline constexpr int kGroupHeads = 8;  // of a key head, at most

/// Shared memory of a block: `stages` times `keys` (a multiple of 16) keys and values, and what else it needs.
template <int kWidth>
struct GroupRoom {
  static constexpr unsigned kRow = 2 * kWidth + 16;  // bytes; rows begin four banks apart
  unsigned at = 0;
  int keys = 0, stages = 0;
  __host__ __device__ unsigned k(int stage) const { return at + static_cast<unsigned>(2 * stage * keys) * kRow; }
  __host__ __device__ unsigned v(int stage) const { return k(stage) + static_cast<unsigned>(keys) * kRow; }
  __host__ __device__ unsigned q() const { return k(stages); }                       // [2 · kGroupHeads, kRow]: rounded; what is left
  __host__ __device__ unsigned fresh() const { return q() + 2 * kGroupHeads * kRow; }  // [2, kRow]: the token's own key and value
  __host__ __device__ unsigned scores() const { return fresh() + 2 * kRow; }         // [kGroupHeads, score_row()] f32
  __host__ __device__ unsigned score_row() const { return static_cast<unsigned>((keys + 31) / 32 * 32 + 8); }
  __host__ __device__ unsigned sums() const { return scores() + 4 * kGroupHeads * score_row(); }  // [parts, kGroupHeads, own columns] f32
  __host__ __device__ unsigned states() const { return sums() + 4 * kGroupHeads * kWidth; }       // [parts, kGroupHeads] of largest score, sum of weights
  __host__ __device__ unsigned end() const { return states() + 8 * kGroupHeads * kMostClusterParts; }
};

/// The keys of a block: [from, from + count) of the sequence; the last `fresh` of them (0 or 1) is the token's own.
struct GroupKeys {
  std::int64_t base = 0, token = 0;
  int from = 0, count = 0, fresh = 0, past = 0;
  __device__ GroupKeys(const AttentionView& view, const int4& sequence, int part) {  // slot, first_token, tokens, past
    base = static_cast<std::int64_t>(sequence.x) * view.segments[0].rows_per_slot, token = min(sequence.y, view.tokens - 1), past = sequence.w;
    from = static_cast<int>(static_cast<std::int64_t>(past) * part / view.parts);
    fresh = part == view.parts - 1 ? 1 : 0;
    count = static_cast<int>(static_cast<std::int64_t>(past) * (part + 1) / view.parts) - from + fresh;
  }
};

/// What a cache's elements are multiplied as.
template <class S>
struct GroupType { using T = S; };
template <>
struct GroupType<E4m3> { using T = __nv_bfloat16; };
template <>
struct GroupType<Int8> { using T = __nv_bfloat16; };

__device__ inline void store_sixteen_bytes(unsigned at, const uint4& bits) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w) : "memory");
}

/// Eight elements of row `row` of the cache.
template <class S>
__device__ inline const S* key_of(const SegmentView& segment, std::int64_t row, int kv_head, int column) { return reinterpret_cast<const S*>(segment.k) + row * segment.k_row + kv_head * segment.k_head + 8 * column; }
template <class S>
__device__ inline const S* value_of(const SegmentView& segment, std::int64_t row, int kv_head, int column) { return reinterpret_cast<const S*>(segment.v) + row * segment.v_row + kv_head * segment.v_head + 8 * column; }

/// The same on their way to shared memory, in the type that they are multiplied as: 16 bits as they lie, by themselves; 8 bits through registers.
template <class S>
struct EightOnTheWay {
  __device__ void begin(unsigned to, const S* from, bool here) const { copy_16(to, from, here); }
  __device__ void scale(const std::byte*, std::int64_t, std::int32_t, int) const {}
  __device__ void end(unsigned) const {}
};
template <class S>
  requires(sizeof(S) == 1)
struct EightOnTheWay<S> {
  uint2 codes;
  float factor;
  __device__ void begin(unsigned, const S* from, bool here) {
    codes = here ? __ldcg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
    factor = 1.0f;
  }
  /// Of rows that have one; only of rows that are there.
  __device__ void scale(const std::byte* data, std::int64_t at, std::int32_t scales, int head) {
    if constexpr (kRowScales<S>) factor = __ldcg(reinterpret_cast<const float*>(data + at + scales) + head);
  }
  __device__ void end(unsigned to) const {
    float x[8];
    widen_codes<S>(codes, x);
    if constexpr (kRowScales<S>) {
#pragma unroll
      for (float& value : x) value *= factor;
    }
    store_sixteen_bytes(to, pack_eight<__nv_bfloat16>(make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7])));
  }
};

/// Chunk `chunk` of the block's keys and values to its stage: keys below `have`; zeros behind the last one.
template <class S, int kWidth>
__device__ inline void copy_keys(const SegmentView& segment, const GroupKeys& keys, const GroupRoom<kWidth>& room, int kv_head, int chunk, int have) {
  constexpr int kChunks = kWidth / 8, kAtOnce = sizeof(S) == 1 ? 4 : 1;
  const int first = chunk * room.keys, padded = min(room.keys, (keys.count - first + 15) / 16 * 16), stage = chunk % room.stages;
  for (int base = static_cast<int>(threadIdx.x); base < padded * kChunks; base += kAtOnce * kGroupThreads) {
    EightOnTheWay<S> k[kAtOnce], v[kAtOnce];
    const auto each = [&](auto use) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int item = base + i * kGroupThreads, row = item / kChunks, column = item % kChunks, key = first + row;
        if (item >= padded * kChunks || (key >= have && key < keys.count)) continue;
        use(i, static_cast<unsigned>(row) * GroupRoom<kWidth>::kRow + static_cast<unsigned>(16 * column), key, column);
      }
    };
    each([&](int i, unsigned to, int key, int column) {
      const bool here = key < have;
      const std::int64_t from = keys.base + keys.from + (here ? key : 0);
      k[i].begin(room.k(stage) + to, key_of<S>(segment, from, kv_head, column), here);
      v[i].begin(room.v(stage) + to, value_of<S>(segment, from, kv_head, column), here);
      if (here) k[i].scale(segment.k, from * segment.k_row, segment.k_scales, kv_head), v[i].scale(segment.v, from * segment.v_row, segment.v_scales, kv_head);
    });
    each([&](int i, unsigned to, int, int) { k[i].end(room.k(stage) + to), v[i].end(room.v(stage) + to); });
  }
}

template <class T>
__device__ inline void store_in_room(unsigned at, T value) {
  unsigned short bits;
  memcpy(&bits, &value, sizeof bits);
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(bits) : "memory");
}

/// The pairs of q (and of the token's own key) that a thread rotates, rounds and keeps in f32.
template <class S, int kWidth>
struct GroupPairs {
  using T = typename GroupType<S>::T;
  static constexpr int kHalf = kWidth / 2, kTurns = ((kGroupHeads + 1) * kHalf + kGroupThreads - 1) / kGroupThreads;
  float first[kTurns], second[kTurns];
  static __device__ int row(int turn) { return (static_cast<int>(threadIdx.x) + turn * kGroupThreads) / kHalf; }
  static __device__ int first_dim(int turn, bool interleaved) {
    const int pair = static_cast<int>(threadIdx.x) % kHalf;
    return interleaved ? 2 * pair : pair;
  }
  /// `adds`: the token's own key too, as row kGroupHeads; its value goes beside it.
  __device__ void make(const AttentionView& view, const FreshRows& fresh, std::int64_t token, int kv_head, bool adds, unsigned q, unsigned k, unsigned v) {
    const bool makes = fresh.cosines != nullptr;
    const int apart = fresh.interleaved ? 1 : kHalf, pair = static_cast<int>(threadIdx.x) % kHalf;
    const std::int64_t angle = token * fresh.angle + pair;
    const float c = makes ? fresh.cosines[angle] : 1.0f, s = makes ? fresh.sines[angle] : 0.0f;
    const int column = static_cast<int>(threadIdx.x) - (kGroupThreads - kWidth);
    float value = 0.0f;
    if (adds && column >= 0) value = fresh.v[token * fresh.v_token + kv_head * fresh.v_head + column];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int g = row(turn), dim = first_dim(turn, fresh.interleaved);
      const float* from = nullptr;
      if (g < view.group) from = view.q.at(token, kv_head * view.group + g);
      else if (g == kGroupHeads && adds) from = fresh.k + token * fresh.k_token + kv_head * fresh.k_head;
      first[turn] = from != nullptr ? from[dim] : 0.0f, second[turn] = from != nullptr ? from[dim + apart] : 0.0f;
    }
    constexpr unsigned kRow = GroupRoom<kWidth>::kRow;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int g = row(turn);
      if (g > kGroupHeads || (g == kGroupHeads && !adds)) continue;
      if (makes) {
        const float a = first[turn], b = second[turn];
        first[turn] = rotated_first(a, b, c, s), second[turn] = rotated_second(a, b, c, s);
      }
      const unsigned dim = static_cast<unsigned>(2 * first_dim(turn, fresh.interleaved)), step = static_cast<unsigned>(2 * apart);
      if (g == kGroupHeads) {
        store_in_room(k + dim, as_cached(first[turn])), store_in_room(k + dim + step, as_cached(second[turn]));
        continue;
      }
      const T high = from_float<T>(first[turn]), other = from_float<T>(second[turn]);
      const unsigned to = q + static_cast<unsigned>(g) * kRow + dim;
      store_in_room(to, high), store_in_room(to + step, other);
      store_in_room(to + kGroupHeads * kRow, from_float<T>(first[turn] - to_float(high)));
      store_in_room(to + kGroupHeads * kRow + step, from_float<T>(second[turn] - to_float(other)));
    }
    if (adds && column >= 0) store_in_room(v + static_cast<unsigned>(2 * column), as_cached(value));
  }
  /// What only this block reads: the token's own key, as its op's result.
  __device__ void write_key(const FreshRows& fresh, std::int64_t token, int kv_head) const {
    write(fresh, fresh.k + token * fresh.k_token + kv_head * fresh.k_head, 0, kGroupHeads, kGroupHeads + 1);
  }
  /// When all blocks have read q.
  __device__ void write_q(const FreshRows& fresh, std::int64_t token, int first_head, int heads) const { write(fresh, fresh.q + token * fresh.q_token + first_head * fresh.q_head, fresh.q_head, 0, heads); }

 private:
  static __device__ T as_cached(float x) {
    if constexpr (kRowScales<S>) return from_float<T>(x);  // never asked for: such rows are made elsewhere
    else return from_float<T>(to_float(from_float<S>(x)));
  }
  __device__ void write(const FreshRows& fresh, float* to, std::int64_t step, int from, int end) const {
    const int apart = fresh.interleaved ? 1 : kHalf;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int g = row(turn), dim = first_dim(turn, fresh.interleaved);
      if (g < from || g >= end) continue;
      to[(g - from) * step + dim] = first[turn], to[(g - from) * step + dim + apart] = second[turn];
    }
  }
};

/// The token's own key and value, which lie in shared memory, to their row of the cache. Eight elements a thread.
template <class S, int kWidth>
__device__ inline void write_cache_rows(const SegmentView& segment, std::int64_t row, int kv_head, unsigned k, unsigned v) {
  constexpr int kChunks = kWidth / 8;
  const int item = static_cast<int>(threadIdx.x);
  if (item >= 2 * kChunks) return;
  const int column = item % kChunks;
  uint4 bits;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "r"((item < kChunks ? k : v) + static_cast<unsigned>(16 * column)) : "memory");
  S* const to = const_cast<S*>(item < kChunks ? key_of<S>(segment, row, kv_head, column) : value_of<S>(segment, row, kv_head, column));
  if constexpr (sizeof(S) == 2) {
    *reinterpret_cast<uint4*>(to) = bits;
  } else if constexpr (!kRowScales<S>) {  // they have been rounded
    float x[8];
    EightOf<tensor::WeightFormat::bf16>{bits}.widen(x);
    *reinterpret_cast<uint2*>(to) = pack_eight_codes(make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7]));
  }
}

/// Scores of `count` keys, relative to nothing yet: eight keys a warp.
template <class T, int kWidth>
__device__ inline void score_keys(const GroupRoom<kWidth>& room, int stage, int count, float scale) {
  constexpr unsigned kRow = GroupRoom<kWidth>::kRow;
  const int lane = threadIdx.x % kWarp;
  for (int first = 8 * (static_cast<int>(threadIdx.x) / kWarp); first < count; first += 8 * kGroupWarps) {
    float sums[2][4] = {};
#pragma unroll
    for (int step = 0; step < kWidth / 16; step += 2) {
      unsigned a[2][4], b[4];
      load_matrices(room.k(stage) + static_cast<unsigned>(first + lane % 8) * kRow + static_cast<unsigned>(2 * step + lane / 8) * 16, b);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrices(room.q() + static_cast<unsigned>(lane % 16) * kRow + static_cast<unsigned>(2 * (step + i) + lane / 16) * 16, a[i]);
        multiply_add<T>(sums[i], a[i], b[2 * i], b[2 * i + 1]);
      }
    }
    const float low = (sums[0][0] + sums[1][0]) + (sums[0][2] + sums[1][2]), high = (sums[0][1] + sums[1][1]) + (sums[0][3] + sums[1][3]);
    const unsigned to = room.scores() + 4 * (static_cast<unsigned>(lane / 4) * room.score_row() + static_cast<unsigned>(first + 2 * (lane % 4)));
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(low * scale), "f"(high * scale) : "memory");
  }
}

/// What a thread has of head lane / 4: the largest score so far, its share of the sum of weights, and 16 columns of the values a warp.
struct GroupState {
  float largest = -INFINITY, total = 0.0f;
  float acc[2][4] = {};
};

/// The weights of `count` keys, and the warp's columns of their values.
template <class T, int kWidth>
__device__ inline void mix_values(const GroupRoom<kWidth>& room, int stage, int count, GroupState& state) {
  constexpr unsigned kRow = GroupRoom<kWidth>::kRow;
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, own = 2 * (lane % 4), steps = (count + 15) / 16;
  const unsigned scores = room.scores() + 4 * (static_cast<unsigned>(lane / 4) * room.score_row() + static_cast<unsigned>(own));
  const auto read = [&](int key, float (&s)[2]) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(s[0]), "=f"(s[1]) : "r"(scores + 4 * static_cast<unsigned>(key)) : "memory");
    if (key + own >= count) s[0] = -INFINITY;
    if (key + own + 1 >= count) s[1] = -INFINITY;
  };
  float largest = state.largest;
  for (int key = 0; key < 16 * steps; key += 8) {
    float s[2];
    read(key, s);
    largest = fmaxf(largest, fmaxf(s[0], s[1]));
  }
#pragma unroll
  for (int step = 1; step < 4; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  const float shrink = relative(state.largest, largest);
  state.largest = largest;
  state.total *= shrink;
#pragma unroll
  for (int t = 0; t < 2; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) state.acc[t][i] *= shrink;
  for (int step = 0; step < steps; ++step) {
    unsigned a[4], b[4];
    if (16 * warp < kWidth) load_matrices_transposed(room.v(stage) + static_cast<unsigned>(16 * step + lane % 16) * kRow + static_cast<unsigned>(2 * warp + lane / 16) * 16, b);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float s[2];
      read(16 * step + 8 * half, s);
      const float p0 = relative(s[0], largest), p1 = relative(s[1], largest);
      state.total += p0 + p1;
      const T high0 = from_float<T>(p0), high1 = from_float<T>(p1);
      a[2 * half] = pack_two<T>(to_float(high0), to_float(high1));
      a[2 * half + 1] = pack_two<T>(p0 - to_float(high0), p1 - to_float(high1));
    }
    if (16 * warp >= kWidth) continue;
    multiply_add<T>(state.acc[0], a, b[0], b[1]);
    multiply_add<T>(state.acc[1], a, b[2], b[3]);
  }
}

/// Sends the block's sums to those whose columns they are, and its largest score and sum of weights to all.
template <int kWidth>
__device__ inline void send_sums(const GroupRoom<kWidth>& room, int part, int parts, const GroupState& state) {
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, head = lane / 4, own = kWidth / parts;
  float total = state.total;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  const unsigned row = static_cast<unsigned>(part * kGroupHeads + head);
  if (lane % 4 == 0)
    for (int to = warp; to < parts; to += kGroupWarps) store_in_block(room.states() + 8 * row, to, state.largest, total);
  if (16 * warp >= kWidth) return;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int dim = 16 * warp + 8 * t + 2 * (lane % 4);
    const unsigned at = room.sums() + 4 * (row * static_cast<unsigned>(own) + static_cast<unsigned>(dim % own));
    store_in_block(at, dim / own, state.acc[t][0] + state.acc[t][2], state.acc[t][1] + state.acc[t][3]);
  }
}

/// Joins the parts of the block's columns, four threads a number.
template <int kWidth>
__device__ inline void join_sums(const AttentionView& view, const float* sums, const float2* states, int part, std::int64_t token, int first_head) {
  const int own = kWidth / view.parts, items = view.group * own, quarter = threadIdx.x % 4;
  for (int base = 0; base < items; base += kGroupThreads / 4) {
    const int item = min(base + static_cast<int>(threadIdx.x) / 4, items - 1), g = item / own, d = part * own + item % own;
    float most = -INFINITY, sum = 0.0f, value = 0.0f;
    for (int i = quarter; i < view.parts; i += 4) most = fmaxf(most, states[i * kGroupHeads + g].x);
#pragma unroll
    for (int step = 1; step < 4; step *= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
    for (int i = quarter; i < view.parts; i += 4) {
      const float2 state = states[i * kGroupHeads + g];
      const float share = relative(state.x, most);
      sum += state.y * share;
      value += sums[(i * kGroupHeads + g) * own + item % own] * share;
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step), value += __shfl_xor_sync(kAllLanes, value, step);
    if (quarter != 0 || base + static_cast<int>(threadIdx.x) / 4 >= items) continue;
    const int head = first_head + g;
    const Finish finish = finish_row(view, head, most, sum);
    view.out.at(token, head)[d] = value * finish.factor;
    store_rounded(view, (token * view.heads + head) * view.dv + d, value * finish.factor);
    if (d == 0 && view.lse.defined()) view.lse.at(token)[head] = finish.lse;
  }
}

/// One segment of kind kCache. Grid: sequences (of one token each), key heads, parts: a cluster.
template <class S, int kWidth>
__global__ void __launch_bounds__(kGroupThreads) attend_groups(const __grid_constant__ AttentionView view, const __grid_constant__ FreshRows fresh, int room_keys, int stages) {
  using T = typename GroupType<S>::T;
  extern __shared__ __align__(16) unsigned char group_room[];
  cluster_arrive();  // nothing is sent to a block that has not begun
  const GroupRoom<kWidth> room{shared_address(group_room), room_keys, stages};
  const SegmentView& segment = view.segments[0];
  const int kv_head = blockIdx.y, part = blockIdx.z;
  const bool makes = !kRowScales<S> && fresh.cosines != nullptr;
  const int4 sequence = __ldcg(reinterpret_cast<const int4*>(view.table) + blockIdx.x);  // older than this pass, as the rows of the cache
  const GroupKeys keys(view, sequence, part);
  for (int chunk = 0; chunk < stages; ++chunk) copy_keys<S, kWidth>(segment, keys, room, kv_head, chunk, keys.count - keys.fresh), commit_copies();
  wait_for_previous();
  const int chunks = max((keys.count + room.keys - 1) / room.keys, 1), last = chunks - 1;
  const bool adds = makes && keys.fresh > 0 && sequence.z > 0, at_once = last < stages;
  const unsigned own_row = static_cast<unsigned>(keys.count - 1 - last * room.keys) * GroupRoom<kWidth>::kRow;
  const unsigned own_k = at_once ? room.k(last % stages) + own_row : room.fresh(), own_v = at_once ? room.v(last % stages) + own_row : room.fresh() + GroupRoom<kWidth>::kRow;
  if (!makes && keys.fresh > 0 && at_once && threadIdx.x < kWidth / 8) {  // the launch before may have written it
    const std::int64_t row = keys.base + keys.past;
    const int column = static_cast<int>(threadIdx.x);
    const unsigned to_k = own_k + static_cast<unsigned>(16 * column), to_v = own_v + static_cast<unsigned>(16 * column);
    EightOnTheWay<S> k, v;
    k.begin(to_k, key_of<S>(segment, row, kv_head, column), true), v.begin(to_v, value_of<S>(segment, row, kv_head, column), true);
    k.scale(segment.k, row * segment.k_row, segment.k_scales, kv_head), v.scale(segment.v, row * segment.v_row, segment.v_scales, kv_head);
    k.end(to_k), v.end(to_v);
  }
  if (!makes) commit_copies();
  GroupPairs<S, kWidth> pairs;
  pairs.make(view, fresh, keys.token, kv_head, adds, room.q(), own_k, own_v);
  GroupState state;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int count = min(keys.count - chunk * room.keys, room.keys), stage = chunk % stages;
    if (chunk == last) wait_copies<0>();
    else wait_copies<1>();
    if (chunk == last && adds && !at_once) {
      __syncthreads();
      if (threadIdx.x < 2 * kWidth / 8) {
        const bool value = threadIdx.x >= kWidth / 8;
        const unsigned column = 16 * (threadIdx.x % (kWidth / 8));
        move_16((value ? room.v(stage) : room.k(stage)) + own_row + column, (value ? own_v : own_k) + column);
      }
    }
    __syncthreads();
    if (chunk == last) let_next_start();  // not before: the weights of what comes next would stand in the way
    score_keys<T, kWidth>(room, stage, count, view.scale);
    __syncthreads();
    mix_values<T, kWidth>(room, stage, count, state);
    if (chunk + stages < chunks) {
      __syncthreads();
      copy_keys<S, kWidth>(segment, keys, room, kv_head, chunk + stages, makes ? keys.count - keys.fresh : keys.count);
    }
    commit_copies();
  }
  cluster_wait();
  send_sums<kWidth>(room, part, view.parts, state);
  __syncwarp();
  cluster_arrive();
  if (adds) {
    write_cache_rows<S, kWidth>(segment, keys.base + keys.past, kv_head, own_k, own_v);
    if (!fresh.unread) pairs.write_key(fresh, keys.token, kv_head);
  }
  __syncwarp();
  cluster_wait();
  if (sequence.z == 0) return;  // so for the whole cluster
  const auto* const sums = reinterpret_cast<const float*>(group_room + (room.sums() - room.at));
  join_sums<kWidth>(view, sums, reinterpret_cast<const float2*>(group_room + (room.states() - room.at)), part, keys.token, kv_head * view.group);
  if (makes && part == 0 && !fresh.unread) pairs.write_q(fresh, keys.token, kv_head * view.group, view.group);
}

}  // namespace fathom::cuda
