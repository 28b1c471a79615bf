// The kernels of mixtures of experts; ops_experts.cu chooses among them. A hit is a (token, expert) pair of an expert that is here; hits are
// sorted by expert, then token, then slot. A run is some hits of one expert, one after the other.
#pragma once
#include "backends/cuda/device_math.cuh"
#include "backends/cuda/launch.cuh"

namespace fathom::cuda {

inline constexpr int kGatherThreads = 1024;
inline constexpr int kMostExperts = 1024;    // on one device
inline constexpr int kMostChoices = 64;      // top_k
inline constexpr int kGatherRoom = 8192;     // counts
inline constexpr int kProductThreads = 256;

// ---------------------------------------------------------------- gathering

struct RunOfExpert { int expert = -1, first = 0, count = 0; };

struct GatherView {
  View<const std::int32_t> indices;  // [tokens, top_k]
  int pairs = 0, top_k = 1, first_expert = 0, here = 0, run = 1, most_runs = 0;  // run: hits of a run at most
  std::int32_t* token = nullptr;       // [hits]: of each hit, counted from the view's first
  std::int32_t* hit = nullptr;         // [pairs]: its hit, -1 where the expert is not here
  RunOfExpert* runs = nullptr;         // [most_runs]; expert -1 after the last
  std::int32_t* hits = nullptr;        // [1]: their number; may be null
};

/// Inclusive sums over the block's values of two counts.
__device__ inline int2 block_scan(int2 value, int2 (&room)[kWarp]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto scan = [&](int2 sum) {
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int x = __shfl_up_sync(kAllLanes, sum.x, step), y = __shfl_up_sync(kAllLanes, sum.y, step);
      if (lane >= step) sum.x += x, sum.y += y;
    }
    return sum;
  };
  value = scan(value);
  if (lane == kWarp - 1) room[warp] = value;
  __syncthreads();
  const int2 warps = scan(room[lane]);
  const int x = __shfl_sync(kAllLanes, warps.x, max(warp - 1, 0)), y = __shfl_sync(kAllLanes, warps.y, max(warp - 1, 0));
  return warp == 0 ? value : make_int2(value.x + x, value.y + y);
}

/// One block. Each warp has a stretch of the pairs: it counts them by expert, and when all counts are summed up it places them, in their order.
static __global__ void __launch_bounds__(kGatherThreads) gather_hits(const __grid_constant__ GatherView view) {
  after_previous();
  static_assert(kGatherThreads == kWarp * kWarp && kGatherThreads >= kMostExperts && kGatherRoom >= kMostExperts);
  __shared__ std::int32_t places[kGatherRoom], all_runs;  // [stretches, here]: counts, then where the stretch's next hit of the expert goes
  __shared__ int2 room[kWarp];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp, here = view.here;
  const int stretches = min(kWarp, kGatherRoom / max(here, 1)), length = (view.pairs + stretches - 1) / stretches;
  const int first = min(warp, stretches) * length, last = warp < stretches ? min(first + length, view.pairs) : 0;
  std::int32_t* const own_places = places + warp * here;
  const auto expert_of = [&](int pair) { return view.indices.at(pair / view.top_k)[pair % view.top_k] - view.first_expert; };
  for (int i = thread; i < stretches * here; i += kGatherThreads) places[i] = 0;
  __syncthreads();
  for (int pair = first + lane; pair < last; pair += kWarp) {
    const int expert = expert_of(pair);
    if (expert >= 0 && expert < here) atomicAdd(&own_places[expert], 1);
    else view.hit[pair] = -1;
  }
  __syncthreads();
  std::int32_t own = 0;
  if (thread < here)
    for (int s = 0; s < stretches; ++s) own += places[s * here + thread];
  const std::int32_t runs = (own + view.run - 1) / view.run;
  const int2 ends = block_scan(make_int2(own, runs), room);
  std::int32_t next = ends.x - own;
  for (int i = 0; i < runs; ++i) view.runs[ends.y - runs + i] = {thread, next + i * view.run, min(view.run, own - i * view.run)};
  if (thread == kGatherThreads - 1) {
    all_runs = ends.y;
    if (view.hits != nullptr) *view.hits = ends.x;
  }
  if (thread < here)
    for (int s = 0; s < stretches; ++s) {
      const std::int32_t count = places[s * here + thread];
      places[s * here + thread] = next;
      next += count;
    }
  __syncthreads();
  for (int i = all_runs + thread; i < view.most_runs; i += kGatherThreads) view.runs[i] = {};
  for (int base = first; base < last; base += kWarp) {
    const int pair = base + lane, expert = pair < last ? expert_of(pair) : -1;
    const bool is_here = expert >= 0 && expert < here;
    const unsigned same = __match_any_sync(kAllLanes, is_here ? expert : -1);
    const int rank = __popc(same & ((1u << lane) - 1u));
    if (is_here) {
      const std::int32_t place = own_places[expert] + rank;
      view.token[place] = pair / view.top_k;
      view.hit[pair] = place;
    }
    __syncwarp();
    if (is_here && rank == 0) own_places[expert] += __popc(same);
    __syncwarp();
  }
}

