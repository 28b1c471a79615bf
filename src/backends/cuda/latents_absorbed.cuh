// Latent attention of one token in one launch, from what the products of x left to what the up-projection takes: norm and rotation of the new
// latent and its row of the cache, rotation of q and its way into latent space, and attention. The blocks of a cluster are the heads:
// block h carries q of head h into latent space and gives it to all, looks with all heads at its share of the keys, and joins what all found
// for head h. Nothing is read from another block's memory: what another needs is put there, and a barrier of the cluster says that it is.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/fetch.cuh"
#include "backends/cuda/fresh_latents.h"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kAbsorbedThreads = 512, kAbsorbedWarps = kAbsorbedThreads / kWarp, kAbsorbedHeads = 16, kAbsorbedKeys = 32, kAbsorbedStages = 2;
inline constexpr int kAbsorbedChunks = kAbsorbedWidth / 8, kScoreStride = kAbsorbedKeys + 8;

struct AbsorbedRoom {
  uint4 keys[kAbsorbedStages][kAbsorbedKeys * kAbsorbedChunks];   // swizzled rows of 16-bit elements
  uint4 queries[2][kAbsorbedHeads * kAbsorbedChunks];             // the same: upper and lower halves of q · scale · log2(e)
  float parts[kAbsorbedHeads][kAbsorbedRank];                     // of this block's head, by block; first: sums of the way into latent space
  float scores[4][kAbsorbedHeads][kScoreStride];                  // to be added up
  uint4 own_query[2][kAbsorbedChunks], own_key[kAbsorbedChunks];  // of this block's head; of the new token
  float2 states[kAbsorbedHeads];                                  // by block: the largest score of this block's head, the sum of exponentials
  float rotated[kAbsorbedRope];
};

/// The address, in the shared memory of block `rank` of the cluster, of what lies at `at` in this block's.
__device__ inline unsigned address_in_block(unsigned at, int rank) {
  unsigned there = at;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
#endif
  return there;
}
__device__ inline void put_16(unsigned there, const uint4& value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(there), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
#endif
}
__device__ inline void put_8(unsigned there, float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(x), "f"(y) : "memory");
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

/// Both elements of a lane's pair of `row` (kAbsorbedRope of them), rotated, in the same places.
__device__ inline void rotate_pair(const FreshLatents& fresh, float* row, float* to) {
  const int i = static_cast<int>(threadIdx.x) % kWarp, first = fresh.interleaved ? 2 * i : i, second = fresh.interleaved ? 2 * i + 1 : i + kAbsorbedRope / 2;
  const float a = row[first], b = row[second], c = fresh.cosines[i], s = fresh.sines[i];
  row[first] = to[first] = rotated_first(a, b, c, s);
  row[second] = to[second] = rotated_second(a, b, c, s);
}

/// The new token's row of the cache, by one warp, there and in `key`.
__device__ inline void make_key(const FreshLatents& fresh, const SegmentView& segment, std::int64_t row, uint4* key, float* rotated) {
  constexpr int kOwn = kAbsorbedRank / kWarp / 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float x[kOwn][8], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) read_eight_floats(fresh.kv + 8 * (kWarp * i + lane), x[i]);
  rotate_pair(fresh, fresh.k_rope, rotated);
#pragma unroll
  for (int i = 0; i < kOwn; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += x[i][j] * x[i][j];
  const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(kAbsorbedRank) + fresh.eps);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int chunk = kWarp * i + lane;
    float weight[8];
    read_eight_of(fresh.norm, fresh.norm_type, 8 * chunk, weight);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[i][j] = x[i][j] * scale * weight[j];
    const float4 low = make_float4(x[i][0], x[i][1], x[i][2], x[i][3]), high = make_float4(x[i][4], x[i][5], x[i][6], x[i][7]);
    reinterpret_cast<float4*>(fresh.latent)[2 * chunk] = low;
    reinterpret_cast<float4*>(fresh.latent)[2 * chunk + 1] = high;
    key[chunk] = pack_eight<__nv_bfloat16>(low, high);
    *reinterpret_cast<uint4*>(const_cast<std::byte*>(segment.k) + 2 * (row * segment.k_row + 8 * chunk)) = key[chunk];
  }
  __syncwarp();
  if (lane >= kAbsorbedRope / 8) return;
  const auto* pairs = reinterpret_cast<const float4*>(rotated) + 2 * lane;
  key[kAbsorbedRank / 8 + lane] = pack_eight<__nv_bfloat16>(pairs[0], pairs[1]);
  *reinterpret_cast<uint4*>(const_cast<std::byte*>(segment.k_shared) + 2 * (row * segment.shared_row + 8 * lane)) = key[kAbsorbedRank / 8 + lane];
}

