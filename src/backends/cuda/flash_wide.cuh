// Attention of many tokens on Hopper's matrix units: tiles of 128 query rows against blocks of 128 keys, after "FlashAttention-3" (Shah et al.
// 2024). What goes in and out, and the tiles, are those of attention_flash.cuh. Two warpgroups have 64 rows each; while one's products
// run it makes weights of the next block's scores, and the other's products fill the gaps. The third warpgroup reads keys and values.
#pragma once
#include "backends/cuda/attention_flash.cuh"
#include "backends/cuda/wgmma.cuh"

namespace fathom::cuda {

inline constexpr int kHopperThreads = 3 * kGroupOfWarps, kHopperKeys = 128, kHopperValues = 128;
inline constexpr unsigned kHopperTile = kHopperKeys * 128;  // 128 rows of 64 columns
/// Shared memory: q, kPlaces blocks of keys, as many of values, and barriers: the first keys are there (kFirst), have been read (kScored); a block's
/// values and the next keys are there (kFull), have been read (kEmpty).
template <int kWidth>
struct HopperRoom {
  static constexpr int kPlaces = kWidth <= 128 ? 3 : 2;
  static constexpr unsigned kQueries = kWidth / 64 * kHopperTile, kKeys = kQueries, kValues = kHopperValues / 64 * kHopperTile;
  static constexpr unsigned keys(int place) { return kQueries + static_cast<unsigned>(place) * kKeys; }
  static constexpr unsigned values(int place) { return kQueries + kPlaces * kKeys + static_cast<unsigned>(place) * kValues; }
  static constexpr unsigned kFirst = kQueries + kPlaces * (kKeys + kValues), kScored = kFirst + 8, kFull = kScored + 8, kEmpty = kFull + 8 * kPlaces;
  static constexpr int kBytes = static_cast<int>(kEmpty) + 8 * kPlaces + 1024;  // 1024: to start at a multiple of it
};

/// Where a ring of places stands.
template <int kPlaces>
struct RingPlace {
  int place = 0;
  unsigned phase = 0;
  __device__ void next() {
    place = place + 1 == kPlaces ? 0 : place + 1;
    if (place == 0) phase ^= 1;
  }
};

#if defined(FATHOM_WGMMA_HERE)

/// The warpgroup's 64 rows.
template <class T, int kWidth>
__device__ inline void store_hopper_queries(const AttentionView& view, const FlashTile& tile, unsigned char* to) {
  constexpr int kChunks = kWidth / 8;
  const int thread = static_cast<int>(threadIdx.x) % kGroupOfWarps, first_row = static_cast<int>(threadIdx.x) / kGroupOfWarps * 64;
  const float scale = view.scale * kLog2E;
#pragma unroll 8
  for (int i = 0; i < 64 * kChunks / kGroupOfWarps; ++i) {
    const int item = i * kGroupOfWarps + thread, row = first_row + item / kChunks, chunk = item % kChunks;
    float4 low = make_float4(0, 0, 0, 0), high = low;
    const bool here = position_of(view, tile, row) >= 0 && 8 * chunk < view.width;
    const std::int64_t token = tile.tokens.sequence.first_token + tile.tokens.first + row / view.tile_heads;
    const int head = tile.first_head + row % view.tile_heads;
    unsigned char* at = to + wide_swizzled(row, chunk, kHopperTile);
    if (view.rounded_q != nullptr) {
      const auto* from = reinterpret_cast<const T*>(view.rounded_q) + (token * view.heads + head) * view.width + 8 * chunk;
      *reinterpret_cast<uint4*>(at) = here ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
      continue;
    }
    if (here) {
      const auto* from = reinterpret_cast<const float4*>(view.q.at(token, head) + 8 * chunk);
      low = from[0], high = from[1];
      low.x *= scale, low.y *= scale, low.z *= scale, low.w *= scale;
      high.x *= scale, high.y *= scale, high.z *= scale, high.w *= scale;
    }
    *reinterpret_cast<uint4*>(at) = pack_eight<T>(low, high);
  }
}

/// Blocks [0, blocks) of keys: what a thread of the third warpgroup copies of them.
template <class T, int kColumns, class Address>
__device__ inline void copy_hopper(unsigned to, std::int32_t first, std::int32_t end, int width, Address address) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupOfWarps, chunk = thread % 8, line = thread / 8;
#pragma unroll
  for (int i = 0; i < kHopperKeys / 16; ++i) {
    const std::int32_t name = first + line + 16 * i;
#pragma unroll
    for (int c = 0; c < kColumns / 64; ++c) {
      const int d = 64 * c + 8 * chunk;
      const bool here = name < end && d < width;
      copy_16(to + c * kHopperTile + wide_swizzled(line + 16 * i, chunk, 0), address(here ? name : first, here ? d : 0), here);
    }
  }
}

