// Products of e4m3 codes on Hopper's matrix units: weights [rows, cols] of many experts (or one) with scales a 128 × 128 block or a row, x
// with scales a hit and 128 columns, or a hit. Hits and runs as in experts.cuh.
//
// Weights are operand A, hits operand B: any number of hits up to 256 is a tile, rounded up to 32, so that ragged experts waste little. A cluster
// of two blocks has the same hits and neighbouring rows: each fetches half of a stretch of x for both. In a block one warp fetches, four
// stretches of 128 columns ahead, and two warpgroups have 64 rows of the tile each. Every stretch is multiplied by the matrix units, and its
// sums are added to those of the row in f32, with both scales.
//
// Codes of x lie as tiles: those of a run at its slot · columns, a stretch of 128 columns after the other, its hits of 128 bytes, swizzled as
// shared memory wants them. So do the scales: hits of a stretch side by side. Rows of A are two matrices' or two neighbours' in turn, eight
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
  std::int64_t slot, x_slot;
};

/// The cluster's tile `number`; false: there are no more.
template <CodesMode kMode>
__device__ inline bool find_tile(const CodesView& view, int number, CodesTile& tile) {
  int run = 0;
  if (view.runs == nullptr) {  // rows after rows, so that the weight is read once
    run = number % view.run_count;
    tile.pair = number / view.run_count;
    if (tile.pair >= view.pairs) return false;
    tile.run = {0, run * kCodeHits, min(kCodeHits, view.hits - run * kCodeHits)};
    tile.slot = tile.x_slot = slot_of(tile.run.first, run);
  } else {
    run = number / view.pairs;
    tile.pair = number % view.pairs;
    if (run >= view.run_count) return false;
    tile.run = view.runs[view.first_run + run];
    if (tile.run.expert < 0) return false;
    tile.slot = slot_of(tile.run.first, view.first_run + run);
    tile.x_slot = view.x_from_first_run ? tile.slot - slot_of(view.runs[view.first_run].first, view.first_run) : tile.slot;
  }
  tile.pair += view.first_pair;
  tile.padded = static_cast<int>(padded_hits(tile.run.count));
  return true;
}

struct CodesRing {
  int stage = 0;
  unsigned phase = 0;
  __device__ void next() {
    if (++stage == kCodeStages) stage = 0, phase ^= 1;
  }
};

/// One thread: all tiles of the cluster.
template <CodesMode kMode>
__device__ inline void read_codes(const CodesView& view, unsigned at) {
  const unsigned rank = rank_in_cluster();
  const int clusters = static_cast<int>(gridDim.x) / 2;
  CodesRing ring;
  CodesTile tile;
  fetch_map(&view.weights);
  for (int number = static_cast<int>(blockIdx.x) / 2; find_tile<kMode>(view, number, tile); number += clusters) {
    const int group = tile.pair * 16 + static_cast<int>(rank) * 8;
    const int low = (tile.padded / 8 + 1) / 2 * 8, first = rank == 0 ? 0 : low, own = rank == 0 ? low : tile.padded - low;  // hits that this block fetches
    const std::uint8_t* x = view.x + tile.x_slot * view.depths * kCodeDepth + first * kCodeDepth;
    const float* scales = view.x_scales + tile.x_slot * view.depths;
    const unsigned bytes = kCodeWeightBytes + static_cast<unsigned>(tile.padded * (kMode == CodesMode::kRows ? kCodeDepth : kCodeDepth + 4));
    for (int depth = 0; depth < view.depths; ++depth) {
      const unsigned stage = at + static_cast<unsigned>(ring.stage) * kCodeStage, full = at + CodesRoom::kFull + 8u * static_cast<unsigned>(ring.stage);
      wait_phase_of_cluster(at + CodesRoom::kEmpty + 8u * static_cast<unsigned>(ring.stage), ring.phase ^ 1);
      arrive_expecting(full, bytes);
      copy_box(stage, &view.weights, depth * kCodeDepth, 0, 0, group, tile.run.expert, full);
      if (own > 0) copy_bulk_to(3, stage + kCodeWeightBytes + static_cast<unsigned>(first) * kCodeDepth, x, static_cast<unsigned>(own) * kCodeDepth, full);
      if constexpr (kMode != CodesMode::kRows) copy_bulk(stage + kCodeWeightBytes + kCodeHitBytes, scales, static_cast<unsigned>(tile.padded) * 4, full);
      x += tile.padded * kCodeDepth;
      scales += tile.padded;
      ring.next();
    }
  }
}

