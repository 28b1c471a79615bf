// Products of mixtures of experts with 16-bit weights on Hopper's matrix units, for many hits an expert: see experts_mma.cuh for what goes
// in and out.
#pragma once
#include "backends/cuda/experts_mma.cuh"
#include "backends/cuda/wgmma.cuh"

namespace fathom::cuda {

inline constexpr int kPanelThreads = 2 * kGroupOfWarps, kPanelHits = 128, kPanelRows = 256, kPanelDepth = 64, kPanelStages = 4;
inline constexpr unsigned kPanelHitBytes = kPanelHits * kPanelDepth * 2, kPanelStage = kPanelHitBytes + kPanelRows * kPanelDepth * 2;
inline constexpr int kPanelBytes = static_cast<int>(kPanelStages * kPanelStage) + 1024;  // 1024: to start at a multiple of it

#if defined(FATHOM_WGMMA_HERE)

/// Which 16-byte chunks of a stage a thread copies: chunk `chunk` of hits line + 32·i and of rows line + 32·i.
template <class T, bool kGated>
struct PanelReader {
  const T* x[kPanelHits / 32];  // null: no hit
  const T* w;                   // of the thread's first row
  std::int64_t w_step;          // from one of its rows to the next
  int w_rows, chunk, line, cols;  // w_rows: how many of them there are

  __device__ PanelReader(const MmaView& view, const RunOfExpert& run, std::int64_t first_row) {
    chunk = static_cast<int>(threadIdx.x) % 8, line = static_cast<int>(threadIdx.x) / 8, cols = static_cast<int>(view.cols);
#pragma unroll
    for (int i = 0; i < kPanelHits / 32; ++i) {
      const int hit = run.first + line + 32 * i;
      x[i] = line + 32 * i < run.count ? reinterpret_cast<const T*>(view.x) + (view.token != nullptr ? view.token[hit] : hit) * view.x_stride + 8 * chunk : nullptr;
    }
    // Of a gated product, eight rows of the one matrix are followed by the same of the other.
    const std::int64_t row = first_row + (kGated ? line / 16 * 8 + line % 8 : line), step = kGated ? 16 : 32;
    const bool second = kGated && line / 8 % 2 == 1;
    w = reinterpret_cast<const T*>(second ? view.second.data_of(run.expert) : view.first.data_of(run.expert)) + row * cols + 8 * chunk;
    w_step = step * cols;
    w_rows = static_cast<int>(row < view.rows ? min((view.rows - row + step - 1) / step, static_cast<std::int64_t>(kPanelRows / 32)) : 0);
  }

  __device__ void read(int depth, unsigned to) const {
    const int col = depth * kPanelDepth;
    const bool here = col + 8 * chunk < cols;
    const unsigned at = to + wide_swizzled(line, chunk, 0);
#pragma unroll
    for (int i = 0; i < kPanelHits / 32; ++i) copy_16(at + i * 32 * 128, here && x[i] != nullptr ? x[i] + col : w, here && x[i] != nullptr);
#pragma unroll
    for (int i = 0; i < kPanelRows / 32; ++i) copy_16(at + kPanelHitBytes + i * 32 * 128, here && i < w_rows ? w + i * w_step + col : w, here && i < w_rows);
  }
};

template <class T, bool kGated>
__device__ inline void write_panel(const MmaView& view, const RunOfExpert& run, std::int64_t first_row, const float (&sums)[128]) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int hit = 16 * (thread / kWarp) + 8 * i + lane / 4;
    if (hit >= run.count) continue;
    const std::int64_t at = (run.first + hit) * view.rows;
    if constexpr (kGated) {
#pragma unroll
      for (int n = 0; n < 32; n += 2) {
        const std::int64_t row = first_row + 4 * n + 2 * (lane % 4);
        if (row < view.rows)
          *reinterpret_cast<unsigned*>(reinterpret_cast<T*>(view.y) + at + row) = pack_two<T>(gated(sums[4 * n + 2 * i], sums[4 * n + 4 + 2 * i], view.limit),
                                                                                              gated(sums[4 * n + 2 * i + 1], sums[4 * n + 5 + 2 * i], view.limit));
      }
    } else {
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const std::int64_t row = first_row + 8 * n + 2 * (lane % 4);
        if (row < view.rows) *reinterpret_cast<float2*>(reinterpret_cast<float*>(view.y) + at + row) = make_float2(sums[4 * n + 2 * i], sums[4 * n + 2 * i + 1]);
      }
    }
  }
}

#endif  // FATHOM_WGMMA_HERE

/// Tiles of 128 hits × 256 rows of the weights (128 of each matrix of a gated product), 64 columns deep, four deep in shared memory: one is
/// multiplied, one may still be, two are on their way. A warpgroup has 64 hits. Grid: blocks of rows, runs of 128 hits.
template <class T, bool kGated>
__global__ void __launch_bounds__(kPanelThreads, 1) multiply_panels(const __grid_constant__ MmaView view) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ unsigned char panel_room[];
  const RunOfExpert run = view.runs[blockIdx.y];
  if (run.expert < 0) return;
  const unsigned room = (shared_address(panel_room) + 1023) / 1024 * 1024;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * (kGated ? kPanelRows / 2 : kPanelRows);
  const PanelReader<T, kGated> reader(view, run, first_row);
  const int depths = (reader.cols + kPanelDepth - 1) / kPanelDepth, hits = static_cast<int>(threadIdx.x) / kGroupOfWarps * 64;
  const auto fetch = [&](int depth) {
    if (depth < depths) reader.read(depth, room + depth % kPanelStages * kPanelStage);
    commit_copies();
  };
  const auto arrive_at_depth = [&] {  // it is there, and the one two before has been multiplied
    wait_copies<1>();
    publish_shared();
    __syncthreads();
  };
  fetch(0);
  fetch(1);
  if (hits >= run.count) {  // this warpgroup only reads
#pragma unroll 1
    for (int depth = 0; depth < depths; ++depth) {
      arrive_at_depth();
      fetch(depth + 2);
    }
    return;
  }
  float sums[128];
#pragma unroll
  for (float& x : sums) x = 0.0f;
#pragma unroll 1
  for (int depth = 0; depth < depths; ++depth) {
    arrive_at_depth();
    const unsigned x_tile = room + depth % kPanelStages * kPanelStage, w_tile = x_tile + kPanelHitBytes;
    begin_products();
#pragma unroll
    for (int step = 0; step < kPanelDepth / 16; ++step) multiply_256_by_rows<T>(sums, by_rows(x_tile + hits * 128 + 32 * step), by_rows(w_tile + 32 * step), true);
    commit_products();
    fetch(depth + 2);
    wait_products<1>();
  }
  wait_products<0>();
  write_panel<T, kGated>(view, run, first_row, sums);
#endif
}

}  // namespace fathom::cuda