// ---------------------------------------------------------------- products

/// One matrix of every expert: evenly spaced, or by a table.
struct MatrixOfExperts {
  const std::byte *data = nullptr, *scales = nullptr;
  std::int64_t data_step = 0, scales_step = 0;
  const std::byte* const* table = nullptr;  // [here, 2]: data and scales
  __device__ const std::byte* data_of(int expert) const { return table != nullptr ? table[2 * expert] : data + expert * data_step; }
  __device__ const std::byte* scales_of(int expert) const { return table != nullptr ? table[2 * expert + 1] : scales + expert * scales_step; }
};

/// y[hit, :] = W x, or gated(W x, U x), for the rows x of every hit.
struct ProductView {
  MatrixOfExperts first, second;       // second: of the gated product
  tensor::WeightFormat format = tensor::WeightFormat::f32;
  std::int64_t rows = 0, cols = 0;
  const float* x = nullptr;            // row of hit i: token[i] (i where token is null) · x_stride
  std::int64_t x_stride = 0;
  const std::int32_t* token = nullptr;
  float* y = nullptr;                  // [hits, rows]
  float limit = 0;
  const RunOfExpert* runs = nullptr;   // expert -1: none
  int run = 1;                         // hits of a run at most
};

__device__ inline const float* row_of_hit(const ProductView& view, int hit) {
  return view.x + (view.token != nullptr ? view.token[hit] : hit) * view.x_stride;
}

template <tensor::WeightFormat F>
inline constexpr bool kHasScales = F == tensor::WeightFormat::fp8_block128 || F == tensor::WeightFormat::mxfp4 || F == tensor::WeightFormat::int8_row || F == tensor::WeightFormat::int4_group128;

/// Eight elements of row `row` from column `col` on, in two steps, so that reading can run ahead. Columns beyond the row are zero.
template <tensor::WeightFormat F, bool kVector>
struct EightColumns {
  EightOf<F> bits;
  float scale = 1.0f, shift = 0.0f;  // shift: int4's zero point
  __device__ void read(const ProductView& view, const std::byte* data, const std::byte* scales, std::int64_t row, std::int64_t col) {
    bits.read(data + row * view.cols * kBitsOf / 8, col);
    if constexpr (kHasScales<F>) scale = weight_scale(view.format, scales, row, col, view.cols);
    if constexpr (F == tensor::WeightFormat::int4_group128)
      if (has_zeros(view.format)) shift = static_cast<float>(8 - weight_zero(view.format, scales, row, col, view.rows, view.cols));
  }
  __device__ void widen(float (&out)[8]) const {
    bits.widen(out);
    if constexpr (kHasScales<F>) {
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = F == tensor::WeightFormat::int4_group128 ? (out[i] + shift) * scale : out[i] * scale;
    }
  }
  static constexpr std::int64_t kBitsOf = F == tensor::WeightFormat::f32 ? 32
                                      : F == tensor::WeightFormat::mxfp4 || F == tensor::WeightFormat::int4_group128 ? 4
                                      : F == tensor::WeightFormat::fp8_block128 || F == tensor::WeightFormat::int8_row ? 8 : 16;
};
/// Any format, rows of any length at any address.
template <tensor::WeightFormat F>
struct EightColumns<F, false> {
  float values[8];
  __device__ void read(const ProductView& view, const std::byte* data, const std::byte* scales, std::int64_t row, std::int64_t col) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = col + i < view.cols ? load_weight(view.format, data, scales, row, col + i, view.rows, view.cols) : 0.0f;
  }
  __device__ void widen(float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = values[i];
  }
};

