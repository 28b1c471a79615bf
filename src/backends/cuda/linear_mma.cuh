// Products of few tokens on tensor cores, which leave the arithmetic of reading weights as its only cost: multiply-adds one by one keep the
// device busier than its memory does. A warp has 16 rows of the weights as they lie; the tokens, split into two 16-bit halves each so that next to
// nothing of x is lost, are the eight columns of the other side. linear_mma.cu launches.
#pragma once
#include "backends/cuda/linear_few.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kTileRows16 = 16, kSegment = 128, kStepColumns = 32, kSteps = kSegment / kStepColumns, kMmaColumns = 8;

struct FewMmaView {
  Together all;
  int tokens = 1, halves = 2;  // halves of a token: columns token · halves + half, at most kMmaColumns
  int splits = 1;              // warps that share a tile's segments
  int x_stride = 0;            // 16-bit elements between columns of x in shared memory
};

/// Weights of both rows that a lane has of a tile (lane / 4 and 8 further down), a segment's four steps of eight columns each.
template <tensor::WeightFormat F>
struct SegmentOfRows {
  EightOf<F> eight[kSteps][2];
  __device__ void read(const std::byte* const (&rows)[2], int cols, int segment) {
    const int first = segment * kSegment + threadIdx.x % 4 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      if (first + step * kStepColumns < cols) {
        eight[step][0].read(rows[0], first + step * kStepColumns);
        eight[step][1].read(rows[1], first + step * kStepColumns);
      }
  }
};

/// Eight weights as four registers of two bf16 each: exact for every format of 8 bits and fewer.
template <tensor::WeightFormat F>
__device__ inline void as_bf16(const EightOf<F>& eight, unsigned (&out)[4]) {
  if constexpr (F == tensor::WeightFormat::bf16) {
    out[0] = eight.bits.x, out[1] = eight.bits.y, out[2] = eight.bits.z, out[3] = eight.bits.w;
  } else {
    float w[8];
    eight.widen(w);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = pack_two<__nv_bfloat16>(w[2 * i], w[2 * i + 1]);
  }
}

/// Fills the columns of x: bf16 halves of every token, of from · weight where x is a norm nobody has made. Answers this thread's squares of `from`.
template <bool kNormed>
__device__ inline float fill_columns(const FewMmaView& view, const Product& p, __nv_bfloat16* columns, int cols) {
  RowsOfX<kNormed> source{p.x, p.x_stride, p.tokens - 1, &view.all.norm, 0.0f};
  const int eights = cols / 8;
  for (int item = static_cast<int>(threadIdx.x); item < view.tokens * eights; item += static_cast<int>(blockDim.x)) {
    const int token = item / eights, col = item % eights * 8;
    float x[8];
    source.read(token, col, x);
    unsigned high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = pack_two<__nv_bfloat16>(x[2 * i], x[2 * i + 1]);
      low[i] = pack_two<__nv_bfloat16>(x[2 * i] - __uint_as_float(high[i] << 16), x[2 * i + 1] - __uint_as_float(high[i] & 0xffff0000u));
    }
    __nv_bfloat16* to = columns + token * view.halves * view.x_stride + col;
    *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
    if (view.halves == 2) *reinterpret_cast<uint4*>(to + view.x_stride) = make_uint4(low[0], low[1], low[2], low[3]);
  }
  return source.squares;
}

