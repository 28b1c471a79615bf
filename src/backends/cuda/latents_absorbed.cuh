// Latent attention of one token in one launch, from what the products of x left to what the up-projection takes: norm and rotation of the new
// latent and its row of the cache, rotation of q and its way into latent space, and attention. A cluster of blocks has four heads: a block carries
// 128 columns of one head's q into latent space and gives them to all blocks of the cluster, looks with the four heads at its share of the keys, and
// joins what all found of those columns. Nothing is read from another block's memory: what another needs is put there, and counted as it arrives. More heads a cluster: a group of multiprocessors that are a cluster gets some 700 GB/s, and weights and keys take longer.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/fetch.cuh"
#include "backends/cuda/fresh_latents.h"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kAbsorbedThreads = 512, kAbsorbedWarps = kAbsorbedThreads / kWarp, kAbsorbedBlocks = 16, kAbsorbedHeads = 4, kAbsorbedKeys = 32, kAbsorbedStages = 2;
inline constexpr int kBlocksAHead = kAbsorbedBlocks / kAbsorbedHeads, kAbsorbedColumns = kAbsorbedRank / kBlocksAHead, kAbsorbedChunks = kAbsorbedWidth / 8;
inline constexpr int kScoreSteps = 3, kScoreWarps = kAbsorbedWidth / 16 / kScoreSteps;  // steps of 16 columns
inline constexpr int kScoreStride = kAbsorbedKeys + 8;                                   // heads eight banks apart; rows of weights, of 16 bits, five chunks
static_assert(kScoreSteps * kScoreWarps * 16 == kAbsorbedWidth && kScoreWarps <= kAbsorbedWarps && kAbsorbedKeys == kWarp);

/// Tiles for matrix units have heads in rows 0 … 3, upper halves, and 8 … 11, lower halves; what the other rows hold touches nothing.
struct AbsorbedRoom {
  uint4 keys[kAbsorbedStages][kAbsorbedKeys * kAbsorbedChunks];  // swizzled rows of 16-bit elements
  uint4 queries[16 * kAbsorbedChunks];                           // the same: q · scale · log2(e)
  float parts[kAbsorbedBlocks][kAbsorbedColumns];                // of this block's columns, by block
  float sums[kAbsorbedWarps][kAbsorbedColumns];                  // of the way into latent space
  float scores[kScoreWarps][kAbsorbedHeads][kScoreStride];       // to be added up
  uint4 weights[16 * kScoreStride / 8];                          // of the keys, rows of kScoreStride
  uint4 own_query[2][kAbsorbedColumns / 8 + kAbsorbedRope / 8];  // this block's columns; rotated ones behind
  uint4 own_key[kAbsorbedChunks];                                // the new token's
  float2 states[kAbsorbedBlocks];                                // by block: the largest score of this block's head, the sum of exponentials
  float rotated[kAbsorbedRope], keep[kAbsorbedHeads];
  std::uint64_t queries_here, parts_here;                        // mbarriers of what other blocks put into `queries`; into `parts` and `states`
};
inline constexpr unsigned kBytesOfQueries = kAbsorbedHeads * 2 * kAbsorbedWidth * 2, kBytesOfParts = kAbsorbedBlocks * (kAbsorbedColumns * 4 + 8);

/// Puts 16 or eight bytes there, whose arrival `arrival` in the same block counts.
__device__ inline void put_16(unsigned there, const uint4& value, unsigned arrival) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(arrival) : "memory");
#endif
}
__device__ inline void put_8(unsigned there, float x, float y, unsigned arrival) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(there), "r"(__float_as_uint(x)), "r"(__float_as_uint(y)), "r"(arrival) : "memory");
#endif
}
/// By one thread, before anybody puts something here: `bytes` will arrive, once.
__device__ inline void expect_bytes(unsigned arrival, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrival) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrival), "r"(bytes) : "memory");
#endif
}
/// Until they have.
__device__ inline void wait_bytes(unsigned arrival) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned done = 0;
  while (done == 0)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(done) : "r"(arrival) : "memory");
