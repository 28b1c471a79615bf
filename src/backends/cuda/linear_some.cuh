// Products of up to 32 tokens with 16-bit weights on Hopper's matrix units: the weights pass through shared memory once, as fast as memory gives them.
//
// The weights are operand A: two neighbouring blocks take 256 rows at a time, 128 each, and walk along their columns in steps of 64. x (rounded
// to the weights' type) is operand B; each block of the pair fetches half of a step's for both. In a block one thread fetches, as many steps ahead
// as fit, over the ends of tiles; weights that the first steps want are on their way before the launch's turn, when x is not there yet. Two
// warpgroups multiply 64 rows each. Who has finished early leaves its share of the memory's bandwidth to others: tiles need not come out even.
//
// Where there are few tiles, two or four pairs are a cluster that has the columns of one tile in parts; they read each other's sums, in their order.
//
// Of a gate and its up, rows come eight by eight in turn: a thread has both of a pair. A last warp chooses experts meanwhile, if the launch is asked to.
#pragma once
#include "backends/cuda/codes_mma.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/product.cuh"
#include "backends/cuda/route.cuh"

namespace fathom::cuda {

inline constexpr int kSomeTokens = 32, kSomeRows = 128, kSomeDepth = 64;  // a block's; a step's columns
inline constexpr unsigned kSomeWeightBytes = kSomeRows * kSomeDepth * 2, kSomeXBytes = kSomeTokens * kSomeDepth * 2, kSomeStage = kSomeWeightBytes + kSomeXBytes;
inline constexpr unsigned kSomeStages = 11, kSomeBytes = 1024 + kSomeStages * (kSomeStage + 16);
inline constexpr int kSomeMultiply = 2 * 128, kSomeThreads = kSomeMultiply + 2 * kWarp, kSomeWarps = kSomeMultiply / kWarp;
inline constexpr int kSomeFours = kSomeRows * kSomeTokens / 4;  // sums of a block's tile, by fours
inline constexpr int kMostSomeSplit = 4;

struct SomeView {
  CUtensorMap weights[Together::kMost];  // of the products; gated: of both
  CUtensorMap x;
  Together all;
  int first_tile[Together::kMost] = {};
  int tiles = 0, depths = 0;            // steps a tile
  int split = 1;                        // pairs that share a tile; above 1: a cluster for each tile
  bool early = false;                   // the next launch may take places at once
  bool up_first = false;                // gated: the up's rows come first
  std::byte* rounded = nullptr;         // gated: [tokens, rows] once more, in the weights' type
  RouteView route;                      // of tokens that the products do not wait for
  int route_tokens = 0;
};

#if defined(FATHOM_WGMMA_HERE)

/// d (+)= a · b, 64 × 32 × 16, both by_rows.
template <class T>
__device__ inline void multiply_32_by_rows(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add);
#define FATHOM_SOME_PRODUCT(T, KIND)                                                                                                   \
  template <>                                                                                                                          \
  __device__ inline void multiply_32_by_rows<T>(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32." KIND "." KIND                 \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, 0, 0;\n}\n"              \
                 : FATHOM_D8(0), FATHOM_D8(8)                                                                                          \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                                                        \
  }
FATHOM_SOME_PRODUCT(__nv_bfloat16, "bf16")
FATHOM_SOME_PRODUCT(__half, "f16")
#undef FATHOM_SOME_PRODUCT

/// A box of two dimensions to the same place in those blocks of the cluster whose bit is set.
__device__ inline void copy_box_to(unsigned blocks, unsigned to, const CUtensorMap* map, int c0, int c1, unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to), "l"(map), "r"(c0),
               "r"(c1), "r"(barrier), "h"(static_cast<unsigned short>(blocks))
               : "memory");
}

__device__ inline int product_of_tile(const SomeView& view, int tile) {
  int product = 0;
  if (!view.all.gated)
    while (product + 1 < view.all.count && tile >= view.first_tile[product + 1]) ++product;
  return product;
}

