// Attention of single tokens whose few heads of a key head share each cache row as it streams by. Rotations of q and k and the writing of k and v to the
// cache, where they have just been asked for, are done on the way.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/fetch.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kStreamThreads = 128;

/// Eight consecutive elements of a cache row as they lie.
template <class T>
struct Eight { uint4 bits; };
template <>
struct Eight<float> { float4 low, high; };
template <>
struct Eight<E4m3> { uint2 bits; };
template <>
struct Eight<Int8> { uint2 bits; float scale; };

template <class T>
__device__ inline void read_eight(const std::byte* data, std::int64_t at, Eight<T>& out) { out.bits = __ldg(reinterpret_cast<const uint4*>(reinterpret_cast<const T*>(data) + at)); }
__device__ inline void read_eight(const std::byte* data, std::int64_t at, Eight<float>& out) {
  const auto* from = reinterpret_cast<const float4*>(reinterpret_cast<const float*>(data) + at);
  out.low = __ldg(from), out.high = __ldg(from + 1);
}
__device__ inline void read_eight(const std::byte* data, std::int64_t at, Eight<E4m3>& out) { out.bits = __ldg(reinterpret_cast<const uint2*>(data + at)); }
__device__ inline void widen_eight(const Eight<E4m3>& in, float (&out)[8]) { widen_codes<E4m3>(in.bits, out); }
__device__ inline void read_eight(const std::byte* data, std::int64_t at, Eight<Int8>& out) { out.bits = __ldg(reinterpret_cast<const uint2*>(data + at)); }
__device__ inline void widen_eight(const Eight<Int8>& in, float (&out)[8]) {
  widen_codes<Int8>(in.bits, out);
#pragma unroll
  for (float& x : out) x *= in.scale;
}
__device__ inline void widen_eight(const Eight<float>& in, float (&out)[8]) {
  out[0] = in.low.x, out[1] = in.low.y, out[2] = in.low.z, out[3] = in.low.w;
  out[4] = in.high.x, out[5] = in.high.y, out[6] = in.high.z, out[7] = in.high.w;
}
__device__ inline void widen_eight(const Eight<__nv_bfloat16>& in, float (&out)[8]) {
  const unsigned words[4] = {in.bits.x, in.bits.y, in.bits.z, in.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) out[2 * i] = __uint_as_float(words[i] << 16), out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
}
__device__ inline void widen_eight(const Eight<__half>& in, float (&out)[8]) {
  const unsigned words[4] = {in.bits.x, in.bits.y, in.bits.z, in.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] & 0xffffu)));
    out[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
  }
}

/// A stream is kWidth / 8 lanes that look at one key at a time with kHeads query heads; a lane has eight dimensions.
template <int kHeads>
struct StreamState {
  float q[kHeads][8], acc[kHeads][8];
  float largest[kHeads], total[kHeads];
};

/// q · k of kLanes lanes that have eight dimensions each. All lanes of a warp.
template <int kLanes>
__device__ inline float score_eight(const float (&q)[8], const float (&k)[8]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += q[i] * k[i];
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

/// kAhead keys, as far as they are `here`, for their streams.
template <class T, int kWidth, int kHeads, int kAhead, class Here>
__device__ inline void add_keys(const Eight<T> (&k)[kAhead], const Eight<T> (&v)[kAhead], Here here, StreamState<kHeads>& state) {
  float s[kAhead][kHeads];
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    float wide[8];
    widen_eight(k[u], wide);
#pragma unroll
    for (int g = 0; g < kHeads; ++g) s[u][g] = score_eight<kWidth / 8>(state.q[g], wide);
  }
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    float largest = state.largest[g];
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (here(u)) largest = fmaxf(largest, s[u][g]);
    const float shrink = relative(state.largest[g], largest);
    state.largest[g] = largest;
    state.total[g] *= shrink;
#pragma unroll
    for (int i = 0; i < 8; ++i) state.acc[g][i] *= shrink;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      s[u][g] = here(u) ? relative(s[u][g], largest) : 0.0f;
      state.total[g] += s[u][g];
    }
  }
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    float wide[8];
    widen_eight(v[u], wide);
#pragma unroll
    for (int g = 0; g < kHeads; ++g)
#pragma unroll
      for (int i = 0; i < 8; ++i) state.acc[g][i] += s[u][g] * wide[i];
  }
}

