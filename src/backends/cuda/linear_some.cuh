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
#include "backends/cuda/gather_warp.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/product.cuh"
#include "backends/cuda/route.cuh"

namespace fathom::cuda {

inline constexpr int kSomeTokens = 32, kSomeRows = 128, kSomeDepth = 64;  // a block's; a step's columns
inline constexpr unsigned kSomeWeightBytes = kSomeRows * kSomeDepth * 2, kSomeXBytes = kSomeTokens * kSomeDepth * 2, kSomeStage = kSomeWeightBytes + kSomeXBytes;
inline constexpr unsigned kSomeStages = 7, kSomeBytes = 1024 + kSomeStages * (kSomeStage + 16) + kSomeRows * kSomeTokens * 4;
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
  GatherView gather;                    // of what they chose; pairs 0: none
  unsigned* arrivals = nullptr;         // 0 before and after
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
  if (view.all.gated) return view.all.count == 3 && tile >= view.first_tile[2] ? 2 : 0;
  while (product + 1 < view.all.count && tile >= view.first_tile[product + 1]) ++product;
  return product;
}
/// Whether a product's rows are a gate's and an up's in turn.
__device__ inline bool is_gated(const SomeView& view, int product) { return view.all.gated && product == 0; }

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
  __device__ unsigned sums() const { return at + kSomeStages * (kSomeStage + 16); }  // [4, kSomeMultiply] of four
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

/// Which outputs four sums of a tile are, those that thread `thread` has of tokens 8 · eight …: rows `row` and 8 further (gated: of gate and up), two
/// tokens.
struct FourSums {
  int product, token;
  std::int64_t row;
  __device__ FourSums(const SomeView& view, int tile, int half, int thread, int eight) {
    const int lane = thread % kWarp;
    product = product_of_tile(view, tile), token = 8 * eight + 2 * (lane % 4);
    row = ((tile - view.first_tile[product]) * 16 + half * 8 + thread / kWarp) * (is_gated(view, product) ? 8 : 16) + lane / 4;
  }
};

/// What is added to four sums; nothing to those of a gate.
__device__ inline float4 added_to_some(const SomeView& view, const FourSums& at) {
  const Product& p = view.all.products[at.product];
  const bool any = p.added != nullptr && !is_gated(view, at.product);
  const auto added = [&](std::int64_t t, std::int64_t row) { return any && t < p.tokens && row < p.rows ? p.added[t * p.added_stride + row] : 0.0f; };
  return make_float4(added(at.token, at.row), added(at.token + 1, at.row), added(at.token, at.row + 8), added(at.token + 1, at.row + 8));
}

/// What becomes of four sums, to which what is added to them has been. Loops stay loops: a block runs through this once, and code that it has not run
/// before takes longer to come than to run.
template <class T>
__device__ inline void finish_some(const SomeView& view, const FourSums& at, const float4& sums) {
  const Product& p = view.all.products[at.product];
  const bool gate = is_gated(view, at.product);
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const std::int64_t t = at.token + i, row = at.row;
    if (t >= p.tokens || row >= p.rows) break;
    const float first = i == 0 ? sums.x : sums.y, second = i == 0 ? sums.z : sums.w;
    if (!gate) {
#pragma unroll 1
      for (int eight = 0; eight < 2; ++eight) {
        const std::int64_t r = row + 8 * eight;
        if (r >= p.rows) break;
        float* out = p.out + t * p.out_stride + r;
        const float value = (eight == 0 ? first : second) + element_of(p.bias, p.bias_type, r);
        *out = p.accumulate ? value + *out : value;
      }
      continue;
    }
    const Product& up_of = view.all.products[1];
    const float from_gate = (view.up_first ? second : first) + element_of(p.bias, p.bias_type, row), up = (view.up_first ? first : second) + element_of(up_of.bias, up_of.bias_type, row);
    const float value = gated(from_gate, up, view.all.limit);
    p.out[t * p.out_stride + row] = value;
    up_of.out[t * up_of.out_stride + row] = up;
    if (view.rounded != nullptr) reinterpret_cast<T*>(view.rounded)[t * p.rows + row] = from_float<T>(value);
  }
}

__device__ inline void store_four(unsigned at, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
__device__ inline float4 load_four_of(unsigned at, int rank) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address_in(at, static_cast<unsigned>(rank))) : "memory");
  return v;
}

/// The four that thread `thread` finishes first, and every kSomeMultiply further, of its block's part of a tile.
__device__ inline int first_four(const SomeView& view, const SomeShare& share) { return kSomeFours * share.part / view.split + static_cast<int>(threadIdx.x); }
__device__ inline FourSums place_of(const SomeView& view, const SomeShare& share, int tile, int four) { return {view, tile, share.half, four % kSomeMultiply, four / kSomeMultiply}; }