/// The same where rows hold whole tiles of 64 columns: `from` is this thread's chunk of its first row, which is `line`. Few instructions a copy, for
/// those that multiply want the issue slots.
template <class T>
__device__ inline void copy_hopper_tile(unsigned to, const T* from, std::int64_t stride, std::int32_t left) {
#pragma unroll
  for (int i = 0; i < kHopperKeys / 16; ++i, from += 16 * stride) copy_16(to + 2048 * i, from, 16 * i < left);
}
template <class T, int kColumns>
__device__ inline void copy_hopper_rows(unsigned to, const T* rows, std::int64_t stride, const T* shared, std::int64_t shared_stride, int own_columns, std::int64_t row,
                                        std::int32_t left) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupOfWarps, chunk = thread % 8, line = thread / 8;
  to += wide_swizzled(line, chunk, 0);
#pragma unroll
  for (int c = 0; c < kColumns / 64; ++c) {
    const bool own = 64 * c < own_columns;
    const T* from = own ? rows + (row + line) * stride + 64 * c : shared + (row + line) * shared_stride + 64 * c - own_columns;
    copy_hopper_tile(to + c * kHopperTile, from + 8 * chunk, own ? stride : shared_stride, left - line);
  }
}

template <class T, int kWidth>
__device__ inline void read_hopper(const AttentionView& view, const FlashTile& tile, std::int32_t first, int blocks, unsigned at) {
  using Room = HopperRoom<kWidth>;
  const SegmentView& segment = view.segments[0];
  const T *k = reinterpret_cast<const T*>(segment.k) + tile.kv_head * segment.k_head, *shared = reinterpret_cast<const T*>(segment.k_shared) - segment.dk;
  const T* v = reinterpret_cast<const T*>(segment.v) + tile.kv_head * segment.v_head;
  // Whole tiles of 64 columns, each of one tensor.
  const bool tiled = segment.dk % 64 == 0 && segment.dk + segment.dr == kWidth && view.dv == kHopperValues;
  const auto keys = [&](int block) {
    if (tiled) {
      const std::int32_t name = first + block * kHopperKeys;
      return copy_hopper_rows<T, kWidth>(at + Room::keys(block % Room::kPlaces), k, segment.k_row, shared + segment.dk, segment.shared_row, segment.dk, tile.base + name,
                                         tile.names.end - name);
    }
    copy_hopper<T, kWidth>(at + Room::keys(block % Room::kPlaces), first + block * kHopperKeys, tile.names.end, segment.dk + segment.dr, [&](std::int32_t name, int d) {
      const std::int64_t row = tile.base + name;
      return d < segment.dk ? k + row * segment.k_row + d : shared + row * segment.shared_row + d;
    });
  };
  const auto tell = [&](unsigned barrier) {
    publish_shared();
    arrive(barrier);
  };
  if (blocks == 0) return;
  keys(0);
  commit_copies();
  RingPlace<Room::kPlaces> ring;
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {  // values of the block and keys of the next
    if (block == Room::kPlaces - 1) wait_phase(at + Room::kScored, 0);
    if (block >= Room::kPlaces) wait_phase(at + Room::kEmpty + 8 * ring.place, ring.phase ^ 1);
    if (const std::int32_t name = first + block * kHopperKeys; tiled)
      copy_hopper_rows<T, kHopperValues>(at + Room::values(ring.place), v, segment.v_row, v, segment.v_row, kHopperValues, tile.base + name, tile.names.end - name);
    else
      copy_hopper<T, kHopperValues>(at + Room::values(ring.place), name, tile.names.end, view.dv, [&](std::int32_t at_name, int d) { return v + (tile.base + at_name) * segment.v_row + d; });
    if (block + 1 < blocks) keys(block + 1);
    commit_copies();
    if (block == 0) {
      wait_copies<1>();
      tell(at + Room::kFirst);
    }
    if constexpr (Room::kPlaces > 2) {  // the block before, so that two are on their way
      if (block > 0) {
        wait_copies<1>();
        tell(at + Room::kFull + 8 * (ring.place == 0 ? Room::kPlaces - 1 : ring.place - 1));
      }
      if (block + 1 == blocks) {
        wait_copies<0>();
        tell(at + Room::kFull + 8 * ring.place);
      }
    } else {
      wait_copies<0>();
      tell(at + Room::kFull + 8 * ring.place);
    }
    ring.next();
  }
}