/// A thread's share of the way into latent space: 16 rows of the weight, eight columns.
struct CarryingWeights {
  static constexpr int kRows = kAbsorbedNope * (kAbsorbedRank / 8) / kAbsorbedThreads;
  EightOf<tensor::WeightFormat::bf16> eight[kRows];
  __device__ void read(const std::byte* weight) {
    const int chunk = static_cast<int>(threadIdx.x) % (kAbsorbedRank / 8), first = static_cast<int>(threadIdx.x) / (kAbsorbedRank / 8) * kRows;
#pragma unroll
    for (int r = 0; r < kRows; ++r) eight[r].read(weight, (first + r) * kAbsorbedRank + 8 * chunk);
  }
  __device__ void multiply(const float* q, float (&sums)[kAbsorbedHeads][kAbsorbedRank]) const {
    const int chunk = static_cast<int>(threadIdx.x) % (kAbsorbedRank / 8), team = static_cast<int>(threadIdx.x) / (kAbsorbedRank / 8);
    float acc[8] = {};
#pragma unroll
    for (int r = 0; r < kRows; r += 8) {
      float x[8];
      read_eight_floats(q + team * kRows + r, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float w[8];
        eight[r + i].widen(w);
#pragma unroll
        for (int j = 0; j < 8; ++j) acc[j] += x[i] * w[j];
      }
    }
    auto* to = reinterpret_cast<float4*>(&sums[team][8 * chunk]);
    to[0] = make_float4(acc[0], acc[1], acc[2], acc[3]);
    to[1] = make_float4(acc[4], acc[5], acc[6], acc[7]);
  }
};
inline constexpr int kCarryingTeams = kAbsorbedThreads / (kAbsorbedRank / 8);

/// Four columns of the block's query: written as its contract says, and in two halves.
__device__ inline void finish_query(const FreshLatents& fresh, int head, float factor, AbsorbedRoom& room) {
  const int four = static_cast<int>(threadIdx.x);
  if (four >= kAbsorbedWidth / 4) return;
  float4 x = make_float4(0, 0, 0, 0);
  if (4 * four < kAbsorbedRank) {
#pragma unroll
    for (int team = 0; team < kCarryingTeams; ++team) {
      const float4 part = reinterpret_cast<const float4*>(room.parts[team])[four];
      x.x += part.x, x.y += part.y, x.z += part.z, x.w += part.w;
    }
  } else {
    x = reinterpret_cast<const float4*>(room.rotated)[four - kAbsorbedRank / 4];
  }
  reinterpret_cast<float4*>(fresh.carried + head * fresh.carried_head)[four] = x;
  x.x *= factor, x.y *= factor, x.z *= factor, x.w *= factor;
  const uint2 high = make_uint2(pack_two<__nv_bfloat16>(x.x, x.y), pack_two<__nv_bfloat16>(x.z, x.w));
  const uint2 low = make_uint2(pack_two<__nv_bfloat16>(x.x - __uint_as_float(high.x << 16), x.y - __uint_as_float(high.x & 0xffff0000u)),
                               pack_two<__nv_bfloat16>(x.z - __uint_as_float(high.y << 16), x.w - __uint_as_float(high.y & 0xffff0000u)));
  reinterpret_cast<uint2*>(room.own_query[0])[four] = high;
  reinterpret_cast<uint2*>(room.own_query[1])[four] = low;
}

/// The block's query to all blocks.
__device__ inline void give_query(int head, int blocks, AbsorbedRoom& room) {
  constexpr int kItems = 2 * kAbsorbedChunks;
  const unsigned queries = shared_address(room.queries);
  for (int item = static_cast<int>(threadIdx.x); item < blocks * kItems; item += kAbsorbedThreads) {
    const int block = item / kItems, half = item % kItems / kAbsorbedChunks, chunk = item % kAbsorbedChunks;
    put_16(address_in_block(queries + half * kAbsorbedHeads * kAbsorbedChunks * 16 + swizzled<kAbsorbedChunks>(head, chunk), block), room.own_query[half][chunk]);
  }
}

/// A warp's quarter of the scores of eight keys: half of the columns, one half of q.
__device__ inline void score_absorbed(AbsorbedRoom& room, unsigned stage) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tile = warp % 4, quarter = warp / 4;
  constexpr int kSteps = kAbsorbedWidth / 16 / 2;
  const unsigned queries = shared_address(room.queries) + quarter / 2 * kAbsorbedHeads * kAbsorbedChunks * 16;
  const int first = quarter % 2 * kSteps;
  float sums[3][4] = {};
