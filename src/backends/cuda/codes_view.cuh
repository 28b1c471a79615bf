// What the kernel of codes_wide.cuh is told, and who launches each of its modes: each is compiled alone.
#pragma once
#include <cuda.h>

#include "backends/cuda/experts.cuh"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {

inline constexpr int kCodeHits = 192, kCodeDepth = 128, kCodeRows = 128;  // of a tile
inline constexpr int kCodeGroups = kCodeHits / 64;                        // warpgroups that multiply
inline constexpr int kCodeThreads = (kCodeGroups + 1) * 128;
inline constexpr unsigned kCodeStages = 5;
inline constexpr unsigned kCodeWeightBytes = kCodeRows * kCodeDepth, kCodeScales = kCodeWeightBytes + kCodeHits * kCodeDepth;
inline constexpr unsigned kCodeStage = (kCodeScales + kCodeHits * 4 + 1023) / 1024 * 1024;
inline constexpr int kCodeBytes = static_cast<int>(kCodeStages * kCodeStage + 128 + 4 * kCodeHits * 4) + 1024;

enum class CodesMode {
  kGated,  // gate and up matrices: the gated result is rounded for the next product
  kDown,   // down matrices
};

struct CodesView {
  CUtensorMap weights;  // 128 columns, 8 rows, 2 of a pair, groups of 8 or 16 rows, experts
  const float *scales = nullptr, *up_scales = nullptr;
  std::int64_t scales_step = 0, up_scales_step = 0;  // an expert
  int rows = 0;                                      // of the result
  int depths = 0;                                    // stretches of 128 columns
  int first_pair = 0, pairs = 0;                     // of tiles: what this launch makes
  const RunOfExpert* runs = nullptr;
  int run_count = 0;                                 // some at the end may be none
  std::int64_t first_slot = 0, slots = 0;            // runs that begin in these; x begins with the first
  const std::uint8_t* x = nullptr;
  const float* x_scales = nullptr;
  bool up_first = false;                             // of each pair
  float limit = 0;
  bool powers = false;                               // scales of the result
  std::uint8_t* codes = nullptr;                     // kGated: the result as tiles
  float* code_scales = nullptr;
  int code_depths = 0;
  __nv_bfloat16* y = nullptr;                        // else: [hits, y_stride], from row first_pair's first on
  std::int64_t y_stride = 0;                         // a multiple of 4
};

/// Where a run's hits lie: a multiple of 8, and room for up to 7 more than the run has.
__host__ __device__ inline std::int64_t slot_of(std::int64_t first, std::int64_t run) { return (first + 7) / 8 * 8 + 8 * run; }
__host__ __device__ inline std::int64_t padded_hits(std::int64_t count) { return (count + 7) / 8 * 8; }
/// Slots of `hits` hits in `runs` runs.
inline std::int64_t slots_of(std::int64_t hits, std::int64_t runs) { return slot_of(hits, runs) + 8; }

/// Byte `column` of hit `hit` in a stretch of a tile.
__device__ inline int tile_byte(int hit, int column) { return hit * 128 + (column / 16 ^ (hit & 7)) * 16 + column % 16; }

void launch_gated(Context& context, const CodesView& view);
void launch_down(Context& context, const CodesView& view);

}  // namespace fathom::cuda
