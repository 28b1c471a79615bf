// The kernels of few tokens: a weight is read once, 16 bytes or eight elements a load, dequantized in registers, summed in f32 with f32
// activations. Weights begin to come before the launches that make x have finished; linear_few.cu launches.
#pragma once
#include "backends/cuda/fetch.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/product.cuh"
#include "backends/cuda/route.cuh"

namespace fathom::cuda {

inline constexpr int kRowsAWarp = 4, kWarpsABlock = 8;
/// Loads of eight elements a row that a lane has in flight.
template <tensor::WeightFormat F>
inline constexpr int kAhead = F == tensor::WeightFormat::f32 ? 1 : F == tensor::WeightFormat::f16 || F == tensor::WeightFormat::bf16 ? 2 : 4;
template <tensor::WeightFormat F>
inline constexpr bool kScaled = F == tensor::WeightFormat::fp8_block128 || F == tensor::WeightFormat::mxfp4 || F == tensor::WeightFormat::int8_row || F == tensor::WeightFormat::int4_group128;
template <tensor::WeightFormat F>
inline constexpr int kBytesOfEight = F == tensor::WeightFormat::f32 ? 32
                                    : F == tensor::WeightFormat::mxfp4 || F == tensor::WeightFormat::int4_group128 ? 4
                                    : F == tensor::WeightFormat::fp8_block128 || F == tensor::WeightFormat::int8_row ? 8 : 16;

/// The weight rows of a warp: a row of a product each, or, of gated products, half of them gates and half their ups.
struct WarpRows {
  const WeightView* weight[kRowsAWarp];
  std::int64_t row[kRowsAWarp];
};

/// What of the rows is on its way, from column `col` on, every `step` columns.
template <tensor::WeightFormat F>
struct OnTheWay {
  EightOf<F> eight[kAhead<F>][kRowsAWarp];
  __device__ void read(const WarpRows& rows, std::int64_t cols, std::int64_t col, std::int64_t step) {
#pragma unroll
    for (int a = 0; a < kAhead<F>; ++a) read_place(a, rows, cols, col + a * step);
  }
  /// One of kAhead places.
  __device__ void read_place(int a, const WarpRows& rows, std::int64_t cols, std::int64_t col) {
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r)
      if (col < cols) eight[a][r].read(rows.weight[r]->data, rows.row[r] * cols + col);
  }
};

/// Rows of x, eight columns at a time: as they lie in memory; or, where x is a norm that nobody has made yet, from · weight, with the squares of
/// `from` added up on the way: sums of products want the norm's factor once, at their end.
template <bool kNormed>
struct RowsOfX {
  const float* x;
  std::int64_t stride, last;  // last: token
  const NormedX* norm;
  float squares;
  __device__ void read(int token, std::int64_t col, float (&out)[8]) {
    if constexpr (kNormed) {
      float weight[8];
      read_eight_floats(norm->from + col, out);
      read_eight_of(norm->weight, norm->weight_type, col, weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += out[i] * out[i], out[i] *= weight[i];
    } else {
      read_eight_floats(x + min(static_cast<std::int64_t>(token), last) * stride + col, out);
    }
  }
};

/// x = from · weight · factor, by all threads of a block.
__device__ inline void write_normed(const NormedX& norm, float factor) {
  for (std::int64_t at = threadIdx.x * 8; at < norm.n; at += blockDim.x * 8) {
    float x[8], weight[8];
    read_eight_floats(norm.from + at, x);
    read_eight_of(norm.weight, norm.weight_type, at, weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) norm.x[at + i] = x[i] * factor * weight[i];
  }
}

/// acc[row][token] += the products of eight columns from `col` on.
template <tensor::WeightFormat F, int kTokens, bool kNormed>
__device__ void multiply_eight(const EightOf<F> (&eight)[kRowsAWarp], const WarpRows& rows, std::int64_t cols, std::int64_t col, RowsOfX<kNormed>& x,
                               float (&acc)[kRowsAWarp][kTokens]) {
  float w[kRowsAWarp][8];
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    eight[r].widen(w[r]);
    if constexpr (F == tensor::WeightFormat::int4_group128) add_zero(*rows.weight[r], rows.row[r], col, w[r]);
    if constexpr (kScaled<F>) {
      const float scale = weight_scale(rows.weight[r]->format, rows.weight[r]->scales, rows.row[r], col, cols);
#pragma unroll
      for (int i = 0; i < 8; ++i) w[r][i] *= scale;
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float v[8];
    x.read(t, col, v);
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r)
#pragma unroll
      for (int i = 0; i < 8; ++i) acc[r][t] += w[r][i] * v[i];
  }
}