template <bool kVector>
__device__ inline void read_x(const float* x, std::int64_t col, std::int64_t cols, float (&out)[8]) {
  if constexpr (kVector) {
    const float4 low = *reinterpret_cast<const float4*>(x + col), high = *reinterpret_cast<const float4*>(x + col + 4);
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = col + i < cols ? x[col + i] : 0.0f;
  }
}

/// For few tokens: a warp takes one row of the weights and all (at most kHits) hits of a run, so that the row is read once.
/// Grid: rows in groups of 8, runs.
template <tensor::WeightFormat F, bool kVector, bool kGated, int kHits>
__global__ void __launch_bounds__(kProductThreads) multiply_few(const __grid_constant__ ProductView view) {
  after_previous();
  const RunOfExpert run = view.runs[blockIdx.y];
  const int lane = threadIdx.x % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kProductThreads / kWarp) + threadIdx.x / kWarp;
  if (run.expert < 0 || row >= view.rows) return;
  const std::byte *first = view.first.data_of(run.expert), *first_scales = view.first.scales_of(run.expert);
  const std::byte *second = kGated ? view.second.data_of(run.expert) : nullptr, *second_scales = kGated ? view.second.scales_of(run.expert) : nullptr;
  const float* x[kHits];
#pragma unroll
  for (int n = 0; n < kHits; ++n) x[n] = row_of_hit(view, run.first + min(n, run.count - 1));
  float sums[kHits] = {}, others[kHits] = {};
#pragma unroll 2
  for (std::int64_t col = 8 * lane; col < view.cols; col += 8 * kWarp) {
    EightColumns<F, kVector> a, b;
    a.read(view, first, first_scales, row, col);
    if constexpr (kGated) b.read(view, second, second_scales, row, col);
    float wide[8], other[8];
    a.widen(wide);
    if constexpr (kGated) b.widen(other);
#pragma unroll
    for (int n = 0; n < kHits; ++n) {
      if (n >= run.count) break;
      float values[8];
      read_x<kVector>(x[n], col, view.cols, values);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums[n] += wide[i] * values[i];
        if constexpr (kGated) others[n] += other[i] * values[i];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kHits; ++n) {
    if (n >= run.count) break;
    float value = warp_sum(sums[n]);
    if constexpr (kGated) value = gated(value, warp_sum(others[n]), view.limit);
    if (lane == 0) view.y[(run.first + n) * view.rows + row] = value;
  }
}

inline constexpr int kTileHits = 64, kTileRows = 64, kTileDepth = 32;

struct ProductTile {
  static constexpr int kStride = kTileDepth + 4;
  float x[kTileHits][kStride], first[kTileRows][kStride], second[kTileRows][kStride];
};