/// Keys and values on their way to shared memory, eight elements of each a thread; those of 8 bits are copied by every second thread for two. So no
/// more than neighbours wait for each other. All lanes of a warp.
template <class T, int kThreads>
struct CopiedKeys {
  static constexpr unsigned kBytes = 8 * sizeof(T), kBytesAKey = 2 * kThreads * kBytes;
  unsigned at;  // of this thread's first
  __device__ unsigned k(int place) const { return at + static_cast<unsigned>(place) * kBytesAKey; }
  __device__ unsigned v(int place) const { return k(place) + kThreads * kBytes; }
  __device__ void copy(unsigned to, const T* from) const {
    if (kBytes == 16 || threadIdx.x % 2 == 0) copy_16(to, from, true);
  }
  template <int kLeft>
  __device__ void wait() const {
    wait_copies<kLeft>();
    if constexpr (kBytes < 16) __syncwarp();
  }
  __device__ Eight<T> read(unsigned from) const {
    Eight<T> out;
    if constexpr (kBytes == 16) asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(out.bits.x), "=r"(out.bits.y), "=r"(out.bits.z), "=r"(out.bits.w) : "r"(from) : "memory");
    else asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(out.bits.x), "=r"(out.bits.y) : "r"(from) : "memory");
    return out;
  }
  /// kCount keys from place `first` on, as far as they are `here`, for their streams.
  template <int kWidth, int kHeads, int kCount, class Here>
  __device__ void add(int first, Here here, StreamState<kHeads>& state) const {
    Eight<T> own_k[kCount], own_v[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      own_k[u] = own_v[u] = Eight<T>{};
      if (here(u)) own_k[u] = read(k(first + u)), own_v[u] = read(v(first + u));
    }
    add_keys<T, kWidth, kHeads, kCount>(own_k, own_v, here, state);
  }
};

/// Whether keys come by ring_keys, and how deep its ring is; how many keys of each stream are at a time.
template <class T>
inline constexpr bool kRings = sizeof(T) < 4 && !kRowScales<T>;
template <class T>
inline constexpr int kRingStages = sizeof(T) == 2 ? 6 : 4;
inline constexpr int kRingKeys = 2;
template <class T>
inline constexpr unsigned kRingBytes = kRings<T> ? kRingStages<T> * kRingKeys * CopiedKeys<T, kStreamThreads>::kBytesAKey : 0;

