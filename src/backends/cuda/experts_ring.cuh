// Experts with 16-bit weights and few hits each on Hopper: both products in one launch that has a block on every multiprocessor, so that the
// weights come without a pause. Hits and runs as in experts.cuh, types as in experts_mma.cuh.
//
// A block has tiles of two times 16 rows of the weights, one after the other: of a gated product 16 of the gate and 16 of its up. One warp fetches pieces
// of 512 columns of a tile, as two boxes, and of its hits' x, as many ahead as fit, over the ends of tiles and from the first product into the second,
// whose weights come while the blocks wait for each other: only its x, which they make, has to. (A copy of a row of 1 KB takes the copy
// engine as long as 1.2 KB of a box.) Eight warps multiply, 16 columns each in turn, and add up their sums in order at a tile's end.
#pragma once
#include "backends/cuda/codes_mma.cuh"
#include "backends/cuda/experts_mma.cuh"

namespace fathom::cuda {

inline constexpr int kRingRows = 16, kRingColumns = 512, kRingBox = 64;  // of half a piece; columns of a row of a box
inline constexpr int kRingWarps = 8, kRingMultiply = kRingWarps * kWarp, kRingThreads = kRingMultiply + kWarp;

/// Both products of all runs; parts[1] takes what parts[0] makes.
struct RingView {
  MmaView parts[2];
  CUtensorMap gate, up, down;  // [1, experts, columns / 64, rows, 64] of elements, in boxes of 16 rows and kRingColumns
  int most_runs = 0;
  unsigned long long* meetings = nullptr;  // Context's
};

/// Shared memory; runs have at most 8 · kTiles hits.
template <int kTiles>
struct RingRoom {
  static constexpr unsigned kStages = kTiles == 1 ? 5 : 4;
  static constexpr unsigned kHalf = 2 * kRingRows * kRingColumns, kRow = 2 * kRingColumns + 16;  // kRow: of x, so that eight rows are in banks of their own
  static constexpr unsigned kStage = (2 * kHalf + 8 * kTiles * kRow + 1023) / 1024 * 1024, kSums = kRingWarps * 2 * kTiles * 4 * kWarp * sizeof(float);
  static constexpr unsigned kBytes = 1024 + kStages * (kStage + 16) + kSums;
  unsigned at = 0;  // a multiple of 1024
  __device__ unsigned weights(unsigned stage) const { return at + stage * kStage; }
  __device__ unsigned x(unsigned stage) const { return weights(stage) + 2 * kHalf; }
  __device__ unsigned full(unsigned stage) const { return at + kStages * kStage + kSums + 8 * stage; }
  __device__ unsigned empty(unsigned stage) const { return full(kStages + stage); }
};

/// The place in the ring where the next piece is, and whether the ring has been gone round an odd number of times.
template <int kTiles>
struct RingPlace {
  unsigned stage = 0, phase = 0;
  __device__ void go_on() {
    if (++stage == RingRoom<kTiles>::kStages) stage = 0, phase ^= 1;
  }
};

/// The tiles of a product that a block has: [from, to), run by run.
struct RingShare {
  int tiles, pieces, from, to;  // tiles of a run, pieces of a tile
  __device__ RingShare(const MmaView& part, bool gated, int runs) {
    const int rows = gated ? kRingRows : 2 * kRingRows;
    tiles = (static_cast<int>(part.rows) + rows - 1) / rows;
    pieces = (static_cast<int>(part.cols) + kRingColumns - 1) / kRingColumns;
    const auto all = static_cast<std::int64_t>(runs) * tiles;
    from = static_cast<int>(all * blockIdx.x / gridDim.x), to = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x);
  }
};

__device__ inline unsigned bytes_of_piece(const MmaView& part, int piece) { return 2 * static_cast<unsigned>(min(kRingColumns, static_cast<int>(part.cols) - piece * kRingColumns)); }

#if defined(FATHOM_WGMMA_HERE)

/// What ordinary stores wrote to global memory can be read by bulk copies; by who wrote, and by who waited for that.
__device__ inline void publish_to_copies() { asm volatile("fence.proxy.async.global;\n" ::: "memory"); }

__device__ inline unsigned long long meetings_so_far(const unsigned long long* at) {
  unsigned long long count;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];\n" : "=l"(count) : "l"(at) : "memory");
  return count;
}