#pragma unroll
  for (int step = 0; step < kSteps; step += 2) {
    unsigned a[2][4], b[4];
    load_a<kAbsorbedChunks>(queries, 0, first + step, a[0]);
    load_a<kAbsorbedChunks>(queries, 0, first + step + 1, a[1]);
    load_matrices(stage + swizzled<kAbsorbedChunks>(8 * tile + lane % 8, 2 * (first + step) + lane / 8), b);
    multiply_add<__nv_bfloat16>(sums[step % 3], a[0], b[0], b[1]);
    multiply_add<__nv_bfloat16>(sums[(step + 1) % 3], a[1], b[2], b[3]);
  }
  static_assert(kSteps % 2 == 0);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    *reinterpret_cast<float2*>(&room.scores[quarter][8 * i + lane / 4][8 * tile + 2 * (lane % 4)]) =
        make_float2(sums[0][2 * i] + sums[1][2 * i] + sums[2][2 * i], sums[0][2 * i + 1] + sums[1][2 * i + 1] + sums[2][2 * i + 1]);
}

/// Rows lane / 4 + 8·i of the heads; a warp has 32 columns of the values. Largest and total are every warp's.
struct AbsorbedState {
  float acc[4][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};  // total: of this thread's keys alone
};

__device__ inline void mix_absorbed(const AbsorbedRoom& room, unsigned stage, int keys, AbsorbedState& state) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float s[2][2][4];  // row, step, columns 2·(lane % 4) + {0, 1, 8, 9}
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int step = 0; step < 2; ++step)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = 16 * step + 8 * j + 2 * (lane % 4);
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int quarter = 0; quarter < 4; ++quarter) {
          const float2 part = *reinterpret_cast<const float2*>(&room.scores[quarter][8 * i + lane / 4][column]);
          sum.x += part.x, sum.y += part.y;
        }
        s[i][step][2 * j] = column < keys ? sum.x : -INFINITY;
        s[i][step][2 * j + 1] = column + 1 < keys ? sum.y : -INFINITY;
      }
  unsigned high[2][4], low[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float largest = state.largest[i];
#pragma unroll
    for (int x = 0; x < 8; ++x) largest = fmaxf(largest, s[i][x / 4][x % 4]);
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float origin = largest == -INFINITY ? 0.0f : largest, keep = exp_of_2(state.largest[i] - origin);
    state.largest[i] = largest;
    state.total[i] *= keep;
#pragma unroll
    for (auto& tile : state.acc) tile[2 * i] *= keep, tile[2 * i + 1] *= keep;
#pragma unroll
    for (int step = 0; step < 2; ++step)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float p0 = exp_of_2(s[i][step][2 * j] - origin), p1 = exp_of_2(s[i][step][2 * j + 1] - origin);
        state.total[i] += p0 + p1;
        const unsigned upper = high[step][2 * j + i] = pack_two<__nv_bfloat16>(p0, p1);
        low[step][2 * j + i] = pack_two<__nv_bfloat16>(p0 - __uint_as_float(upper << 16), p1 - __uint_as_float(upper & 0xffff0000u));
      }
  }
#pragma unroll
  for (int step = 0; step < 2; ++step)
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      unsigned b[4];
      load_b_transposed<kAbsorbedChunks>(stage, 16 * step, 4 * warp + n, b);
      multiply_add<__nv_bfloat16>(state.acc[n], high[step], b[0], b[1]);
      multiply_add<__nv_bfloat16>(state.acc[n + 1], high[step], b[2], b[3]);
      multiply_add<__nv_bfloat16>(state.acc[n], low[step], b[0], b[1]);
      multiply_add<__nv_bfloat16>(state.acc[n + 1], low[step], b[2], b[3]);
    }
}

/// What this block found for a head, to that head's block.
__device__ inline void give_parts(AbsorbedState& state, int rank, int heads, AbsorbedRoom& room) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = 8 * i + lane / 4;
    float total = state.total[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (head >= heads) continue;
    const unsigned there = address_in_block(shared_address(&room.parts[rank][kWarp * warp + 2 * (lane % 4)]), head);
#pragma unroll
    for (int n = 0; n < 4; ++n) put_8(there + 32 * n, state.acc[n][2 * i], state.acc[n][2 * i + 1]);
    if (warp == 0 && lane % 4 == 0) put_8(address_in_block(shared_address(&room.states[rank]), head), state.largest[i], total);
  }
}

