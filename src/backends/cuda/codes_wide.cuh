// Products of e4m3 codes on Hopper's matrix units: weights [rows, cols] of many experts with scales a 128 × 128 block, x with scales a hit and
// 128 columns. Hits and runs as in experts.cuh.
//
// Hits are operand A, 64 at a time, and 128 rows of the weights operand B: a thread then has two hits of each 64, and scales cost it two loads and
// four products a stretch. A cluster of two blocks has the same hits and neighbouring rows: each fetches half of a stretch of x for both. In a
// block one warp fetches, as many stretches of 128 columns ahead as fit, and three warpgroups have 64 hits of up to 192 each. Every stretch is
// multiplied by the matrix units, and its sums are added to those of the row in f32, with both scales: while one warpgroup adds, others multiply.
//
// Codes of x lie as tiles: those of a run at its slot · columns, a stretch of 128 columns after the other, its hits of 128 bytes, swizzled as
// shared memory wants them. So do the scales: hits of a stretch side by side. Rows of B are two matrices' or two neighbours' in turn, eight
// by eight: a thread has both of a pair.
#pragma once
#include "backends/cuda/codes_mma.cuh"
#include "backends/cuda/codes_view.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/rounded.cuh"

namespace fathom::cuda {

#if defined(FATHOM_WGMMA_HERE)

/// Shared memory, from the first multiple of 1024 bytes on.
struct CodesRoom {
  static constexpr unsigned kFull = kCodeStages * kCodeStage, kEmpty = kFull + 8 * kCodeStages, kExchanged = kEmpty + 8 * kCodeStages;
  static constexpr unsigned kMost = kFull + 128;                  // [3, hits] largest of the result, as bits: this tile's, and the one's before being cleared
  static constexpr unsigned kScales = kMost + 3 * kCodeHits * 4;  // [hits] of the result
};

struct CodesTile {
  RunOfExpert run;
  int pair, padded;
  std::int64_t slot;
};

/// Runs that the launch has to do with.
struct CodesRuns { int first = 0, count = 0; };

/// By all threads of the block.
__device__ inline CodesRuns find_runs(const CodesView& view) {
  int before = 0, until = 0;
  for (int base = 0; base < view.run_count; base += kCodeThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const RunOfExpert run = i < view.run_count ? view.runs[i] : RunOfExpert{};
    const std::int64_t slot = slot_of(run.first, i);
    before += __syncthreads_count(run.expert >= 0 && slot < view.first_slot);
    until += __syncthreads_count(run.expert >= 0 && slot < view.first_slot + view.slots);
  }
  return {before, until - before};
}

/// The cluster's tile `number`; false: there are no more.
__device__ inline bool find_tile(const CodesView& view, CodesRuns runs, int number, CodesTile& tile) {
  const int run = runs.first + number / view.pairs;
  if (run >= runs.first + runs.count) return false;
  tile.run = view.runs[run];
  tile.pair = view.first_pair + number % view.pairs;
  tile.slot = slot_of(tile.run.first, run);
  tile.padded = static_cast<int>(padded_hits(tile.run.count));
  return true;
}

struct CodesRing {
  unsigned stage = 0, phase = 0;
  __device__ void next() {
    if (++stage == kCodeStages) stage = 0, phase ^= 1;
  }
};

/// One thread: all tiles of the cluster.
__device__ inline void read_codes(const CodesView& view, CodesRuns runs, unsigned at) {
  const auto rank = static_cast<unsigned>(cluster_rank());
  const int clusters = static_cast<int>(gridDim.x) / 2;
  CodesRing ring;
  CodesTile tile;
  fetch_map(&view.weights);
  for (int number = static_cast<int>(blockIdx.x) / 2; find_tile(view, runs, number, tile); number += clusters) {
    const int group = tile.pair * 16 + static_cast<int>(rank) * 8;
    const int low = (tile.padded / 8 + 1) / 2 * 8, first = rank == 0 ? 0 : low, own = rank == 0 ? low : tile.padded - low;  // hits that this block fetches
    const std::uint8_t* x = view.x + (tile.slot - view.first_slot) * view.depths * kCodeDepth + first * kCodeDepth;
    const float* scales = view.x_scales + (tile.slot - view.first_slot) * view.depths;
    const unsigned bytes = kCodeWeightBytes + static_cast<unsigned>(tile.padded * (kCodeDepth + 4));
    for (int depth = 0; depth < view.depths; ++depth) {
      const unsigned stage = at + ring.stage * kCodeStage, full = at + CodesRoom::kFull + 8 * ring.stage;
      wait_phase(at + CodesRoom::kEmpty + 8 * ring.stage, ring.phase ^ 1);
      arrive_expecting(full, bytes);
      copy_box(stage, &view.weights, depth * kCodeDepth, 0, 0, group, tile.run.expert, full);
      if (own > 0) copy_bulk_to(3, stage + kCodeWeightBytes + static_cast<unsigned>(first) * kCodeDepth, x, static_cast<unsigned>(own) * kCodeDepth, full);
      copy_bulk(stage + kCodeScales, scales, static_cast<unsigned>(tile.padded) * 4, full);
      x += tile.padded * kCodeDepth;
      scales += tile.padded;
      ring.next();
    }
  }
}

/// Scales of a tile's weights, by stretches: of the rows that come first of every pair, and of the others.
template <CodesMode kMode>
struct ScalesOfTile {
  const float *first, *second;
  __device__ ScalesOfTile(const CodesView& view, const CodesTile& tile) {
    const int block = kMode == CodesMode::kGated ? tile.pair : 2 * tile.pair + cluster_rank();
    const std::int64_t line = static_cast<std::int64_t>(min(block, (view.rows - 1) / 128)) * view.depths;
    first = view.scales + tile.run.expert * view.scales_step + line;
    second = kMode == CodesMode::kGated ? view.up_scales + tile.run.expert * view.up_scales_step + line : first;
    if (!view.up_first) return;
    const float* const gate = first;
    first = second, second = gate;
  }
};

__device__ inline float load_float(unsigned at) {
  float out;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(out) : "r"(at) : "memory");
  return out;
}