/// One warp: all pieces of the block. `all_here`: meetings when all blocks have made their part of the first product.
template <class T, int kTiles>
__device__ inline void fetch_pieces(const RingView& view, const RingRoom<kTiles>& room, int runs, unsigned long long all_here) {
  using Room = RingRoom<kTiles>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  RingPlace<kTiles> place;
#pragma unroll 1
  for (int p = 0; p < 2; ++p) {
    const MmaView& part = view.parts[p];
    const bool gated = p == 0;
    const CUtensorMap* map = !gated ? &view.down : lane == 0 ? &view.gate : &view.up;  // of this lane, where it is one of the first two
    const RingShare share(part, gated, runs);
    const auto fetch_x = [&](const RunOfExpert& run, int piece, unsigned stage) {
      if (lane >= run.count) return;
      const std::int64_t row = part.token != nullptr ? part.token[run.first + lane] : run.first + lane;
      copy_bulk(room.x(stage) + static_cast<unsigned>(lane) * Room::kRow, reinterpret_cast<const T*>(part.x) + row * part.x_stride + piece * kRingColumns, bytes_of_piece(part, piece), room.full(stage));
    };
    const unsigned first_stage = place.stage;
    const int pieces = (share.to - share.from) * share.pieces, alone = gated ? 0 : min(pieces, static_cast<int>(Room::kStages));  // pieces whose x comes later
    int fetched = 0, at_run = -1;
    RunOfExpert run;
#pragma unroll 1
    for (int tile = share.from; tile < share.to; ++tile) {
      if (tile / share.tiles != at_run) at_run = tile / share.tiles, run = part.runs[at_run];
      const int row = tile % share.tiles * (gated ? kRingRows : 2 * kRingRows) + (gated ? 0 : lane * kRingRows);
#pragma unroll 1
      for (int piece = 0; piece < share.pieces; ++piece, ++fetched) {
        wait_phase(room.empty(place.stage), place.phase ^ 1);
        if (lane == 0) arrive_expecting(room.full(place.stage), 2 * Room::kHalf + bytes_of_piece(part, piece) * static_cast<unsigned>(run.count));
        __syncwarp();
        if (lane < 2) copy_box(room.weights(place.stage) + static_cast<unsigned>(lane) * Room::kHalf, map, 0, row, piece * (kRingColumns / kRingBox), run.expert, 0, room.full(place.stage));
        if (fetched >= alone) fetch_x(run, piece, place.stage);
        place.go_on();
        if (fetched + 1 != alone) continue;
        while (meetings_so_far(view.meetings) < all_here) {}
        publish_to_copies();
        for (int i = 0; i < alone; ++i) fetch_x(part.runs[(share.from + i / share.pieces) / share.tiles], i % share.pieces, (first_stage + static_cast<unsigned>(i)) % Room::kStages);
      }
    }
  }
}

/// What the warps have summed up of a tile: [warp, half of the tile's rows, eight hits, element of a fragment, lane].
template <class T, int kTiles, bool kGated>
__device__ inline void finish_ring_tile(const MmaView& part, const RunOfExpert& run, int tile, const float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto sum_of_warps = [&](int half, int n, int element) {
    float sum = 0.0f;
#pragma unroll
    for (int from = 0; from < kRingWarps; ++from) sum += sums[(((from * 2 + half) * kTiles + n) * 4 + element) * kWarp + lane];
    return sum;
  };
#pragma unroll
  for (int at = warp; at < (kGated ? 4 : 8) * kTiles; at += kRingWarps) {
    const int element = at % 4, n = at / 4 % kTiles, half = at / (4 * kTiles);
    const int hit = 8 * n + 2 * (lane % 4) + element % 2;
    const std::int64_t row = static_cast<std::int64_t>(tile) * (kGated ? kRingRows : 2 * kRingRows) + half * kRingRows + element / 2 * 8 + lane / 4;
    const float value = sum_of_warps(half, n, element);
    if constexpr (kGated) {
      const float up = sum_of_warps(1, n, element);
      if (hit < run.count && row < part.rows) reinterpret_cast<T*>(part.y)[(run.first + hit) * part.rows + row] = from_float<T>(gated(value, up, part.limit));
    } else {
      if (hit < run.count && row < part.rows) reinterpret_cast<float*>(part.y)[(run.first + hit) * part.rows + row] = value;
    }
  }
}