/// As stream_keys, by a ring in shared memory that begins at `room`, kRingBytes.
template <class T, int kWidth, int kHeads>
__device__ inline void ring_keys(const SegmentView& segment, int head, std::int64_t base, std::int32_t first, int from, int to, unsigned room, StreamState<kHeads>& state) {
  constexpr int kLanes = kWidth / 8, kStreams = kStreamThreads / kLanes, kRound = kRingKeys * kStreams;
  const int lane = threadIdx.x % kLanes, stream = threadIdx.x / kLanes;
  const CopiedKeys<T, kStreamThreads> ring{room + threadIdx.x * CopiedKeys<T, kStreamThreads>::kBytes};
  const auto key_of = [&](int at, int u) { return at + u * kStreams + stream; };
  const auto copy = [&](int at, int stage) {
#pragma unroll
    for (int u = 0; u < kRingKeys; ++u) {
      const int key = key_of(at, u), place = stage * kRingKeys + u;
      if (key >= to) break;
      const std::int64_t row = row_of_name(segment, base, first + key);
      ring.copy(ring.k(place), reinterpret_cast<const T*>(segment.k) + row * segment.k_row + head * segment.k_head + 8 * lane);
      ring.copy(ring.v(place), reinterpret_cast<const T*>(segment.v) + row * segment.v_row + head * segment.v_head + 8 * lane);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kRingStages<T>; ++stage) copy(from + stage * kRound, stage);
  int stage = 0;
#pragma unroll 1
  for (int at = from; at < to; at += kRound) {
    ring.template wait<kRingStages<T> - 1>();
    ring.template add<kWidth, kHeads, kRingKeys>(stage * kRingKeys, [&](int u) { return key_of(at, u) < to; }, state);
    if constexpr (sizeof(T) == 1) __syncwarp();
    copy(at + kRingStages<T> * kRound, stage);
    stage = stage + 1 == kRingStages<T> ? 0 : stage + 1;
  }
  ring.template wait<0>();
}

/// Keys of a stream that stream_keys has on their way.
template <class T, int kHeads>
inline constexpr int kKeysAhead = kHeads > 4 ? 2 : sizeof(T) == 1 && kHeads <= 2 ? 8 : sizeof(T) == 4 ? 2 : 4;
/// Keys first + [from, to) of a segment, dealt out to the streams of the block.
template <class T, int kWidth, int kHeads, int kThreads = kStreamThreads, int kAhead = kKeysAhead<T, kHeads>>
__device__ inline void stream_keys(const SegmentView& segment, int head, std::int64_t base, std::int32_t first, int from, int to, StreamState<kHeads>& state) {
  constexpr int kLanes = kWidth / 8, kStreams = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes, stream = threadIdx.x / kLanes;
  const std::int64_t k_offset = head * segment.k_head + 8 * lane, v_offset = head * segment.v_head + 8 * lane;
#pragma unroll 1
  for (int at = from; at < to; at += kAhead * kStreams) {
    Eight<T> k[kAhead], v[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int key = at + u * kStreams + stream;
      k[u] = v[u] = Eight<T>{};
      if (key >= to) continue;
      const std::int64_t row = row_of_name(segment, base, first + key);
      read_eight(segment.k, row * segment.k_row + k_offset, k[u]);
      read_eight(segment.v, row * segment.v_row + v_offset, v[u]);
      if constexpr (kRowScales<T>) k[u].scale = key_scale<T>(segment, row, head), v[u].scale = value_scale<T>(segment, row, head);
    }
    add_keys<T, kWidth, kHeads, kAhead>(k, v, [&](int u) { return at + u * kStreams + stream < to; }, state);
  }
}

/// A token's angles, as far as a lane needs them that has dimensions 8 · lane … of a row.
template <int kWidth>
struct Rotation {
  static constexpr int kLanes = kWidth / 8;
  float cosines[8], sines[8];
  bool interleaved;
  __device__ Rotation(const FreshRows& fresh, std::int64_t token) : interleaved(fresh.interleaved) {
    const int lane = threadIdx.x % kLanes, first = interleaved ? 4 * lane : lane % (kLanes / 2) * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool here = i < 4 || !interleaved;
      cosines[i] = here ? fresh.cosines[token * fresh.angle + first + i] : 0.0f, sines[i] = here ? fresh.sines[token * fresh.angle + first + i] : 0.0f;
    }
  }
  /// All lanes of a warp.
  __device__ void rotate(float (&x)[8]) const {
    if (interleaved) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = rotated_first(a, b, cosines[i], sines[i]);
        x[2 * i + 1] = rotated_second(a, b, cosines[i], sines[i]);
      }
      return;
    }
    const int lane = threadIdx.x % kLanes;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, x[i], kLanes / 2);
      x[i] = lane < kLanes / 2 ? rotated_first(x[i], other, cosines[i], sines[i]) : rotated_second(other, x[i], cosines[i], sines[i]);
    }
  }
};
/// Rotates a row. All lanes of a warp.
template <int kWidth>
__device__ inline void rotate_eight(const FreshRows& fresh, std::int64_t token, float (&x)[8]) { Rotation<kWidth>(fresh, token).rotate(x); }