__device__ inline float2 load_two(unsigned at) {
  float2 out;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n" : "=f"(out.x), "=f"(out.y) : "r"(at) : "memory");
  return out;
}

/// sums += a stretch's products, with scales: x's of hits at `scales` (shared memory), the weight's of a pair's first and second.
template <CodesMode kMode, int kHits>
__device__ inline void multiply_stretch(float (&sums)[64], float (&fresh)[64], unsigned weights, unsigned hits, unsigned scales, float first, float second) {
  begin_products();
#pragma unroll
  for (int step = 0; step < kCodeDepth / 32; ++step) multiply_e4m3<kHits>(fresh, by_rows(weights + 32 * step), by_rows(hits + 32 * step), step > 0);
  commit_products();
  wait_products<0>();
#pragma unroll
  for (int n = 0; n < kHits / 8; ++n) {
    if constexpr (kMode == CodesMode::kRows) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[4 * n + i] += fresh[4 * n + i];
    } else {
      const float2 x = load_two(scales + 32 * n);
      const float2 a = make_float2(x.x * first, x.y * first), b = kMode == CodesMode::kGated ? make_float2(x.x * second, x.y * second) : a;
      sums[4 * n] += fresh[4 * n] * a.x, sums[4 * n + 1] += fresh[4 * n + 1] * a.y;
      sums[4 * n + 2] += fresh[4 * n + 2] * b.x, sums[4 * n + 3] += fresh[4 * n + 3] * b.y;
    }
  }
}

// ---------------------------------------------------------------- what becomes of the sums

/// sums of gates and ups become gated values (at 4n, 4n + 1), and the largest of each hit is told to both blocks. Eight lanes have rows of the
/// same hits: they halve what each has left of 2 · kEights hits until it has one.
template <int kEights>
__device__ inline void gate_eights(const CodesView& view, float (&sums)[64], int first, unsigned most_of_first_hit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned most[2 * kEights];
#pragma unroll
  for (int i = 0; i < 2 * kEights; ++i) {
    const int at = 4 * (first + i / 2) + i % 2;
    sums[at] = view.up_first ? gated(sums[at + 2], sums[at], view.limit) : gated(sums[at], sums[at + 2], view.limit);
    most[i] = __float_as_uint(fabsf(sums[at]));  // as bits they are ordered too, NaN last
  }
#pragma unroll
  for (int half = kEights, bit = 16; bit >= 4; half /= 2, bit /= 2) {
    if (half == 0) {
      most[0] = max(most[0], __shfl_xor_sync(kAllLanes, most[0], bit));
      continue;
    }
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const bool upper = (lane & bit) != 0;
      const unsigned sent = upper ? most[i] : most[i + half], kept = upper ? most[i + half] : most[i];
      most[i] = max(kept, __shfl_xor_sync(kAllLanes, sent, bit));
    }
  }
  const int own = lane / 4 / (4 / kEights), hit = 8 * (first + own / 2) + 2 * (lane % 4) + own % 2;
#pragma unroll
  for (unsigned rank = 0; rank < 2; ++rank)
    asm volatile("red.relaxed.cluster.shared::cluster.max.u32 [%0], %1;\n" ::"r"(address_in(most_of_first_hit + static_cast<unsigned>(hit) * 4, rank)), "r"(most[0]) : "memory");
}
template <int kHits>
__device__ inline void gate_hits(const CodesView& view, float (&sums)[64], unsigned most_of_first_hit) {
#pragma unroll
  for (int n = 0; n + 4 <= kHits / 8; n += 4) gate_eights<4>(view, sums, n, most_of_first_hit);
  if constexpr (kHits % 32 == 16) gate_eights<2>(view, sums, kHits / 8 - 2, most_of_first_hit);
}

/// Codes of gated values; `to`: the thread's column of the stretch's first hit.
template <int kHits>
__device__ inline void write_codes(const float (&sums)[64], const float* scales, int first, int count, std::uint8_t* tile, int column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int n = 0; n < kHits / 8; ++n)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int hit = first + 8 * n + 2 * (lane % 4) + j;
      if (hit < count) tile[tile_byte(hit, column)] = rounded_code<true>(sums[4 * n + j], {scales[hit]});
    }
}