/// The warps that multiply: the block's tiles of one product.
template <class T, int kTiles, bool kGated>
__device__ inline void multiply_pieces(const MmaView& part, const RingRoom<kTiles>& room, RingPlace<kTiles>& place, int runs, float* sums_of_all) {
  constexpr unsigned kRow = RingRoom<kTiles>::kRow;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  // This lane's rows: of a box 128 bytes, whose chunks of 16 lie where the row's number puts them; of x.
  const unsigned own_a = static_cast<unsigned>(lane % 16) * 128, own_b = static_cast<unsigned>((lane / 16 * 8 + lane % 8) % (8 * kTiles)) * kRow + static_cast<unsigned>(lane / 8 % 2) * 16;
  const RingShare share(part, kGated, runs);
  int at_run = -1;
  RunOfExpert run;
#pragma unroll 1
  for (int tile = share.from; tile < share.to; ++tile) {
    if (tile / share.tiles != at_run) at_run = tile / share.tiles, run = part.runs[at_run];
    float sums[2][kTiles][4] = {};
#pragma unroll 1
    for (int piece = 0; piece < share.pieces; ++piece) {
      const int steps = static_cast<int>(bytes_of_piece(part, piece)) / 32;
      wait_phase(room.full(place.stage), place.phase);
#pragma unroll
      for (int i = 0; i < kRingColumns / 16 / kRingWarps; ++i) {
        const int step = i * kRingWarps + warp;
        if (step >= steps) break;
        unsigned a[2][4], b[2 * kTiles];
        const unsigned at = room.weights(place.stage) + static_cast<unsigned>(step / 4) * (kRingRows * 128) + own_a + static_cast<unsigned>((2 * (step % 4) + lane / 16) ^ (lane & 7)) * 16;
        load_matrices(at, a[0]);
        load_matrices(at + RingRoom<kTiles>::kHalf, a[1]);
        load_matrices(room.x(place.stage) + own_b + static_cast<unsigned>(step) * 32, b);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int n = 0; n < kTiles; ++n) multiply_add<T>(sums[half][n], a[half], b[2 * n], b[2 * n + 1]);
      }
      __syncwarp();
      if (lane == 0) arrive(room.empty(place.stage));
      place.go_on();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums_of_all[(((warp * 2 + half) * kTiles + n) * 4 + i) * kWarp + lane] = sums[half][n][i];
    wait_at(1, kRingMultiply);
    finish_ring_tile<T, kTiles, kGated>(part, run, tile % share.tiles, sums_of_all);
    wait_at(1, kRingMultiply);  // the sums have been read
  }
}

#endif  // FATHOM_WGMMA_HERE

/// Grid: as many blocks as there are multiprocessors: they wait for each other, so all of them have to have a place.
template <class T, int kTiles>
__global__ void __launch_bounds__(kRingThreads, 1) stream_experts(const __grid_constant__ RingView view) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ __align__(16) unsigned char ring_room[];
  using Room = RingRoom<kTiles>;
  const Room room{(shared_address(ring_room) + 1023) / 1024 * 1024};
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < Room::kStages; ++stage) init_barrier(room.full(stage), 1), init_barrier(room.empty(stage), kRingWarps);
    publish_barriers();
  }
  after_previous();
  const unsigned long long all_here = threadIdx.x < kRingMultiply ? 0 : (meetings_so_far(view.meetings) / gridDim.x + 1) * gridDim.x;  // before this block counts
  int runs = 0;
  for (int i = 0; i < view.most_runs; i += kRingThreads) {
    const int at = i + static_cast<int>(threadIdx.x);
    runs += __syncthreads_count(at < view.most_runs && view.parts[0].runs[at].expert >= 0);
  }
  if (threadIdx.x >= kRingMultiply) return fetch_pieces<T, kTiles>(view, room, runs, all_here);
  auto* const sums = reinterpret_cast<float*>(ring_room + (room.at - shared_address(ring_room)) + Room::kStages * Room::kStage);
  RingPlace<kTiles> place;
  multiply_pieces<T, kTiles, true>(view.parts[0], room, place, runs, sums);
  publish_to_copies();
  __threadfence();
  wait_at(1, kRingMultiply);
  if (threadIdx.x == 0) atomicAdd(view.meetings, 1ull);
  multiply_pieces<T, kTiles, false>(view.parts[1], room, place, runs, sums);
#endif
}

}  // namespace fathom::cuda