/// A lane's eight of a row of kWidth. All lanes of a warp, for what they share.
template <class T, int kWidth>
__device__ inline Eight<T> round_eight(const float (&x)[8]) {
  if constexpr (kRowScales<T>) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = larger(largest, fabsf(x[i]));
#pragma unroll
    for (int step = kWidth / 16; step > 0; step /= 2) largest = larger(largest, __shfl_xor_sync(kAllLanes, largest, step));
    Eight<T> out{make_uint2(0, 0), int8_scale_of(largest)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out.bits.x |= (static_cast<unsigned>(int8_code(x[i], out.scale)) & 255u) << (8 * i);
      out.bits.y |= (static_cast<unsigned>(int8_code(x[4 + i], out.scale)) & 255u) << (8 * i);
    }
    return out;
  }
  const float4 low = make_float4(x[0], x[1], x[2], x[3]), high = make_float4(x[4], x[5], x[6], x[7]);
  if constexpr (std::is_same_v<T, E4m3>) return {pack_eight_codes(low, high)};
  else if constexpr (!kRowScales<T>) return {pack_eight<T>(low, high)};
}
__device__ inline void write_eight_floats(float* to, const float (&x)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

/// Dimensions `dim` … of a row of the cache; with the first its scale.
template <class T>
__device__ inline void write_eights(const SegmentView& segment, std::int64_t row, int kv_head, int dim, const Eight<T>& k, const Eight<T>& v) {
  using Bits = decltype(k.bits);
  *reinterpret_cast<Bits*>(reinterpret_cast<T*>(const_cast<std::byte*>(segment.k)) + row * segment.k_row + kv_head * segment.k_head + dim) = k.bits;
  *reinterpret_cast<Bits*>(reinterpret_cast<T*>(const_cast<std::byte*>(segment.v)) + row * segment.v_row + kv_head * segment.v_head + dim) = v.bits;
  if constexpr (kRowScales<T>) {
    if (dim != 0) return;
    *reinterpret_cast<float*>(const_cast<std::byte*>(segment.k) + row * segment.k_row + segment.k_scales + 4 * kv_head) = k.scale;
    *reinterpret_cast<float*>(const_cast<std::byte*>(segment.v) + row * segment.v_row + segment.v_scales + 4 * kv_head) = v.scale;
  }
}

/// One key more for the stream `own`; the others look on.
template <class T, int kWidth, int kHeads>
__device__ inline void add_key(const Eight<T>& k, const Eight<T>& v, bool own, StreamState<kHeads>& state) {
  float wide[8], s[kHeads];
  widen_eight(k, wide);
#pragma unroll
  for (int g = 0; g < kHeads; ++g) s[g] = score_eight<kWidth / 8>(state.q[g], wide);
  if (!own) return;
  widen_eight(v, wide);
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    const float largest = fmaxf(state.largest[g], s[g]), shrink = relative(state.largest[g], largest), weight = relative(s[g], largest);
    state.largest[g] = largest;
    state.total[g] = state.total[g] * shrink + weight;
#pragma unroll
    for (int i = 0; i < 8; ++i) state.acc[g][i] = state.acc[g][i] * shrink + weight * wide[i];
  }
}

/// The token's own key and value, in T, of key head `kv_head`: written to the cache, and seen by the block's first stream. All lanes of a warp.
template <class T, int kWidth, int kHeads>
__device__ inline void add_fresh(const SegmentView& segment, const FreshRows& fresh, std::int64_t token, int kv_head, std::int64_t row, StreamState<kHeads>& state) {
  const int lane = threadIdx.x % (kWidth / 8);
  const bool own = threadIdx.x < kWidth / 8;
  float* const from = fresh.k + token * fresh.k_token + kv_head * fresh.k_head + 8 * lane;
  float k[8], v[8];
  read_eight_floats(from, k);
  read_eight_floats(fresh.v + token * fresh.v_token + kv_head * fresh.v_head + 8 * lane, v);
  __syncwarp();  // everybody has read what the first stream writes
  rotate_eight<kWidth>(fresh, token, k);
  const Eight<T> rounded_k = round_eight<T, kWidth>(k), rounded_v = round_eight<T, kWidth>(v);
  add_key<T, kWidth, kHeads>(rounded_k, rounded_v, own, state);
  if (!own) return;
  if (!fresh.unread) write_eight_floats(from, k);
  write_eights<T>(segment, row, kv_head, 8 * lane, rounded_k, rounded_v);
}

inline constexpr int kMostFreshHeads = 2;  // of a key head