/// Two neighbouring rows of kHits hits from `first` on, a thread.
template <CodesMode kMode, int kHits>
__device__ inline void write_sums(const CodesView& view, const CodesTile& tile, const float (&sums)[64], int first, int row) {
  if (row >= view.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t column = row - static_cast<std::int64_t>(view.first_pair) * 2 * kCodeRows;
  float2 factor = make_float2(1, 1), bias = make_float2(0, 0);
  if constexpr (kMode == CodesMode::kRows) factor = make_float2(view.scales[row], view.scales[row + 1]);
  if (view.bias != nullptr) bias = make_float2(element_of(view.bias, view.bias_type, row), element_of(view.bias, view.bias_type, row + 1));
  constexpr int kBatch = 2;  // eights of hits whose sums are read together
#pragma unroll
  for (int n = 0; n < kHits / 8; n += kBatch) {
    float2 made[2 * kBatch];
#pragma unroll
    for (int i = 0; i < 2 * kBatch; ++i) {
      const int hit = first + 8 * (n + i / 2) + 2 * (lane % 4) + i % 2, at = 4 * (n + i / 2) + i % 2;
      const std::int64_t t = tile.run.first + hit;
      made[i] = make_float2(sums[at], sums[at + 2]);
      if (hit >= tile.run.count) continue;
      if constexpr (kMode == CodesMode::kRows) {
        const float scale = view.x_scales[t];
        made[i].x *= scale * factor.x, made[i].y *= scale * factor.y;
      }
      made[i].x += bias.x, made[i].y += bias.y;
      if (view.added != nullptr) {
        const float* added = view.added + t * view.added_stride + column;
        made[i].x += added[0], made[i].y += added[1];
      }
      if (view.accumulate) {
        const float* out = view.y + t * view.y_stride + column;
        made[i].x += out[0], made[i].y += out[1];
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kBatch; ++i) {
      const int hit = first + 8 * (n + i / 2) + 2 * (lane % 4) + i % 2;
      if (hit >= tile.run.count) continue;
      float* out = view.y + (tile.run.first + hit) * view.y_stride + column;
      if (view.twos) *reinterpret_cast<float2*>(out) = made[i];
      else out[0] = made[i].x, out[1] = made[i].y;
    }
  }
}

/// A warpgroup's 64 rows of a tile; kOthers hits after kHits, or none.
template <CodesMode kMode, int kHits, int kOthers>
__device__ inline void multiply_tile(const CodesView& view, const CodesTile& tile, unsigned char* shared, unsigned at, CodesRing& ring, int tiles) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, group = thread / kGroupOfWarps, warp = thread / kWarp % 4;
  const unsigned rank = rank_in_cluster(), own_scales = 8u * static_cast<unsigned>(lane % 4);
  float sums[64], others[64], fresh[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i] = others[i] = fresh[i] = 0.0f;
  const float *first = nullptr, *second = nullptr;
  if constexpr (kMode != CodesMode::kRows) {
    const int block = kMode == CodesMode::kGated ? tile.pair : 2 * tile.pair + static_cast<int>(rank);
    const std::int64_t line = static_cast<std::int64_t>(min(block, (view.rows - 1) / 128)) * view.depths;
    first = view.scales + tile.run.expert * view.scales_step + line;
    if constexpr (kMode == CodesMode::kGated) {
      second = view.up_scales + tile.run.expert * view.up_scales_step + line;
      if (view.up_first) {
        const float* const gate = first;
        first = second, second = gate;
      }
    }
  }
  float scale = first != nullptr ? __ldg(first) : 0.0f, other_scale = second != nullptr ? __ldg(second) : 0.0f;
#pragma unroll 1
  for (int depth = 0; depth < view.depths; ++depth) {
    const float here = scale, other_here = other_scale;
    if constexpr (kMode != CodesMode::kRows) {
      const int next = min(depth + 1, view.depths - 1);
      scale = __ldg(first + next);
      if constexpr (kMode == CodesMode::kGated) other_scale = __ldg(second + next);
    }
    const unsigned stage = at + static_cast<unsigned>(ring.stage) * kCodeStage, weights = stage + static_cast<unsigned>(group) * (kCodeWeightBytes / 2);
    const unsigned hits = stage + kCodeWeightBytes, scales = hits + kCodeHitBytes + own_scales;
    wait_phase(at + CodesRoom::kFull + 8u * static_cast<unsigned>(ring.stage), ring.phase);
    multiply_stretch<kMode, kHits>(sums, fresh, weights, hits, scales, here, other_here);
    if constexpr (kOthers > 0) multiply_stretch<kMode, kOthers>(others, fresh, weights, hits + kHits * kCodeDepth, scales + kHits * 4, here, other_here);
    __syncwarp();
    if (lane < 2) arrive_in(at + CodesRoom::kEmpty + 8u * static_cast<unsigned>(ring.stage), static_cast<unsigned>(lane));
    ring.next();
  }
  if constexpr (kMode == CodesMode::kGated) {
    const unsigned turn = static_cast<unsigned>(tiles) % 3, most = at + CodesRoom::kMost + turn * kCodeHits * 4;
    gate_hits<kHits>(view, sums, most);
    if constexpr (kOthers > 0) gate_hits<kOthers>(view, others, most + kHits * 4);
    __syncwarp();
    if (lane < 2) arrive_in(at + CodesRoom::kExchanged, static_cast<unsigned>(lane));
    wait_phase_of_cluster(at + CodesRoom::kExchanged, static_cast<unsigned>(tiles) & 1);
    auto* all_most = reinterpret_cast<volatile unsigned*>(shared + CodesRoom::kMost);
    auto* scales = reinterpret_cast<float*>(shared + CodesRoom::kScales);
    const float scale_of_hit = rounded_of<true>(__uint_as_float(all_most[turn * kCodeHits + static_cast<unsigned>(thread)]), view.powers).scale;
    all_most[(turn + 2) % 3 * kCodeHits + static_cast<unsigned>(thread)] = 0;  // of the tile before: its next turn is two tiles ahead
    scales[thread] = scale_of_hit;
    if (rank == 0 && thread < tile.run.count) view.code_scales[tile.slot * view.code_depths + static_cast<std::int64_t>(tile.pair) * tile.padded + thread] = scale_of_hit;
    wait_at(1, 2 * kGroupOfWarps);
    std::uint8_t* stretch = view.codes + (tile.slot * view.code_depths + static_cast<std::int64_t>(tile.pair) * tile.padded) * kCodeDepth;
    const int column = static_cast<int>(rank) * 64 + group * 32 + warp * 8 + lane / 4;
    write_codes<kHits>(sums, scales, 0, tile.run.count, stretch, column);
    if constexpr (kOthers > 0) write_codes<kOthers>(others, scales, kHits, tile.run.count, stretch, column);
  } else {
    const int row = (2 * tile.pair + static_cast<int>(rank)) * kCodeRows + group * 64 + warp * 16 + lane / 4 * 2;
    write_sums<kMode, kHits>(view, tile, sums, 0, row);
    if constexpr (kOthers > 0) write_sums<kMode, kOthers>(view, tile, others, kHits, row);
  }
}

/// A warpgroup: all tiles of the cluster.
template <CodesMode kMode>
__device__ inline void multiply_tiles(const CodesView& view, unsigned char* shared, unsigned at) {
  const int clusters = static_cast<int>(gridDim.x) / 2;
  CodesRing ring;
  CodesTile tile;
  int tiles = 0;
#pragma unroll 1
  for (int number = static_cast<int>(blockIdx.x) / 2; find_tile<kMode>(view, number, tile); number += clusters, ++tiles) {
    switch ((tile.run.count + 31) / 32) {
      case 1: multiply_tile<kMode, 32, 0>(view, tile, shared, at, ring, tiles); break;
      case 2: multiply_tile<kMode, 64, 0>(view, tile, shared, at, ring, tiles); break;
      case 3: multiply_tile<kMode, 96, 0>(view, tile, shared, at, ring, tiles); break;
      case 4: multiply_tile<kMode, 128, 0>(view, tile, shared, at, ring, tiles); break;
      case 5: multiply_tile<kMode, 80, 80>(view, tile, shared, at, ring, tiles); break;
      case 6: multiply_tile<kMode, 96, 96>(view, tile, shared, at, ring, tiles); break;
      case 7: multiply_tile<kMode, 112, 112>(view, tile, shared, at, ring, tiles); break;
      default: multiply_tile<kMode, 128, 128>(view, tile, shared, at, ring, tiles); break;
    }
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
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < kCodeStages; ++stage) init_barrier(at + CodesRoom::kFull + 8 * stage, 1), init_barrier(at + CodesRoom::kEmpty + 8 * stage, 16);
    init_barrier(at + CodesRoom::kExchanged, 16);
    publish_barriers();
  }
  for (int i = static_cast<int>(threadIdx.x); i < 3 * kCodeHits; i += kCodeThreads) reinterpret_cast<unsigned*>(shared + CodesRoom::kMost)[i] = 0;
  __syncthreads();
  sync_cluster();
  after_previous();
  if (threadIdx.x < 2 * kGroupOfWarps) {
    take_registers<232>();
    multiply_tiles<kMode>(view, shared, at);
  } else {
    give_registers<40>();
    if (threadIdx.x == 2 * kGroupOfWarps) read_codes<kMode>(view, at);
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