/// For many tokens: tiles of 64 hits × 64 rows through shared memory, the next depth read while this one is multiplied. Thread
/// (tx, ty) of 16 × 16 has hits ty + 16·i and rows tx + 16·j. Grid: blocks of rows, runs of 64 hits.
template <tensor::WeightFormat F, bool kVector, bool kGated>
__global__ void __launch_bounds__(kProductThreads) multiply_many(const __grid_constant__ ProductView view) {
  after_previous();
  __shared__ __align__(16) ProductTile tile;
  const RunOfExpert run = view.runs[blockIdx.y];
  if (run.expert < 0) return;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, own = threadIdx.x / 4, at = threadIdx.x % 4 * 8;  // own: the hit and the row that this thread loads
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kTileRows;
  const std::byte *first = view.first.data_of(run.expert), *first_scales = view.first.scales_of(run.expert);
  const std::byte *second = kGated ? view.second.data_of(run.expert) : nullptr, *second_scales = kGated ? view.second.scales_of(run.expert) : nullptr;
  const float* x = own < run.count ? row_of_hit(view, run.first + own) : nullptr;
  const bool has_row = first_row + own < view.rows;
  float sums[4][4] = {}, others[4][4] = {};
  float x_next[8], first_next[8], second_next[8];
  const auto read = [&](std::int64_t depth) {
    const std::int64_t col = depth + at;
#pragma unroll
    for (int i = 0; i < 8; ++i) x_next[i] = first_next[i] = second_next[i] = 0.0f;
    if (col >= view.cols) return;
    if (x != nullptr) read_x<kVector>(x, col, view.cols, x_next);
    if (!has_row) return;
    EightColumns<F, kVector> eight;
    eight.read(view, first, first_scales, first_row + own, col);
    eight.widen(first_next);
    if constexpr (kGated) {
      eight.read(view, second, second_scales, first_row + own, col);
      eight.widen(second_next);
    }
  };
  const auto put = [&](float (&row)[ProductTile::kStride], const float (&values)[8]) {
    *reinterpret_cast<float4*>(&row[at]) = make_float4(values[0], values[1], values[2], values[3]);
    *reinterpret_cast<float4*>(&row[at + 4]) = make_float4(values[4], values[5], values[6], values[7]);
  };
  read(0);
  for (std::int64_t depth = 0; depth < view.cols; depth += kTileDepth) {
    __syncthreads();
    put(tile.x[own], x_next);
    put(tile.first[own], first_next);
    if constexpr (kGated) put(tile.second[own], second_next);
    __syncthreads();
    if (depth + kTileDepth < view.cols) read(depth + kTileDepth);
#pragma unroll
    for (int d = 0; d < kTileDepth; d += 4) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = *reinterpret_cast<const float4*>(&tile.x[ty + 16 * i][d]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(&tile.first[tx + 16 * j][d]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i][j] += a[i].x * b.x + a[i].y * b.y + a[i].z * b.z + a[i].w * b.w;
        if constexpr (kGated) {
          const float4 c = *reinterpret_cast<const float4*>(&tile.second[tx + 16 * j][d]);
#pragma unroll
          for (int i = 0; i < 4; ++i) others[i][j] += a[i].x * c.x + a[i].y * c.y + a[i].z * c.z + a[i].w * c.w;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int hit = ty + 16 * i;
      const std::int64_t row = first_row + tx + 16 * j;
      if (hit < run.count && row < view.rows) view.y[(run.first + hit) * view.rows + row] = kGated ? gated(sums[i][j], others[i][j], view.limit) : sums[i][j];
    }
}

// ---------------------------------------------------------------- joining

struct CombineView {
  View<const std::int32_t> indices;  // [tokens, top_k]
  View<const float> weights;         // [tokens, top_k]
  const std::int32_t* hit = nullptr;  // [tokens · top_k]
  const float* y = nullptr;          // [hits, h]
  const __nv_bfloat16* y16 = nullptr;  // instead of y
  View<float> out;                   // [tokens, h]
  int top_k = 1;
  bool accumulate = false;
  bool fours = false;                // columns come in fours, at multiples of 16 bytes
};

inline constexpr int kCombineThreads = 256, kCombineColumns = 1024;  // columns: of a block; twice as many of y16

/// Eight columns of a token: sum += weights · y16.
__device__ inline void combine_eight(const CombineView& view, const std::int32_t* hits, const float* weights, int count, std::int64_t column, float* out) {
  const std::int64_t h = view.out.dims[1];
  float sum[8];
#pragma unroll
  for (int j = 0; j < 8; j += 4) *reinterpret_cast<float4*>(sum + j) = view.accumulate ? *reinterpret_cast<const float4*>(out + column + j) : make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const uint4 y = *reinterpret_cast<const uint4*>(view.y16 + hits[i] * h + column);
    const unsigned twos[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[2 * j] += weights[i] * __uint_as_float(twos[j] << 16), sum[2 * j + 1] += weights[i] * __uint_as_float(twos[j] & 0xffff0000u);
  }
#pragma unroll
  for (int j = 0; j < 8; j += 4) *reinterpret_cast<float4*>(out + column + j) = *reinterpret_cast<const float4*>(sum + j);
}

/// out[token] (+)= the sum of weight · y over its hits, experts ascending. Grid: tokens, blocks of columns.
static __global__ void __launch_bounds__(kCombineThreads) combine_hits(const __grid_constant__ CombineView view) {
  static_assert(kMostChoices == 2 * kWarp);
  after_previous();
  __shared__ std::int32_t hits[kMostChoices];
  __shared__ float weights[kMostChoices];
  const std::int64_t token = blockIdx.x;
  const int own = static_cast<int>(threadIdx.x), lane = own % kWarp;
  // Hits are numbered by expert, then token, then slot: the order of a token's hits is that of their numbers. Every warp finds it.
  std::int32_t hit[2];
  float weight[2];
  int count = 0, rank[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int choice = lane + half * kWarp;
    hit[half] = choice < view.top_k ? view.hit[token * view.top_k + choice] : -1;
    weight[half] = choice < view.top_k ? view.weights.at(token)[choice] : 0.0f;
    count += __popc(__ballot_sync(kAllLanes, hit[half] >= 0));
  }
  for (int j = 0; j < min(view.top_k, kMostChoices); ++j) {
    const std::int32_t other = __shfl_sync(kAllLanes, j < kWarp ? hit[0] : hit[1], j % kWarp);
    if (other < 0) continue;
    rank[0] += other < hit[0], rank[1] += other < hit[1];
  }
  if (own < kWarp) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (hit[half] >= 0) hits[rank[half]] = hit[half], weights[rank[half]] = weight[half];
  }
  __syncthreads();
  const int columns = view.y16 != nullptr ? 2 * kCombineColumns : kCombineColumns;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * columns, h = view.out.dims[1], last = min(first + columns, h);
  float* out = view.out.at(token);
  if (view.y16 != nullptr && view.fours && h % 8 == 0) {
    if (first + 8 * own < last) combine_eight(view, hits, weights, count, first + 8 * own, out);
    return;
  }
  if (view.fours && view.y16 == nullptr) {
    const std::int64_t column = first + 4 * own;
    if (column >= last) return;
    float4 sum = view.accumulate ? *reinterpret_cast<const float4*>(out + column) : make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float4 y = *reinterpret_cast<const float4*>(view.y + hits[i] * h + column);
      sum.x += weights[i] * y.x, sum.y += weights[i] * y.y, sum.z += weights[i] * y.z, sum.w += weights[i] * y.w;
    }
    *reinterpret_cast<float4*>(out + column) = sum;
    return;
  }
  for (std::int64_t column = first + own; column < last; column += kCombineThreads) {
    float sum = view.accumulate ? out[column] : 0.0f;
#pragma unroll 8
    for (int i = 0; i < count; ++i) sum += weights[i] * (view.y16 != nullptr ? __bfloat162float(view.y16[hits[i] * h + column]) : view.y[hits[i] * h + column]);
    out[column] = sum;
  }
}

}  // namespace fathom::cuda