#endif
}

/// Rows first … of the cache to a stage; zeros from `end` on, but for `fresh`, which is left out. Sixteen threads a key.
__device__ inline void copy_absorbed(const SegmentView& segment, std::int64_t base, int first, int end, int fresh, unsigned to) {
  const int key = static_cast<int>(threadIdx.x) / 16, turn = static_cast<int>(threadIdx.x) % 16;
  const bool here = first + key < end;
  if (first + key == fresh) return;
  const std::int64_t row = base + (here ? first + key : 0);
  const auto *own = reinterpret_cast<const __nv_bfloat16*>(segment.k) + row * segment.k_row, *rest = reinterpret_cast<const __nv_bfloat16*>(segment.k_shared) + row * segment.shared_row;
#pragma unroll
  for (int i = 0; i < kAbsorbedChunks / 16; ++i) copy_16(to + swizzled<kAbsorbedChunks>(key, 16 * i + turn), own + 8 * (16 * i + turn), here);
  if (turn < kAbsorbedRope / 8) copy_16(to + swizzled<kAbsorbedChunks>(key, kAbsorbedRank / 8 + turn), rest + 8 * turn, here);
}

/// A lane's pair of `row` (kAbsorbedRope of them), to be rotated.
struct RotatedPair {
  float a, b, cosine, sine;
  int first, second;
  __device__ void read(const FreshLatents& fresh, const float* row) {
    const int i = static_cast<int>(threadIdx.x) % kWarp;
    first = fresh.interleaved ? 2 * i : i, second = fresh.interleaved ? 2 * i + 1 : i + kAbsorbedRope / 2;
    a = row[first], b = row[second], cosine = fresh.cosines[i], sine = fresh.sines[i];
  }
  __device__ void write(float* to) const {
    to[first] = rotated_first(a, b, cosine, sine);
    to[second] = rotated_second(a, b, cosine, sine);
  }
};

/// The new token's row of keys, by one warp, which reads what it is made from before others need its time.
struct FreshKey {
  static constexpr int kOwn = kAbsorbedRank / kWarp / 8;
  float x[kOwn][8], weight[kOwn][8];
  RotatedPair pair;
  __device__ void read_norm(const FreshLatents& fresh) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) read_eight_of(fresh.norm, fresh.norm_type, 8 * (kWarp * i + static_cast<int>(threadIdx.x) % kWarp), weight[i]);
  }
  __device__ void read(const FreshLatents& fresh) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) read_eight_floats(fresh.kv + 8 * (kWarp * i + static_cast<int>(threadIdx.x) % kWarp), x[i]);
    pair.read(fresh, fresh.k_rope);
  }
  /// `writes`: to the cache as well.
  __device__ void make(float eps, const SegmentView& segment, std::int64_t row, bool writes, uint4* key, float* rotated) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    pair.write(rotated);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += x[i][j] * x[i][j];
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(kAbsorbedRank) + eps);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int chunk = kWarp * i + lane;
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][j] = x[i][j] * scale * weight[i][j];
      key[chunk] = pack_eight<__nv_bfloat16>(make_float4(x[i][0], x[i][1], x[i][2], x[i][3]), make_float4(x[i][4], x[i][5], x[i][6], x[i][7]));
      if (writes) *reinterpret_cast<uint4*>(const_cast<std::byte*>(segment.k) + 2 * (row * segment.k_row + 8 * chunk)) = key[chunk];
    }
    __syncwarp();
    if (lane >= kAbsorbedRope / 8) return;
    const auto* pairs = reinterpret_cast<const float4*>(rotated) + 2 * lane;
    key[kAbsorbedRank / 8 + lane] = pack_eight<__nv_bfloat16>(pairs[0], pairs[1]);
    if (writes) *reinterpret_cast<uint4*>(const_cast<std::byte*>(segment.k_shared) + 2 * (row * segment.shared_row + 8 * lane)) = key[kAbsorbedRank / 8 + lane];
  }
};