template <class T, int kWidth>
__device__ inline void score_hopper(unsigned queries, unsigned keys, float (&s)[64]) {
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    const unsigned offset = step / 4 * kHopperTile + step % 4 * 32;
    multiply_128_by_rows<T>(s, by_rows(queries + offset), by_rows(keys + offset), step > 0);
  }
  commit_products();
}
template <class T>
__device__ inline void mix_hopper(unsigned values, const unsigned (&p)[8][4], float (&acc)[64]) {
#pragma unroll
  for (int step = 0; step < kHopperKeys / 16; ++step) multiply_128_by_columns<T>(acc, p[step], by_columns(values + step * 2048, kHopperTile), true);
  commit_products();
}

/// What computes these comes before the statements that follow, which a compiler might otherwise take first: waiting for products.
__device__ inline void compute_before(float (&s)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(s[i])::"memory");
}

/// Scores become weights where they are; keep: what sums up to now are multiplied with.
__device__ inline void soften_hopper(const AttentionView& view, const FlashTile& tile, std::int32_t first, bool whole, float (&s)[64], float (&largest_of)[2],
                                     float (&total)[2], float (&keep)[2]) {
  const int lane = threadIdx.x % kWarp, first_row = static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;
  if (!whole) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t position = position_of(view, tile, first_row + 8 * i);
      const NameRange names = position >= 0 ? visible_names(view.segments[0], tile.tokens.sequence.past, position) : NameRange{};
#pragma unroll
      for (int n = 0; n < kHopperKeys / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const std::int32_t name = first + 8 * n + 2 * (lane % 4) + j;
          if (name < names.first || name >= names.end) s[4 * n + 2 * i + j] = -INFINITY;
        }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float largest = largest_of[i];
#pragma unroll
    for (int n = 0; n < kHopperKeys / 8; ++n) largest = fmaxf(largest, fmaxf(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float origin = largest == -INFINITY ? 0.0f : largest;
    keep[i] = exp_of_2(largest_of[i] - origin);
    largest_of[i] = largest;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kHopperKeys / 8; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) sum += s[4 * n + 2 * i + j] = exp_of_2(s[4 * n + 2 * i + j] - origin);
    total[i] = total[i] * keep[i] + sum;
  }
}

template <class T>
__device__ inline void write_hopper(const AttentionView& view, const FlashTile& tile, int part, const float (&acc)[64], const float (&largest_of)[2], const float (&sums)[2]) {
  const int lane = threadIdx.x % kWarp, first_row = static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float total = sums[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int row = first_row + 8 * i;
    if (position_of(view, tile, row) < 0) continue;
    const int head = tile.first_head + row % view.tile_heads;
    const std::int64_t token = tile.tokens.sequence.first_token + tile.tokens.first + row / view.tile_heads;
    const std::int64_t at = (static_cast<std::int64_t>(part) * view.tokens + token) * view.heads + head;
    const float largest = largest_of[i] * kLn2;
    const bool whole = view.parts == 1;
    const Finish finish = whole ? finish_row(view, head, largest, total) : Finish{1.0f, 0.0f};
    if (lane % 4 == 0) {
      if (!whole) view.part_state[2 * at] = largest, view.part_state[2 * at + 1] = total;
      else if (view.lse.defined()) view.lse.at(token)[head] = finish.lse;
    }
    float* out = whole ? view.out.at(token, head) : view.part_out + at * view.dv;
    T* rounded = reinterpret_cast<T*>(view.rounded_out) + (token * view.heads + head) * view.dv;
#pragma unroll
    for (int n = 0; n < kHopperValues / 8; ++n)
      if (const int column = 8 * n + 2 * (lane % 4); column < view.dv) {
        const float2 made = make_float2(acc[4 * n + 2 * i] * finish.factor, acc[4 * n + 2 * i + 1] * finish.factor);
        *reinterpret_cast<float2*>(out + column) = made;
        if (whole && view.rounded_out != nullptr) *reinterpret_cast<unsigned*>(rounded + column) = pack_two<T>(made.x, made.y);
      }
  }
}