/// fresh = a stretch's products of 64 hits and the tile's 128 rows.
__device__ inline void multiply_stretch(float (&fresh)[64], unsigned hits, unsigned weights) {
  const std::uint64_t a = by_rows(hits), b = by_rows(weights);
  begin_products();
#pragma unroll
  for (int step = 0; step < kCodeDepth / 32; ++step) multiply_e4m3(fresh, a + 2 * step, b + 2 * step, step > 0);  // 32 bytes on
  commit_products();
  wait_products<0>();
}
/// sums += fresh, with scales: x's of the thread's two hits, the weight's of a pair's first and second.
template <CodesMode kMode>
__device__ inline void add_stretch(float (&sums)[64], const float (&fresh)[64], float2 x, float first, float second) {
  const float2 a = make_float2(x.x * first, x.y * first), b = kMode == CodesMode::kGated ? make_float2(x.x * second, x.y * second) : a;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    sums[i] += fresh[i] * (i % 8 < 4 ? i % 4 < 2 ? a.x : a.y : i % 4 < 2 ? b.x : b.y);
  }
}

// ---------------------------------------------------------------- what becomes of the sums

// A thread has two hits of each 64, eight apart. Of a hit it has, for g = 0 … 7, the pairs 8g + 2 · (lane % 4) + {0, 1}: at 8g + {0, 1} (+ 2: the second
// hit) the first of the pair, four further the second.

/// As gated(), a few units in the last place off and without branches, so that one can begin before the one before has ended: eight bits are kept.
__device__ inline float gated_roughly(float gate, float up, float limit) {
  if (limit > 0.0f) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

/// sums of gates and ups become gated values, where the first of the pair was, and the largest of each hit is told to both blocks.
__device__ inline void gate_hits(const CodesView& view, float (&sums)[64], unsigned most_of_hit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned most[2] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    if (i % 8 >= 4) continue;
    sums[i] = view.up_first ? gated_roughly(sums[i + 4], sums[i], view.limit) : gated_roughly(sums[i], sums[i + 4], view.limit);
    most[i % 4 / 2] = max(most[i % 4 / 2], __float_as_uint(fabsf(sums[i])));  // as bits they are ordered too, NaN last
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    most[half] = max(most[half], __shfl_xor_sync(kAllLanes, most[half], 1));
    most[half] = max(most[half], __shfl_xor_sync(kAllLanes, most[half], 2));
  }
  if (lane % 4 >= 2) return;
  const unsigned at = most_of_hit + (lane % 4 == 0 ? 0 : 32), value = lane % 4 == 0 ? most[0] : most[1];
#pragma unroll
  for (unsigned rank = 0; rank < 2; ++rank) asm volatile("red.relaxed.cluster.shared::cluster.max.u32 [%0], %1;\n" ::"r"(address_in(at, rank)), "r"(value) : "memory");
}