/// A thread's share of the way into latent space: four rows of the weight, eight of the block's columns.
struct CarryingWeights {
  static constexpr int kChunks = kAbsorbedColumns / 8, kRows = kAbsorbedNope * kChunks / kAbsorbedThreads;
  static_assert(kRows == 4 && kChunks == kWarp / 2);
  EightOf<tensor::WeightFormat::bf16> eight[kRows];
  __device__ void read(const std::byte* weight) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks, first = static_cast<int>(threadIdx.x) / kChunks * kRows;
#pragma unroll
    for (int r = 0; r < kRows; ++r) eight[r].read(weight, (first + r) * kAbsorbedRank + 8 * chunk);
  }
  __device__ void multiply(const float* q, float (&sums)[kAbsorbedWarps][kAbsorbedColumns]) const {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks, team = static_cast<int>(threadIdx.x) / kChunks, warp = threadIdx.x / kWarp;
    const float4 four = *reinterpret_cast<const float4*>(q + team * kRows);
    const float x[kRows] = {four.x, four.y, four.z, four.w};
    float acc[8] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float w[8];
      eight[r].widen(w);
#pragma unroll
      for (int j = 0; j < 8; ++j) acc[j] += x[r] * w[j];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) acc[j] += __shfl_xor_sync(kAllLanes, acc[j], kChunks);
    if (threadIdx.x % kWarp >= kChunks) return;
    auto* to = reinterpret_cast<float4*>(&sums[warp][8 * chunk]);
    to[0] = make_float4(acc[0], acc[1], acc[2], acc[3]);
    to[1] = make_float4(acc[4], acc[5], acc[6], acc[7]);
  }
};

/// The block's columns of its query, in two halves; the rotated ones too in a head's first block.
__device__ inline void finish_query(float factor, bool rotates, AbsorbedRoom& room) {
  const int two = static_cast<int>(threadIdx.x);
  if (two >= (kAbsorbedColumns + (rotates ? kAbsorbedRope : 0)) / 2) return;
  float2 x = make_float2(0, 0);
  if (2 * two < kAbsorbedColumns) {
#pragma unroll
    for (int warp = 0; warp < kAbsorbedWarps; ++warp) {
      const float2 part = reinterpret_cast<const float2*>(room.sums[warp])[two];
      x.x += part.x, x.y += part.y;
    }
  } else {
    x = reinterpret_cast<const float2*>(room.rotated)[two - kAbsorbedColumns / 2];
  }
  x.x *= factor, x.y *= factor;
  const unsigned high = pack_two<__nv_bfloat16>(x.x, x.y);
  reinterpret_cast<unsigned*>(room.own_query[0])[two] = high;
  reinterpret_cast<unsigned*>(room.own_query[1])[two] = pack_two<__nv_bfloat16>(x.x - __uint_as_float(high << 16), x.y - __uint_as_float(high & 0xffff0000u));
}

/// The same to all blocks of the cluster.
__device__ inline void give_query(int head, int stretch, AbsorbedRoom& room) {
  constexpr int kOwn = kAbsorbedColumns / 8, kRotated = kAbsorbedRope / 8;
  const unsigned queries = shared_address(room.queries), arrival = shared_address(&room.queries_here);
  const auto give = [&](int block, int half, int from, int chunk) {
    put_16(address_in(queries + swizzled<kAbsorbedChunks>(8 * half + head, chunk), block), room.own_query[half][from], address_in(arrival, block));
  };
  const int item = static_cast<int>(threadIdx.x), chunk = item % kOwn, half = item / kOwn % 2;
  static_assert(2 * kOwn * kAbsorbedBlocks == kAbsorbedThreads && 2 * kRotated * kAbsorbedBlocks <= kAbsorbedThreads);
  give(item / (2 * kOwn), half, chunk, kOwn * stretch + chunk);
  if (stretch == 0 && item < 2 * kRotated * kAbsorbedBlocks) give(item / (2 * kRotated), item / kRotated % 2, kOwn + item % kRotated, kAbsorbedRank / 8 + item % kRotated);
}