/// A warpgroup with 64 rows. whole(block): every token of the tile sees all of it.
template <class T, int kWidth, class Whole>
__device__ inline void attend_hopper(const AttentionView& view, const FlashTile& tile, std::int32_t first, int blocks, int part, unsigned at, Whole whole) {
  using Room = HopperRoom<kWidth>;
  const unsigned queries = at + static_cast<unsigned>(threadIdx.x) / kGroupOfWarps * 64 * 128;
  float acc[64], s[64], largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, keep[2];
  unsigned p[8][4];
#pragma unroll
  for (int i = 0; i < 64; ++i) acc[i] = 0.0f, s[i] = 0.0f;
  const auto pack = [&] {
#pragma unroll
    for (int step = 0; step < 8; ++step)
#pragma unroll
      for (int x = 0; x < 4; ++x) p[step][x] = pack_two<T>(s[8 * step + 2 * x], s[8 * step + 2 * x + 1]);
  };
  if (blocks > 0) {
    wait_phase(at + Room::kFirst, 0);
    begin_products();
    score_hopper<T, kWidth>(queries, at + Room::keys(0), s);
    wait_products<0>();
    arrive(at + Room::kScored);
    soften_hopper(view, tile, first, whole(0), s, largest, total, keep);
    pack();
  }
  RingPlace<Room::kPlaces> ring;  // of the block before
#pragma unroll 1
  for (int block = 1; block < blocks; ++block) {  // its scores and weights, and the output of the block before
    const int own = ring.place + 1 == Room::kPlaces ? 0 : ring.place + 1;
    wait_phase(at + Room::kFull + 8 * ring.place, ring.phase);
    begin_products();
    score_hopper<T, kWidth>(queries, at + Room::keys(own), s);
    mix_hopper<T>(at + Room::values(ring.place), p, acc);
    wait_products<1>();
    soften_hopper(view, tile, first + block * kHopperKeys, whole(block), s, largest, total, keep);
    compute_before(s);
    wait_products<0>();
    arrive(at + Room::kEmpty + 8 * ring.place);
    pack();
#pragma unroll
    for (int n = 0; n < 16; ++n) acc[4 * n] *= keep[0], acc[4 * n + 1] *= keep[0], acc[4 * n + 2] *= keep[1], acc[4 * n + 3] *= keep[1];
    ring.next();
  }
  if (blocks > 0) {
    wait_phase(at + Room::kFull + 8 * ring.place, ring.phase);
    begin_products();
    mix_hopper<T>(at + Room::values(ring.place), p, acc);
    wait_products<0>();
  }
  write_hopper<T>(view, tile, part, acc, largest, total);
}

#endif  // FATHOM_WGMMA_HERE

/// Grid: key heads × pieces of their heads, tiles (the later tokens first), parts.
template <class T, int kWidth>
__global__ void __launch_bounds__(kHopperThreads, 1) attend_flash_hopper(const __grid_constant__ AttentionView view) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ unsigned char hopper_room[];
  using Room = HopperRoom<kWidth>;
  const unsigned start = shared_address(hopper_room), at = (start + 1023) / 1024 * 1024;
  FlashTile tile;
  NameRange least, most;
  if (!find_flash_tile(view, tile, least, most)) return;
  const std::int64_t all = max((tile.names.end - tile.names.first + kHopperKeys - 1) / kHopperKeys, 0);
  const int part = blockIdx.z, from = static_cast<int>(all * part / view.parts), blocks = static_cast<int>(all * (part + 1) / view.parts) - from;
  const std::int32_t first = tile.names.first + from * kHopperKeys;
  if (threadIdx.x == 0) {
    init_barrier(at + Room::kFirst, kGroupOfWarps);
    init_barrier(at + Room::kScored, 2 * kGroupOfWarps);
    for (int place = 0; place < Room::kPlaces; ++place) init_barrier(at + Room::kFull + 8 * place, kGroupOfWarps), init_barrier(at + Room::kEmpty + 8 * place, 2 * kGroupOfWarps);
  }
  __syncthreads();
  if (threadIdx.x < 2 * kGroupOfWarps) {
    take_registers<232>();
    store_hopper_queries<T, kWidth>(view, tile, hopper_room + (at - start));
    publish_shared();
    wait_at(1 + static_cast<int>(threadIdx.x) / kGroupOfWarps, kGroupOfWarps);
    attend_hopper<T, kWidth>(view, tile, first, blocks, part, at, [&](int block) {
      const std::int32_t name = first + block * kHopperKeys;
      return name >= most.first && name + kHopperKeys <= least.end;
    });
  } else {
    give_registers<40>();
    read_hopper<T, kWidth>(view, tile, first, blocks, at);
  }
#endif
}

}  // namespace fathom::cuda