/// What a block has to do: some steps of each of the cluster's tiles.
struct SomeShare {
  int half, part;                    // of the pair; of the columns
  int cluster, clusters, from, each, steps;  // from: the first of `each` steps of a tile; steps: of all tiles
  __device__ explicit SomeShare(const SomeView& view) {
    const int rank = cluster_rank();
    half = rank % 2, part = rank / 2;
    cluster = static_cast<int>(blockIdx.x) / (2 * view.split), clusters = static_cast<int>(gridDim.x) / (2 * view.split);
    from = view.depths * part / view.split, each = view.depths * (part + 1) / view.split - from;
    steps = each * ((view.tiles - cluster + clusters - 1) / clusters);
  }
};

struct SomeRoom {
  unsigned at;
  __device__ unsigned stage(unsigned i) const { return at + i * kSomeStage; }
  __device__ unsigned full(unsigned i) const { return at + kSomeStages * kSomeStage + 8 * i; }
  __device__ unsigned empty(unsigned i) const { return at + kSomeStages * kSomeStage + 8 * (kSomeStages + i); }
};

/// One thread: all steps of the block.
__device__ inline void read_some(const SomeView& view, const SomeRoom& room) {
  const SomeShare share(view);
  const auto read_weights = [&](int step, unsigned stage) {
    const int tile = share.cluster + step / share.each * share.clusters, product = product_of_tile(view, tile);
    arrive_expecting(room.full(stage), kSomeStage);
    copy_box(room.stage(stage), &view.weights[product], (share.from + step % share.each) * kSomeDepth, 0, 0, (tile - view.first_tile[product]) * 16 + share.half * 8, 0, room.full(stage));
  };
  const auto read_x = [&](int step, unsigned stage) {
    copy_box_to(3u << (2 * share.part), room.stage(stage) + kSomeWeightBytes + static_cast<unsigned>(share.half) * (kSomeXBytes / 2), &view.x, (share.from + step % share.each) * kSomeDepth,
                share.half * (kSomeTokens / 2), room.full(stage));
  };
  const int ahead = min(share.steps, static_cast<int>(kSomeStages));
  for (int i = 0; i < ahead; ++i) read_weights(i, static_cast<unsigned>(i));
  wait_for_previous();
  for (int i = 0; i < ahead; ++i) read_x(i, static_cast<unsigned>(i));
  unsigned stage = 0, phase = 0;
  for (int step = ahead; step < share.steps; ++step) {
    wait_phase(room.empty(stage), phase);
    read_weights(step, stage);
    read_x(step, stage);
    if (++stage == kSomeStages) stage = 0, phase ^= 1;
  }
}

/// What becomes of four sums of a tile, those that thread `thread` has of tokens 8 · eight …: rows r and r + 8 of the tile, two tokens.
template <class T>
__device__ inline void finish_some(const SomeView& view, int tile, int half, int thread, int eight, const float4& sums) {
  const int lane = thread % kWarp, token = 8 * eight + 2 * (lane % 4), number = product_of_tile(view, tile);
  const std::int64_t sixteen = (tile - view.first_tile[number]) * 16 + half * 8 + thread / kWarp;
  const Product& p = view.all.products[number];
  const float first[2] = {sums.x, sums.y}, second[2] = {sums.z, sums.w};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t t = token + i;
    if (t >= p.tokens) break;
    if (!view.all.gated) {
      const std::int64_t row = sixteen * 16 + lane / 4;
      if (row < p.rows) store(p, t, 0, row, first[i]);
      if (row + 8 < p.rows) store(p, t, 0, row + 8, second[i]);
      continue;
    }
    const std::int64_t row = sixteen * 8 + lane / 4;
    if (row >= p.rows) break;
    const Product& up_of = view.all.products[1];
    const float gate = finished(p, t, 0, row, view.up_first ? second[i] : first[i]), up = finished(up_of, t, 0, row, view.up_first ? first[i] : second[i]);
    const float value = gated(gate, up, view.all.limit);
    p.out[t * p.out_stride + row] = value;
    up_of.out[t * up_of.out_stride + row] = up;
    if (view.rounded != nullptr) reinterpret_cast<T*>(view.rounded)[t * p.rows + row] = from_float<T>(value);
  }
}