/// A warp's share of the columns of all scores.
__device__ inline void score_absorbed(AbsorbedRoom& room, unsigned stage) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (warp >= kScoreWarps) return;
  const unsigned queries = shared_address(room.queries);
  float sums[kAbsorbedKeys / 8][4] = {};
#pragma unroll
  for (int i = 0; i < kScoreSteps; ++i) {
    const int step = kScoreSteps * warp + i;
    unsigned a[4];
    load_a<kAbsorbedChunks>(queries, 0, step, a);
#pragma unroll
    for (int n = 0; n < kAbsorbedKeys / 8; n += 2) {
      unsigned b[4];
      load_b<kAbsorbedChunks>(stage, 8 * n, step, b);
      multiply_add<__nv_bfloat16>(sums[n], a, b[0], b[1]);
      multiply_add<__nv_bfloat16>(sums[n + 1], a, b[2], b[3]);
    }
  }
  if (lane / 4 >= kAbsorbedHeads) return;
#pragma unroll
  for (int n = 0; n < kAbsorbedKeys / 8; ++n)
    *reinterpret_cast<float2*>(&room.scores[warp][lane / 4][8 * n + 2 * (lane % 4)]) = make_float2(sums[n][0] + sums[n][2], sums[n][1] + sums[n][3]);
}

/// Softmax of a head by one warp, a lane a key.
struct AbsorbedState { float largest = -INFINITY, total = 0.0f; };

__device__ inline void weigh_absorbed(AbsorbedRoom& room, int keys, AbsorbedState& state) {
  const int lane = threadIdx.x % kWarp, head = threadIdx.x / kWarp;
  if (head >= kAbsorbedHeads) return;
  float score = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kScoreWarps; ++warp) score += room.scores[warp][head][lane];
  if (lane >= keys) score = -INFINITY;
  const float largest = fmaxf(state.largest, warp_max(score)), origin = largest == -INFINITY ? 0.0f : largest, keep = exp_of_2(state.largest - origin);
  const float weight = exp_of_2(score - origin);
  state.largest = largest;
  state.total = state.total * keep + warp_sum(weight);
  const unsigned high = pack_two<__nv_bfloat16>(weight, 0.0f), low = pack_two<__nv_bfloat16>(weight - __uint_as_float(high << 16), 0.0f);
  auto* rows = reinterpret_cast<unsigned short*>(room.weights);
  rows[head * kScoreStride + lane] = static_cast<unsigned short>(high);
  rows[(8 + head) * kScoreStride + lane] = static_cast<unsigned short>(low);
  if (lane == 0) room.keep[head] = keep;
}

/// A warp has 32 columns of the values; acc: of head lane / 4, upper and lower halves apart.
__device__ inline void mix_absorbed(const AbsorbedRoom& room, unsigned stage, float (&acc)[4][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float keep = room.keep[lane / 4 % kAbsorbedHeads];
  const unsigned weights = shared_address(room.weights);
#pragma unroll
  for (auto& tile : acc)
#pragma unroll
    for (float& x : tile) x *= keep;
#pragma unroll
  for (int step = 0; step < kAbsorbedKeys / 16; ++step) {
    unsigned a[4];
    load_matrices(weights + (lane % 16 * kScoreStride + 16 * step + lane / 16 * 8) * 2, a);
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      unsigned b[4];
      load_b_transposed<kAbsorbedChunks>(stage, 16 * step, 4 * warp + n, b);
      multiply_add<__nv_bfloat16>(acc[n], a, b[0], b[1]);
      multiply_add<__nv_bfloat16>(acc[n + 1], a, b[2], b[3]);
    }
  }
}