/// Two warpgroups, when all blocks that share the tile have their sums: adds up the block's part of them. `added`: to the first four, if it was read before.
template <class T>
__device__ inline void finish_tile(const SomeView& view, const SomeRoom& room, int tile, const float4* added) {
  const SomeShare share(view);
  const int first = first_four(view, share), last = kSomeFours * (share.part + 1) / view.split;
#pragma unroll 1
  for (int four = first; four < last; four += kSomeMultiply) {
    float4 sums = make_float4(0, 0, 0, 0), parts[kMostSomeSplit];
    // All at once, without a branch between them: one by one each would take as long as all. Those that are not there are the last one again.
#pragma unroll
    for (int part = 0; part < kMostSomeSplit; ++part) parts[part] = load_four_of(room.sums() + 16 * static_cast<unsigned>(four), 2 * min(part, view.split - 1) + share.half);
#pragma unroll
    for (int part = 0; part < kMostSomeSplit; ++part)
      if (part < view.split) sums = sum_of(sums, parts[part]);
    const FourSums at = place_of(view, share, tile, four);
    const float4 more = added != nullptr && four == first ? *added : added_to_some(view, at);
    finish_some<T>(view, at, sum_of(sums, more));
  }
}

/// Two warpgroups: all steps of the block, and what becomes of its sums where it shares no tile; else they are left in the room, for all to read.
template <class T>
__device__ inline void multiply_steps(const SomeView& view, const SomeRoom& room) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const SomeShare share(view);
  const unsigned rows = static_cast<unsigned>(thread / kGroupOfWarps) * (kSomeWeightBytes / 2);
  const auto give_back = [&](unsigned stage) {
    __syncwarp();
    if (lane < 2) arrive_in(room.empty(stage), static_cast<unsigned>(2 * share.part + lane));
  };
  unsigned stage = 0, phase = 0;
#pragma unroll 1
  for (int tile = share.cluster; tile < view.tiles; tile += share.clusters) {
    // Four sums of every output, of columns in turn: a product that adds to what the one before it makes waits for it.
    float sums[kSomeDepth / 16][16];
    unsigned before = 0;
#pragma unroll
    for (auto& part : sums)
#pragma unroll
      for (float& sum : part) sum = 0.0f;
#pragma unroll 1
    for (int step = 0; step < share.each; ++step) {
      wait_phase(room.full(stage), phase);
      const std::uint64_t a = by_rows(room.stage(stage) + rows), b = by_rows(room.stage(stage) + kSomeWeightBytes);
      begin_products();
#pragma unroll
      for (int k = 0; k < kSomeDepth / 16; ++k) multiply_32_by_rows<T>(sums[k], a + 2 * k, b + 2 * k, true);  // 32 bytes on
      commit_products();
      wait_products<1>();
      if (step > 0) give_back(before);
      before = stage;
      if (++stage == kSomeStages) stage = 0, phase ^= 1;
    }
    wait_products<0>();
    give_back(before);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 four = make_float4(0, 0, 0, 0);
#pragma unroll
      for (const auto& part : sums) four = sum_of(four, make_float4(part[4 * i], part[4 * i + 1], part[4 * i + 2], part[4 * i + 3]));
      store_four(room.sums() + 16 * static_cast<unsigned>(i * kSomeMultiply + thread), four);
    }
    if (view.split > 1) break;
    wait_at(1, kSomeMultiply);
    finish_tile<T>(view, room, tile, nullptr);
    wait_at(1, kSomeMultiply);  // the sums have been read
  }
}

#endif  // FATHOM_WGMMA_HERE

/// By the warps that choose, when they have: the last one finds the hits of all.
__device__ inline void gather_behind(const SomeView& view, unsigned char* room) {
  const unsigned warps = min(gridDim.x, static_cast<unsigned>(view.route_tokens));
  __threadfence();
  __syncwarp();
  unsigned before = 0;
  if (threadIdx.x % kWarp == 0) before = atomicInc(view.arrivals, warps - 1);  // and 0 again after the last
  if (__shfl_sync(kAllLanes, before, 0) != warps - 1) return;
  __threadfence();
  gather_by_warp(view.gather, room);
}

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
  float4 added = make_float4(0, 0, 0, 0);  // where a tile is shared, to what this thread finishes first: read while weights are multiplied
  if (threadIdx.x < kSomeMultiply) {
    wait_for_previous();
    if (view.split > 1) {
      const SomeShare share(view);
      added = added_to_some(view, place_of(view, share, share.cluster, first_four(view, share)));
    }
    multiply_steps<T>(view, room);
  } else if (threadIdx.x == kSomeMultiply) {
    read_some(view, room);
  } else if (threadIdx.x >= kSomeMultiply + kWarp && static_cast<int>(blockIdx.x) < view.route_tokens) {
    wait_for_previous();
    auto* const choice = reinterpret_cast<double*>(some_room + kSomeBytes);
    for (int token = static_cast<int>(blockIdx.x); token < view.route_tokens; token += static_cast<int>(gridDim.x)) route_token(view.route, token, choice);
    if (view.gather.pairs > 0) gather_behind(view, some_room + kSomeBytes);
  }
  __syncwarp();
  if (view.split > 1) {
    sync_cluster();
    if (threadIdx.x < kSomeMultiply) finish_tile<T>(view, room, SomeShare(view).cluster, &added);
  }
  sync_cluster();  // until nobody tells this block's barriers anything
#endif
}

}  // namespace fathom::cuda