/// Grid: sequences (of one token each), key heads, parts. Fresh rows: one part, one segment of kind kCache and at most 16 bits, kMostFreshHeads.
template <class T, int kWidth, int kHeads>
__global__ void __launch_bounds__(kStreamThreads) attend_streams(const __grid_constant__ AttentionView view, const __grid_constant__ FreshRows fresh) {
  after_previous();
  constexpr int kLanes = kWidth / 8, kStreams = kStreamThreads / kLanes;
  __shared__ float sums[kStreams][kHeads][kWidth];
  __shared__ float largest[kStreams][kHeads], total[kStreams][kHeads], shares[kStreams][kHeads];
  [[maybe_unused]] __shared__ float rotated[kHeads <= kMostFreshHeads ? kHeads : 1][kWidth];
  extern __shared__ __align__(16) unsigned char stream_ring[];
  const SequenceRow sequence = sequence_row(view.table, blockIdx.x);
  if (sequence.tokens == 0) return;
  const int kv_head = blockIdx.y, first_head = kv_head * view.group, part = blockIdx.z;
  const int lane = threadIdx.x % kLanes, stream = threadIdx.x / kLanes;
  const std::int64_t token = sequence.first_token;
  const bool makes = kHeads <= kMostFreshHeads && fresh.cosines != nullptr;
  StreamState<kHeads> state;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    state.largest[g] = -INFINITY;
    state.total[g] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      state.q[g][i] = g < view.group ? view.q.at(token, first_head + g)[8 * lane + i] : 0.0f;
      state.acc[g][i] = 0.0f;
    }
    if constexpr (kHeads <= kMostFreshHeads) {
      if (makes) rotate_eight<kWidth>(fresh, token, state.q[g]);
      if (makes && stream == 0) write_eight_floats(&rotated[g][8 * lane], state.q[g]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) state.q[g][i] *= view.scale;
  }
  if constexpr (kHeads <= kMostFreshHeads) {
    if (makes && threadIdx.x < kWarp) {
      const std::int64_t row = static_cast<std::int64_t>(sequence.slot) * view.segments[0].rows_per_slot + sequence.past;
      if constexpr (sizeof(T) < 4) add_fresh<T, kWidth, kHeads>(view.segments[0], fresh, token, kv_head, row, state);
    }
  }
  std::int32_t all = 0;
  for (int s = 0; s < view.segment_count; ++s) {
    const NameRange names = visible_names(view.segments[s], sequence.past, sequence.past);
    all += max(names.end - names.first, 0);
  }
  if (makes) --all;
  const int from = static_cast<int>(static_cast<std::int64_t>(all) * part / view.parts), to = static_cast<int>(static_cast<std::int64_t>(all) * (part + 1) / view.parts);
  int before = 0;
#pragma unroll 1
  for (int s = 0; s < view.segment_count; ++s) {
    const SegmentView& segment = view.segments[s];
    const NameRange names = visible_names(segment, sequence.past, sequence.past);
    const int count = max(names.end - names.first, 0), own = max(from - before, 0), end = min(to - before, count);
    const std::int64_t base = base_row(segment, view.table, blockIdx.x, sequence);
    before += count;
    if (own >= end) continue;
    if constexpr (kRings<T>) ring_keys<T, kWidth, kHeads>(segment, kv_head, base, names.first, own, end, shared_address(stream_ring), state);
    else stream_keys<T, kWidth, kHeads>(segment, kv_head, base, names.first, own, end, state);
  }
  // The streams of the block are joined in their order.
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    if (lane == 0) largest[stream][g] = state.largest[g], total[stream][g] = state.total[g];
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[stream][g][8 * lane + i] = state.acc[g][i];
  }
  __syncthreads();
  if (threadIdx.x < kStreams * kHeads) {
    const int own = threadIdx.x / kHeads, g = threadIdx.x % kHeads;
    float most = -INFINITY;
    for (int i = 0; i < kStreams; ++i) most = fmaxf(most, largest[i][g]);
    shares[own][g] = relative(largest[own][g], most);
  }
  __syncthreads();
  for (int item = threadIdx.x; item < view.group * kWidth; item += kStreamThreads) {
    const int g = item / kWidth, d = item % kWidth, head = first_head + g;
    if constexpr (kHeads <= kMostFreshHeads)
      if (makes && !fresh.unread) fresh.q[token * fresh.q_token + head * fresh.q_head + d] = rotated[g][d];  // everybody has read what was there
    float most = -INFINITY, sum = 0.0f, value = 0.0f;
    for (int i = 0; i < kStreams; ++i) {
      most = fmaxf(most, largest[i][g]);
      sum += total[i][g] * shares[i][g];
      value += sums[i][g][d] * shares[i][g];
    }
    if (view.parts == 1) {
      const Finish finish = finish_row(view, head, most, sum);
      view.out.at(token, head)[d] = value * finish.factor;
      store_rounded(view, (token * view.heads + head) * view.dv + d, value * finish.factor);
      if (d == 0 && view.lse.defined()) view.lse.at(token)[head] = finish.lse;
    } else {
      const std::int64_t at = (static_cast<std::int64_t>(part) * view.tokens + token) * view.heads + head;
      view.part_out[at * view.dv + d] = value;
      if (d == 0) view.part_state[2 * at] = most, view.part_state[2 * at + 1] = sum;
    }
  }
}

}  // namespace fathom::cuda