/// Codes of gated values; hit: the thread's first, tile: the stretch's, scales: its hits'.
__device__ inline void write_codes(const float (&sums)[64], const float* scales, int hit, int count, std::uint8_t* tile, int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (hit + 8 * half >= count) continue;
    // Times what the scale divides: in two steps, so that neither that of the smallest scales nor the products overflow.
    const float scale = scales[hit + 8 * half], up = scale < 0x1p-60f ? 0x1p64f : 1.0f, factor = __fdiv_rn(1.0f, scale * up);
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      const float2 two = make_float2(sums[8 * g + 2 * half] * up * factor, sums[8 * g + 2 * half + 1] * up * factor);
      *reinterpret_cast<std::uint16_t*>(tile + tile_byte(hit + 8 * half, column + 8 * g)) = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
  }
}

/// The thread's two hits, to bf16: four neighbouring rows of every 16 from `row` on.
__device__ inline void write_sums(const CodesView& view, const CodesTile& tile, const float (&sums)[64], int hit, int row) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = hit + 8 * half;
    if (own >= tile.run.count) continue;
    __nv_bfloat16* out = view.y + (tile.run.first + own) * view.y_stride + row - static_cast<std::int64_t>(view.first_pair) * 2 * kCodeRows;
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      const float* s = sums + 8 * g + 2 * half;
      const __nv_bfloat162 low = __floats2bfloat162_rn(s[0], s[4]), high = __floats2bfloat162_rn(s[1], s[5]);
      if (row + 16 * g < view.rows) *reinterpret_cast<uint2*>(out + 16 * g) = make_uint2(reinterpret_cast<const unsigned&>(low), reinterpret_cast<const unsigned&>(high));
    }
  }
}

/// A warpgroup's 64 hits of a tile, from 64 · block on; kAny: there are some.
template <CodesMode kMode, bool kAny>
__device__ inline void multiply_tile(const CodesView& view, const CodesTile& tile, unsigned char* shared, unsigned at, CodesRing& ring, int tiles, int block) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp % 4;
  const int hit = 64 * block + 16 * warp + lane / 4;  // the thread's first
  const auto rank = static_cast<unsigned>(cluster_rank());
  float sums[64], fresh[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i] = fresh[i] = 0.0f;
  [[maybe_unused]] const ScalesOfTile<kMode> of(view, tile);
  // Of 32 stretches each lane has one's scales of the weights, and of the 32 after them.
  float first = 1.0f, second = 1.0f, next_first = 1.0f, next_second = 1.0f;
  const auto read_scales = [&](int depth) {
    if constexpr (kAny) next_first = __ldg(of.first + min(depth + lane, view.depths - 1));
    if constexpr (kAny && kMode == CodesMode::kGated) next_second = __ldg(of.second + min(depth + lane, view.depths - 1));
  };
  read_scales(0);
#pragma unroll 1
  for (int depth = 0; depth < view.depths; ++depth) {
    if (depth % kWarp == 0) {
      first = next_first, second = next_second;
      read_scales(depth + kWarp);
    }
    float a = 1.0f, b = 1.0f;
    if constexpr (kAny) a = __shfl_sync(kAllLanes, first, depth % kWarp);
    if constexpr (kAny && kMode == CodesMode::kGated) b = __shfl_sync(kAllLanes, second, depth % kWarp);
    const unsigned stage = at + ring.stage * kCodeStage, hits = stage + kCodeWeightBytes + static_cast<unsigned>(block) * 64 * kCodeDepth;
    const unsigned scales = stage + kCodeScales + static_cast<unsigned>(hit) * 4;
    wait_phase(at + CodesRoom::kFull + 8 * ring.stage, ring.phase);
    if constexpr (kAny) {
      const float2 x = make_float2(load_float(scales), load_float(scales + 32));
      multiply_stretch(fresh, hits, stage);
      add_stretch<kMode>(sums, fresh, x, a, b);
    }
    __syncwarp();
    if (lane < 2) arrive_in(at + CodesRoom::kEmpty + 8 * ring.stage, static_cast<unsigned>(lane));
    ring.next();
  }
  if constexpr (kMode == CodesMode::kGated) {
    const unsigned turn = static_cast<unsigned>(tiles) % 3, most = at + CodesRoom::kMost + turn * kCodeHits * 4;
    if constexpr (kAny) gate_hits(view, sums, most + static_cast<unsigned>(hit) * 4);
    __syncwarp();
    if (lane < 2) publish_in(at + CodesRoom::kExchanged, static_cast<unsigned>(lane));
    wait_phase(at + CodesRoom::kExchanged, static_cast<unsigned>(tiles) & 1);
    wait_phase_of_cluster(at + CodesRoom::kExchanged, static_cast<unsigned>(tiles) & 1);  // the fence that it has once, not at every try
    auto* all_most = reinterpret_cast<volatile unsigned*>(shared + CodesRoom::kMost);
    auto* scales = reinterpret_cast<float*>(shared + CodesRoom::kScales);
    if (thread < kCodeHits) {
      const float scale = rounded_of<true>(__uint_as_float(all_most[turn * kCodeHits + static_cast<unsigned>(thread)]), view.powers).scale;
      all_most[(turn + 2) % 3 * kCodeHits + static_cast<unsigned>(thread)] = 0;  // of the tile before: its next turn is two tiles ahead
      scales[thread] = scale;
      if (rank == 0 && thread < tile.run.count) view.code_scales[tile.slot * view.code_depths + static_cast<std::int64_t>(tile.pair) * tile.padded + thread] = scale;
    }
    wait_at(1, kCodeGroups * kGroupOfWarps);
    std::uint8_t* stretch = view.codes + (tile.slot * view.code_depths + static_cast<std::int64_t>(tile.pair) * tile.padded) * kCodeDepth;
    if constexpr (kAny) write_codes(sums, scales, hit, tile.run.count, stretch, static_cast<int>(rank) * 64 + lane % 4 * 2);
  } else if constexpr (kAny) {
    write_sums(view, tile, sums, hit, (2 * tile.pair + static_cast<int>(rank)) * kCodeRows + lane % 4 * 4);
  }
}