/// Two warpgroups: all steps of the block. Where a tile is shared, sums stay at the room's beginning: [4, kSomeMultiply] of four.
template <class T>
__device__ inline void multiply_steps(const SomeView& view, const SomeRoom& room) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const SomeShare share(view);
  const unsigned rows = static_cast<unsigned>(thread / kGroupOfWarps) * (kSomeWeightBytes / 2);
  unsigned stage = 0, phase = 0;
#pragma unroll 1
  for (int tile = share.cluster; tile < view.tiles; tile += share.clusters) {
    float sums[16];
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
#pragma unroll 1
    for (int step = 0; step < share.each; ++step) {
      wait_phase(room.full(stage), phase);
      const std::uint64_t a = by_rows(room.stage(stage) + rows), b = by_rows(room.stage(stage) + kSomeWeightBytes);
      begin_products();
#pragma unroll
      for (int k = 0; k < kSomeDepth / 16; ++k) multiply_32_by_rows<T>(sums, a + 2 * k, b + 2 * k, true);  // 32 bytes on
      commit_products();
      wait_products<0>();
      __syncwarp();
      if (lane < 2) arrive_in(room.empty(stage), static_cast<unsigned>(2 * share.part + lane));
      if (++stage == kSomeStages) stage = 0, phase ^= 1;
    }
    if (view.split > 1) wait_at(1, kSomeMultiply);  // both have read what is there
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 four = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
      if (view.split == 1) finish_some<T>(view, tile, share.half, thread, i, four);
      else asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(room.at + 16 * (i * kSomeMultiply + thread)), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w) : "memory");
    }
  }
}

/// Two warpgroups, when all blocks of the cluster have their sums: adds up the block's part of them.
template <class T>
__device__ inline void join_some(const SomeView& view, const SomeRoom& room) {
  const SomeShare share(view);
  for (int four = kSomeFours * share.part / view.split + static_cast<int>(threadIdx.x); four < kSomeFours * (share.part + 1) / view.split; four += kSomeMultiply) {
    float4 sums = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int part = 0; part < kMostSomeSplit; ++part) {
      if (part >= view.split) break;
      float4 v;
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address_in(room.at + 16 * four, 2 * part + share.half)) : "memory");
      sums.x += v.x, sums.y += v.y, sums.z += v.z, sums.w += v.w;
    }
    finish_some<T>(view, share.cluster, share.half, four % kSomeMultiply, four / kSomeMultiply, sums);
  }
}

#endif  // FATHOM_WGMMA_HERE

/// Grid: clusters of 2 · split blocks, no more than there are tiles.
template <class T>
__global__ void __launch_bounds__(kSomeThreads, 1) multiply_some(const __grid_constant__ SomeView view) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ __align__(16) unsigned char some_room[];
  const SomeRoom room{(shared_address(some_room) + 1023) / 1024 * 1024};
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < kSomeStages; ++stage) init_barrier(room.full(stage), 1), init_barrier(room.empty(stage), 2 * kSomeWarps);
    publish_barriers();
  }
  sync_cluster();
  if (view.early) let_next_start();
  if (threadIdx.x < kSomeMultiply) {
    wait_for_previous();
    multiply_steps<T>(view, room);
  } else if (threadIdx.x == kSomeMultiply) {
    read_some(view, room);
  } else if (threadIdx.x >= kSomeMultiply + kWarp && static_cast<int>(blockIdx.x) < view.route_tokens) {
    wait_for_previous();
    auto* const choice = reinterpret_cast<double*>(some_room + kSomeBytes);
    for (int token = static_cast<int>(blockIdx.x); token < view.route_tokens; token += static_cast<int>(gridDim.x)) route_token(view.route, token, choice);
  }
  __syncwarp();
  if (view.split > 1) {
    sync_cluster();
    if (threadIdx.x < kSomeMultiply) join_some<T>(view, room);
  }
  sync_cluster();  // until nobody tells this block's barriers anything
#endif
}

}  // namespace fathom::cuda