/// A warp has kRowsAWarp rows and every `splits`-th stretch of 256 columns of them; the warps that share rows are in one block and
/// add up in a fixed order.
/// With kRoutes the first block chooses the experts of a token instead, which nothing here needs (dynamic shared memory: route_bytes). It begins
/// with whatever lies there, so that its instructions have come when its turn does.
/// A third product of normed gated ones is plain: the first blocks'.
template <tensor::WeightFormat F, int kTokens, bool kNormed, bool kGated, bool kRoutes = false>
__global__ void __launch_bounds__(kWarpsABlock * kWarp, kTokens != 1 ? 1 : kNormed && kGated ? 3 : 4) few_kernel(const __grid_constant__ Together all, int splits, const __grid_constant__ RouteView route) {
  static_assert(kRowsAWarp * kTokens <= kWarp && (!kNormed || kTokens == 1));
  constexpr int kOwn = kGated ? kRowsAWarp / 2 : kRowsAWarp;  // outputs of a warp
  constexpr int kSums = kRowsAWarp * kTokens;
  __shared__ float room[kWarpsABlock][kSums], squares[kWarpsABlock];
  let_next_start();
  if constexpr (kRoutes) {
    extern __shared__ double route_room[];
    if (blockIdx.x == 0) {
#pragma unroll 1
      for (int turn = route.table == nullptr ? 0 : 1; turn < 2; ++turn) {
        if (turn == 1) wait_for_previous();
        if (threadIdx.x < kWarp) route_token(route, 0, route_room, turn == 1);
      }
      return;
    }
  }
  int which = 0;
  bool pairs = kGated;
  if constexpr (!kGated)
    while (which + 1 < all.count && blockIdx.x >= all.first_block[which + 1]) ++which;
  else if constexpr (kNormed)
    if (blockIdx.x < all.first_block[0]) which = 2, pairs = false;
  const Product& p = all.products[which];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, split = warp % splits;
  const int own_rows = pairs ? kOwn : kRowsAWarp;
  const std::int64_t g = blockIdx.y, first = (static_cast<std::int64_t>(blockIdx.x - all.first_block[which]) * (kWarpsABlock / splits) + warp / splits) * own_rows;
  const std::int64_t cols = p.weight.cols, step = static_cast<std::int64_t>(splits) * kWarp * 8;
  WarpRows rows;
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    const Product& own = pairs && r >= kOwn ? all.products[1] : p;
    rows.weight[r] = &own.weight;
    rows.row[r] = own.first_row + g * own.row_step + min(first + r % own_rows, own.rows - 1);
  }
  std::int64_t col = split * kWarp * 8 + lane * 8;
  OnTheWay<F> next;
  next.read(rows, cols, col, step);
  if constexpr (kNormed)
    if (all.norm.weight != nullptr && threadIdx.x * 128 < all.norm.n * 2) fetch_to_l2(all.norm.weight + threadIdx.x * 128);
  wait_for_previous();
  RowsOfX<kNormed> x{p.x + g * p.x_step, p.x_stride, p.tokens - 1, &all.norm, 0.0f};
  float acc[kRowsAWarp][kTokens] = {};
  for (; col < cols; col += kAhead<F> * step) {
#pragma unroll
    for (int a = 0; a < kAhead<F>; ++a)
      if (col + a * step < cols) multiply_eight<F, kTokens, kNormed>(next.eight[a], rows, cols, col + a * step, x, acc);
    next.read(rows, cols, col + kAhead<F> * step, step);
  }
  float mine = 0.0f;  // lane t · kRowsAWarp + r keeps the sum of row r and token t