/// A warpgroup: all tiles of the cluster. Who has the last hits, or none, takes turns.
template <CodesMode kMode>
__device__ inline void multiply_tiles(const CodesView& view, CodesRuns runs, unsigned char* shared, unsigned at) {
  const int clusters = static_cast<int>(gridDim.x) / 2;
  CodesRing ring;
  CodesTile tile;
  int tiles = 0;
#pragma unroll 1
  for (int number = static_cast<int>(blockIdx.x) / 2; find_tile(view, runs, number, tile); number += clusters, ++tiles) {
    const int block = (static_cast<int>(threadIdx.x) / kGroupOfWarps + tiles) % kCodeGroups;
    if (64 * block < tile.run.count) multiply_tile<kMode, true>(view, tile, shared, at, ring, tiles, block);
    else multiply_tile<kMode, false>(view, tile, shared, at, ring, tiles, block);
  }
}

#endif  // FATHOM_WGMMA_HERE

/// Grid: any number of clusters of two blocks; each takes every so-manieth tile.
template <CodesMode kMode>
__global__ void __launch_bounds__(kCodeThreads, 1) multiply_codes_wide(const __grid_constant__ CodesView view) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ unsigned char codes_room[];
  const unsigned start = shared_address(codes_room), at = (start + 1023) / 1024 * 1024;
  unsigned char* const shared = codes_room + (at - start);
  constexpr unsigned kWarps = kCodeGroups * 4;  // that multiply
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < kCodeStages; ++stage)
      init_barrier(at + CodesRoom::kFull + 8 * stage, 1), init_barrier(at + CodesRoom::kEmpty + 8 * stage, 2 * kWarps);
    init_barrier(at + CodesRoom::kExchanged, 2 * kWarps);
    publish_barriers();
  }
  for (int i = static_cast<int>(threadIdx.x); i < 3 * kCodeHits; i += kCodeThreads) reinterpret_cast<unsigned*>(shared + CodesRoom::kMost)[i] = 0;
  __syncthreads();
  sync_cluster();
  after_previous();
  const CodesRuns runs = find_runs(view);
  if (threadIdx.x < kCodeGroups * kGroupOfWarps) {
    take_registers<160>();
    multiply_tiles<kMode>(view, runs, shared, at);
  } else {
    give_registers<32>();
    if (threadIdx.x == kCodeGroups * kGroupOfWarps) read_codes(view, runs, at);
  }
  sync_cluster();  // until nobody tells this block's barriers anything
#endif
}

template <CodesMode kMode>
void launch_codes(Context& context, const CodesView& view) {
  context.note(cudaFuncSetAttribute(&multiply_codes_wide<kMode>, cudaFuncAttributeMaxDynamicSharedMemorySize, kCodeBytes));
  const std::int64_t tiles = static_cast<std::int64_t>(view.run_count) * view.pairs;
  const auto clusters = static_cast<unsigned>(std::min<std::int64_t>(tiles, context.multiprocessors / 2));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2 * clusters);
  config.blockDim = dim3(kCodeThreads);
  config.dynamicSmemBytes = kCodeBytes;
  config.stream = context.stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {2, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  context.note(cudaLaunchKernelEx(&config, &multiply_codes_wide<kMode>, view));
}

}  // namespace fathom::cuda