/// Grid: blocks of tiles. A block has kWarpsABlock / splits tiles. Dynamic shared memory: the columns of x.
template <tensor::WeightFormat F, bool kNormed, bool kGated>
__global__ void __launch_bounds__(kWarpsABlock * kWarp, 3) few_mma_kernel(const __grid_constant__ FewMmaView view) {
  constexpr int kOwn = kGated ? kTileRows16 / 2 : kTileRows16;  // outputs of a tile
  extern __shared__ __align__(16) __nv_bfloat16 columns[];
  __shared__ float room[kWarpsABlock][kTileRows16][kMmaColumns];
  __shared__ BlockRoom sums;
  let_next_start();
  int which = 0;
  if constexpr (!kGated)
    while (which + 1 < view.all.count && blockIdx.x >= view.all.first_block[which + 1]) ++which;
  const Product& p = view.all.products[which];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, split = warp % view.splits, group = lane / 4, cols = static_cast<int>(p.weight.cols);
  const int tiles = kWarpsABlock / view.splits, first = (static_cast<int>(blockIdx.x - view.all.first_block[which]) * tiles + warp / view.splits) * kOwn;
  const int last_row = static_cast<int>(p.rows) - 1, row_bytes = cols / 8 * kBytesOfEight<F>, segments = (cols + kSegment - 1) / kSegment;
  const Product& other = kGated ? view.all.products[1] : p;
  const std::int64_t row[2] = {p.first_row + min(first + group, last_row), other.first_row + min(first + group + (kGated ? 0 : 8), last_row)};
  const std::byte* const rows[2] = {p.weight.data + row[0] * row_bytes, other.weight.data + row[1] * row_bytes};
  SegmentOfRows<F> next;
  next.read(rows, cols, split);
  if constexpr (kNormed)
    if (view.all.norm.weight != nullptr && threadIdx.x * 128 < view.all.norm.n * 2) fetch_to_l2(view.all.norm.weight + threadIdx.x * 128);
  wait_for_previous();
  float squares = fill_columns<kNormed>(view, p, columns, cols);
  if constexpr (kNormed) squares = block_sum(squares, sums);
  __syncthreads();
  const __nv_bfloat16* column = columns + group * view.x_stride + lane % 4 * 8;
  const bool filled = group < view.tokens * view.halves;
  float acc[4] = {};
  for (int segment = split; segment < segments; segment += view.splits) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int col = segment * kSegment + step * kStepColumns;
      if (col >= cols) break;
      const uint4 b = filled ? *reinterpret_cast<const uint4*>(column + col) : make_uint4(0, 0, 0, 0);
      unsigned upper[4], lower[4];
      as_bf16<F>(next.eight[step][0], upper);
      as_bf16<F>(next.eight[step][1], lower);
      const unsigned first_a[4] = {upper[0], lower[0], upper[1], lower[1]}, second_a[4] = {upper[2], lower[2], upper[3], lower[3]};
      if constexpr (kScaled<F>) {
        float part[4] = {};
        multiply_add<__nv_bfloat16>(part, first_a, b.x, b.y);
        multiply_add<__nv_bfloat16>(part, second_a, b.z, b.w);
        const float scale[2] = {weight_scale(p.weight.format, p.weight.scales, row[0], col, cols), weight_scale(other.weight.format, other.weight.scales, row[1], col, cols)};
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[i] += part[i] * scale[i / 2];
      } else {
        multiply_add<__nv_bfloat16>(acc, first_a, b.x, b.y);
        multiply_add<__nv_bfloat16>(acc, second_a, b.z, b.w);
      }
    }
    next.read(rows, cols, segment + view.splits);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) room[warp][group + i / 2 * 8][lane % 4 * 2 + i % 2] = acc[i];
  __syncthreads();
  float factor = 1.0f;
  if constexpr (kNormed) {
    factor = 1.0f / sqrtf(squares / static_cast<float>(cols) + view.all.norm.eps);
    if (!view.all.norm.unread && blockIdx.x == 0) write_normed(view.all.norm, factor);
  }
  // Halves and splits are added up in their order; neighbouring threads have neighbouring rows.
  for (int item = static_cast<int>(threadIdx.x); item < tiles * kOwn * view.tokens; item += static_cast<int>(blockDim.x)) {
    const int token = item / (tiles * kOwn), at = item % (tiles * kOwn), tile = at / kOwn, r = at % kOwn;
    const std::int64_t output = static_cast<std::int64_t>(blockIdx.x - view.all.first_block[which]) * tiles * kOwn + at;
    if (output > last_row) continue;
    const auto sum = [&](int in_tile) {
      float value = 0.0f;
      for (int s = 0; s < view.splits; ++s)
        for (int half = 0; half < view.halves; ++half) value += room[tile * view.splits + s][in_tile][token * view.halves + half];
      return value * factor;
    };
    if constexpr (kGated) {
      const float gate = finished(p, token, 0, output, sum(r)), up = finished(other, token, 0, output, sum(r + kOwn));
      other.out[token * other.out_stride + output] = up;
      p.out[token * p.out_stride + output] = gated(gate, up, view.all.limit);
    } else {
      store(p, token, 0, output, sum(r));
    }
  }
}

/// Whether tensor cores can do these: weights that bf16 holds exactly (bf16, mxfp4), rows of whole steps that x has room beside.
bool can_use_mma(const Context& context, const Together& all);
void launch_few_mma(Context& context, const Together& all);

}  // namespace fathom::cuda