/// What this block found of a head's columns, to the block that has them.
__device__ inline void give_parts(const AbsorbedState& state, const float (&acc)[4][4], int rank, AbsorbedRoom& room) {
  constexpr int kWarpsAStretch = kAbsorbedColumns / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned arrival = shared_address(&room.parts_here);
  if (warp < kAbsorbedHeads && lane < kBlocksAHead)
    put_8(address_in(shared_address(&room.states[rank]), kBlocksAHead * warp + lane), state.largest, state.total, address_in(arrival, kBlocksAHead * warp + lane));
  if (lane / 4 >= kAbsorbedHeads) return;
  const int block = kBlocksAHead * (lane / 4) + warp / kWarpsAStretch;
  const unsigned own = shared_address(&room.parts[rank][kWarp * (warp % kWarpsAStretch) + 2 * (lane % 4)]), there = address_in(own, block), counts = address_in(arrival, block);
#pragma unroll
  for (int n = 0; n < 4; ++n) put_8(there + 32 * n, acc[n][0] + acc[n][2], acc[n][1] + acc[n][3], counts);
}

/// The block's columns of its head. Each warp looks at all blocks' states, one a lane.
__device__ inline void join_absorbed(const AttentionView& view, int head, int stretch, const AbsorbedRoom& room) {
  if (threadIdx.x >= kAbsorbedColumns) return;
  const int lane = threadIdx.x % kWarp;
  const float2 state = lane < kAbsorbedBlocks ? room.states[lane] : make_float2(-INFINITY, 0.0f);
  const float most = warp_max(state.x), share = exp_of_2(state.x - most), total = warp_sum(state.y * share);
  float value = 0.0f;
#pragma unroll
  for (int i = 0; i < kAbsorbedBlocks; ++i) value += room.parts[i][threadIdx.x] * __shfl_sync(kAllLanes, share, i);
  const Finish finish = finish_row(view, head, most * kLn2, total);
  view.out.at(0, head)[kAbsorbedColumns * stretch + threadIdx.x] = value * finish.factor;
  if (stretch == 0 && threadIdx.x == 0 && view.lse.defined()) view.lse.at(0)[head] = finish.lse;
}