/// One segment of kind kCache, bf16, one sequence of one token. Grid: one cluster of as many blocks as heads, at most kAbsorbedHeads.
static __global__ void __launch_bounds__(kAbsorbedThreads, 1) attend_absorbed(const __grid_constant__ AttentionView view, const __grid_constant__ FreshLatents fresh) {
  extern __shared__ __align__(128) unsigned char absorbed_room[];
  AbsorbedRoom& room = *reinterpret_cast<AbsorbedRoom*>(absorbed_room);
  let_next_start();
  cluster_arrive();  // so that nobody writes where a block has not begun
  const int head = cluster_rank(), blocks = view.heads, warp = threadIdx.x / kWarp;
  const bool last = head == blocks - 1;  // has the new token's key
  const SegmentView& segment = view.segments[0];
  const auto* row_of_table = reinterpret_cast<const int4*>(view.table);
  const unsigned stages = shared_address(room.keys);
  constexpr unsigned kStageBytes = sizeof room.keys[0];
  CarryingWeights weights;
  weights.read(fresh.weight + head * fresh.weight_head);
  int from = 0, to = 0;
  std::int64_t base = 0;
  const auto copy = [&](const int4& sequence) {
    const int all = sequence.w + 1;
    from = static_cast<int>(static_cast<std::int64_t>(all) * head / blocks), to = static_cast<int>(static_cast<std::int64_t>(all) * (head + 1) / blocks);
    base = static_cast<std::int64_t>(sequence.x) * segment.rows_per_slot;
#pragma unroll
    for (int stage = 0; stage < kAbsorbedStages; ++stage) {
      copy_absorbed(segment, base, from + stage * kAbsorbedKeys, min(to, sequence.w), last ? sequence.w : -1, stages + stage * kStageBytes);
      commit_copies();
    }
  };
  // Keys of earlier passes begin to come. The table may still be the last pass's: then others come once more.
  const int4 before = __ldcg(row_of_table);
  const bool early = before.x >= 0 && before.w >= 0 && before.w < segment.rows_per_slot && (static_cast<std::int64_t>(before.x) + 1) * segment.rows_per_slot <= fresh.cache_rows;
  if (early) copy(before);
  if (last && threadIdx.x < kAbsorbedRank * 4 / 128) fetch_to_l2(fresh.norm + threadIdx.x * (fresh.norm_type == DType::f32 ? 128 : 64));
  wait_for_previous();
  const int4 sequence = __ldcg(row_of_table);  // slot, first_token, tokens, past
  if (sequence.z == 0) {  // so for all blocks
    wait_copies<0>();
    cluster_wait();
    return;
  }
  if (!early || sequence.x != before.x || sequence.w != before.w) {
    wait_copies<0>();
    copy(sequence);
  }
  if (last && warp == kAbsorbedWarps - 1) make_key(fresh, segment, base + sequence.w, room.own_key, &room.scores[0][0][0]);
  weights.multiply(fresh.q + head * fresh.q_head, room.parts);
  if (warp == kAbsorbedWarps - 2) rotate_pair(fresh, fresh.q + head * fresh.q_head + kAbsorbedNope, room.rotated);
  __syncthreads();
  finish_query(fresh, head, view.scale * kLog2E, room);
  __syncthreads();
  cluster_wait();
  give_query(head, blocks, room);
  cluster_arrive();
  cluster_wait();

  AbsorbedState state;
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
    mix_absorbed(room, tile, to - at, state);
    if (at + kAbsorbedKeys < to) {
      __syncthreads();  // the stage has been read
      copy_absorbed(segment, base, at + kAbsorbedStages * kAbsorbedKeys, min(to, sequence.w), last ? sequence.w : -1, tile);
    }
    commit_copies();
    stage ^= 1;
  }
  wait_copies<0>();
  give_parts(state, head, blocks, room);
  cluster_arrive();
  cluster_wait();

  float most = -INFINITY, total = 0.0f, value = 0.0f;
#pragma unroll
  for (int i = 0; i < kAbsorbedHeads; ++i)
    if (i < blocks) most = fmaxf(most, room.states[i].x);
#pragma unroll
  for (int i = 0; i < kAbsorbedHeads; ++i) {
    if (i >= blocks) break;
    const float share = exp_of_2(room.states[i].x - most);
    total += room.states[i].y * share;
    value += room.parts[i][threadIdx.x] * share;
  }
  const Finish finish = finish_row(view, head, most * kLn2, total);
  view.out.at(0, head)[threadIdx.x] = value * finish.factor;
  if (threadIdx.x == 0 && view.lse.defined()) view.lse.at(0)[head] = finish.lse;
}

}  // namespace fathom::cuda