#pragma unroll
  for (int t = 0; t < kTokens; ++t)
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r) {
      const float sum = warp_sum(acc[r][t]);
      if (lane == t * kRowsAWarp + r) mine = sum;
    }
  float square = kNormed ? warp_sum(x.squares) : 0.0f;
  if (splits > 1) {
    if (lane < kSums) room[warp][lane] = mine;
    if (kNormed && lane == 0) squares[warp] = square;
    __syncthreads();
    if (kNormed) {
      square = 0.0f;
      for (int s = 0; s < splits; ++s) square += squares[warp - split + s];
    }
  }
  float factor = 1.0f;
  if constexpr (kNormed) {
    factor = 1.0f / sqrtf(square / static_cast<float>(cols) + all.norm.eps);
    if (!all.norm.unread && blockIdx.x == 0 && blockIdx.y == 0) write_normed(all.norm, factor);
  }
  if (split != 0) return;
  if (splits > 1 && lane < kSums)
    for (int s = 1; s < splits; ++s) mine += room[warp + s][lane];
  mine *= factor;
  const int t = lane / kRowsAWarp;
  const std::int64_t row = first + lane % own_rows;
  const bool here = t < min(static_cast<std::int64_t>(kTokens), p.tokens) && row < p.rows;
  if (pairs) {
    const bool up = lane % kRowsAWarp >= kOwn;
    const float value = here ? finished(all.products[up ? 1 : 0], t, g, row, mine) : 0.0f, other = __shfl_down_sync(kAllLanes, value, kOwn);
    if (here && up) all.products[1].out[t * all.products[1].out_stride + row] = value;
    else if (here) p.out[t * p.out_stride + row] = gated(value, other, all.limit);
  } else if (here) {
    store(p, t, g, row, mine);
  }
}

/// An output a column: eight lanes have eight columns each, and the lanes and warps of a block share the rows and add up in a fixed order.
/// One token at a time. Grid: blocks of 64 columns, groups, tokens.
inline constexpr int kColumnsABlock = 64;
template <tensor::WeightFormat F>
__global__ void __launch_bounds__(kWarpsABlock * kWarp) few_columns_kernel(const __grid_constant__ Product p) {
  constexpr int kLanes = kColumnsABlock / 8, kApart = kWarpsABlock * kWarp / kLanes, kRows = 4;  // kRows: that a lane has on the way, kApart rows apart
  __shared__ float room[kWarpsABlock][kColumnsABlock];
  let_next_start();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t g = blockIdx.y, t = blockIdx.z, cols = p.weight.cols, col = static_cast<std::int64_t>(blockIdx.x) * kColumnsABlock + lane % kLanes * 8;
  const std::int64_t first = p.first_row + g * p.row_step, rows = col < cols ? p.rows : 0;
  const float* x = p.x + t * p.x_stride + g * p.x_step;
  float acc[8] = {};
  EightOf<F> next[kRows];
  const auto read = [&](std::int64_t from) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (from + i * kApart < rows) next[i].read(p.weight.data, (first + from + i * kApart) * cols + col);
  };
  std::int64_t r = threadIdx.x / kLanes;
  read(r);
  wait_for_previous();
  for (; r < rows; r += kRows * kApart) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const std::int64_t row = r + i * kApart;
      if (row >= rows) break;
      float w[8];
      next[i].widen(w);
      if constexpr (F == tensor::WeightFormat::int4_group128) add_zero(p.weight, first + row, col, w);
      float v = x[row];
      if constexpr (kScaled<F>) v *= weight_scale(p.weight.format, p.weight.scales, first + row, col, cols);
#pragma unroll
      for (int j = 0; j < 8; ++j) acc[j] += v * w[j];
    }
    read(r + kRows * kApart);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int apart = kLanes; apart < kWarp; apart *= 2) acc[j] += __shfl_xor_sync(kAllLanes, acc[j], apart);
    if (lane < kLanes) room[warp][lane * 8 + j] = acc[j];
  }
  __syncthreads();
  if (threadIdx.x >= kColumnsABlock) return;
  float sum = 0.0f;
  for (int w = 0; w < kWarpsABlock; ++w) sum += room[w][threadIdx.x];
  const std::int64_t output = static_cast<std::int64_t>(blockIdx.x) * kColumnsABlock + threadIdx.x;
  if (output < cols) store(p, t, g, output, sum);
}

}  // namespace fathom::cuda