/// One segment of kind kCache, bf16, one sequence of one token. Grid: a cluster of kAbsorbedBlocks for every kAbsorbedHeads heads.
static __global__ void __launch_bounds__(kAbsorbedThreads, 1) attend_absorbed(const __grid_constant__ AttentionView view, const __grid_constant__ FreshLatents fresh) {
  extern __shared__ __align__(128) unsigned char absorbed_room[];
  AbsorbedRoom& room = *reinterpret_cast<AbsorbedRoom*>(absorbed_room);
  if (threadIdx.x == 0) expect_bytes(shared_address(&room.queries_here), kBytesOfQueries), expect_bytes(shared_address(&room.parts_here), kBytesOfParts);
  cluster_arrive();  // so that nobody writes where a block has not begun
  const auto* row_of_table = reinterpret_cast<const int4*>(view.table);
  const int4 before = __ldcg(row_of_table);
  const int rank = cluster_rank(), own_head = rank / kBlocksAHead, stretch = rank % kBlocksAHead, warp = threadIdx.x / kWarp;
  const int head = static_cast<int>(blockIdx.x) / kAbsorbedBlocks * kAbsorbedHeads + own_head;
  const bool last = rank == kAbsorbedBlocks - 1;  // has the new token's key
  const SegmentView& segment = view.segments[0];
  const unsigned stages = shared_address(room.keys);
  constexpr unsigned kStageBytes = sizeof room.keys[0];
  CarryingWeights weights;
  weights.read(fresh.weight + head * fresh.weight_head + 2 * kAbsorbedColumns * stretch);
  int from = 0, to = 0;
  std::int64_t base = 0;
  const auto copy_stage = [&](int past, int first, unsigned stage) {
    copy_absorbed(segment, base, first, min(to, past), last ? past : -1, stage);
    commit_copies();
  };
  const auto copy = [&](const int4& sequence) {
    const std::int64_t all = sequence.w + 1;
    from = static_cast<int>(all * rank / kAbsorbedBlocks), to = static_cast<int>(all * (rank + 1) / kAbsorbedBlocks);
    base = static_cast<std::int64_t>(sequence.x) * segment.rows_per_slot;
#pragma unroll
    for (int stage = 0; stage < kAbsorbedStages; ++stage) copy_stage(sequence.w, from + stage * kAbsorbedKeys, stages + stage * kStageBytes);
  };
  // Keys of earlier passes begin to come. The table may still be the last pass's: then others come once more.
  const bool early = before.x >= 0 && before.w >= 0 && before.w < segment.rows_per_slot && (static_cast<std::int64_t>(before.x) + 1) * segment.rows_per_slot <= fresh.cache_rows;
  if (early) copy(before);
  FreshKey key;
  RotatedPair pair;
  const bool makes_key = last && warp == kAbsorbedWarps - 1, rotates = stretch == 0 && warp == kAbsorbedWarps - 2;
  if (makes_key) key.read_norm(fresh);
  wait_for_previous();
  const int4 sequence = __ldcg(row_of_table);  // slot, first_token, tokens, past
  if (sequence.z == 0) {                       // so for all blocks
    wait_copies<0>();
    cluster_wait();
    return;
  }
  float* q = fresh.q + head * fresh.q_head;
  if (rotates) pair.read(fresh, q + kAbsorbedNope);
  weights.multiply(q, room.sums);
  if (rotates) pair.write(room.rotated);
  if (makes_key) key.read(fresh);
  let_next_start();  // not before: the weights of what comes next would stand in the way
  if (!early || sequence.x != before.x || sequence.w != before.w) {
    wait_copies<0>();
    copy(sequence);
  }
  __syncthreads();
  finish_query(view.scale * kLog2E, stretch == 0, room);
  if (stretch == 0 && threadIdx.x >= kAbsorbedThreads - kAbsorbedRope) {
    const int at = static_cast<int>(threadIdx.x) - (kAbsorbedThreads - kAbsorbedRope);
    q[kAbsorbedNope + at] = room.rotated[at];
  }
  __syncthreads();
  cluster_wait();
  give_query(own_head, stretch, room);
  if (makes_key) key.make(fresh.eps, segment, base + sequence.w, blockIdx.x < kAbsorbedBlocks, room.own_key, &room.scores[0][0][0]);
  wait_bytes(shared_address(&room.queries_here));
  __syncthreads();  // the new key is there

  AbsorbedState state;
  float acc[4][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int at = from; at < to; at += kAbsorbedKeys) {
    const unsigned tile = stages + stage * kStageBytes;
    wait_copies<kAbsorbedStages - 1>();
    if (last && sequence.w < at + kAbsorbedKeys && threadIdx.x < kAbsorbedChunks)
      room.keys[stage][swizzled<kAbsorbedChunks>(sequence.w - at, static_cast<int>(threadIdx.x)) / 16] = room.own_key[threadIdx.x];
    __syncthreads();
    score_absorbed(room, tile);
    __syncthreads();
    weigh_absorbed(room, to - at, state);
    __syncthreads();
    mix_absorbed(room, tile, acc);
    if (at + kAbsorbedKeys < to) {
      __syncthreads();  // the stage has been read
      copy_stage(sequence.w, at + kAbsorbedStages * kAbsorbedKeys, tile);
    } else {
      commit_copies();
    }
    stage ^= 1;
  }
  wait_copies<0>();
  give_parts(state, acc, rank, room);
  wait_bytes(shared_address(&room.parts_here));
  join_absorbed(view, head, stretch, room);
}

}  // namespace fathom::cuda
