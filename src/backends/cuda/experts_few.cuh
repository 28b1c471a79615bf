// Mixtures of experts for one or two tokens: every chosen expert is one matrix more to read, so nothing is gathered or sorted. One kernel makes
// the gated products, one the sum over a token's experts. ops_experts.cu chooses.
#pragma once
#include "backends/cuda/experts.cuh"
#include "backends/cuda/linear_few.cuh"
#include "backends/cuda/route.cuh"

namespace fathom::cuda {

inline constexpr std::int64_t kFewExpertTokens = 2;

struct FewExperts {
  MatrixOfExperts gate, up, down;
  tensor::WeightFormat format = tensor::WeightFormat::f32, down_format = tensor::WeightFormat::f32;
  std::int64_t inner = 0, h = 0;     // rows of gate and up; rows of down
  View<const std::int32_t> indices;  // [tokens, top_k]
  View<const float> weights;         // [tokens, top_k]
  const float* x = nullptr;          // [tokens, h]
  std::int64_t x_stride = 0;
  float* hidden = nullptr;           // [tokens, top_k, inner]
  View<float> out;                   // [tokens, h]
  int top_k = 1, first_expert = 0, here = 0;
  float limit = 0;
  bool accumulate = false;
  const float* added = nullptr;      // [tokens, h] that is added too
  std::int64_t added_stride = 0;
  std::int64_t down_eight = 0;       // bytes of eight elements of down
  bool routes = false;               // indices and weights are yet to be made, by the first of the two kernels
  RouteView route;
};

/// sums[r] = the products of rows[r] with x, the same in all lanes.
template <tensor::WeightFormat F>
__device__ void multiply_rows(const WarpRows& rows, std::int64_t cols, const float* x, float (&sums)[kRowsAWarp]) {
  RowsOfX<false> from{x, 0, 0, nullptr, 0.0f};
  float acc[kRowsAWarp][1] = {};
  OnTheWay<F> next;
  std::int64_t col = threadIdx.x % kWarp * 8;
  next.read(rows, cols, col, kWarp * 8);
  for (; col < cols; col += kAhead<F> * kWarp * 8) {
#pragma unroll
    for (int a = 0; a < kAhead<F>; ++a)
      if (col + a * kWarp * 8 < cols) multiply_eight<F, 1, false>(next.eight[a], rows, cols, col + a * kWarp * 8, from, acc);
    next.read(rows, cols, col + kAhead<F> * kWarp * 8, kWarp * 8);
  }
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) sums[r] = warp_sum(acc[r][0]);
}

__device__ inline WeightView matrix_view(const MatrixOfExperts& matrix, int expert, std::int64_t rows, std::int64_t cols, tensor::WeightFormat format) {
  return {.data = matrix.data_of(expert), .scales = matrix.scales_of(expert), .rows = rows, .cols = cols, .format = format};
}

/// Has this warp's part of what the next kernel reads of an expert brought to the L2 cache, so that memory is not idle in between.
__device__ inline void ask_for_down(const FewExperts& view, int expert) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (threadIdx.x % kWarp != 0) return;
  const std::int64_t bytes = view.h * view.inner / 8 * view.down_eight, warps = static_cast<std::int64_t>(gridDim.x) * kWarpsABlock;
  const std::int64_t part = (bytes + warps * 16 - 1) / (warps * 16) * 16, from = (static_cast<std::int64_t>(blockIdx.x) * kWarpsABlock + threadIdx.x / kWarp) * part;
  const std::int64_t size = min(part, bytes - from) / 16 * 16;
  if (size > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(view.down.data_of(expert) + from), "r"(static_cast<unsigned>(size)));
#endif
}

/// hidden[token, j, :] = gated(gate_e x, up_e x) of its j-th expert e. A warp has two rows of both. Grid: blocks of rows, top_k, tokens.
template <tensor::WeightFormat F>
__global__ void __launch_bounds__(kWarpsABlock * kWarp) few_experts_in(const __grid_constant__ FewExperts view) {
  constexpr int kOwn = kRowsAWarp / 2;
  extern __shared__ double route_room[];
  __shared__ std::int32_t indices[kMostChoices];
  __shared__ float weights[kMostChoices];
  after_previous();
  if (view.routes) {
    if (threadIdx.x < kWarp) route_token(view.route, blockIdx.z, route_room, indices, weights, blockIdx.x == 0 && blockIdx.y == 0);
    __syncthreads();
  }
  const std::int64_t token = blockIdx.z, j = blockIdx.y, first = (static_cast<std::int64_t>(blockIdx.x) * kWarpsABlock + threadIdx.x / kWarp) * kOwn;
  const int expert = (view.routes ? indices[j] : view.indices.at(token)[j]) - view.first_expert, lane = threadIdx.x % kWarp;
  if (expert < 0 || expert >= view.here || first >= view.inner) return;
  const WeightView gate = matrix_view(view.gate, expert, view.inner, view.h, view.format), up = matrix_view(view.up, expert, view.inner, view.h, view.format);
  WarpRows rows;
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    rows.weight[r] = r < kOwn ? &gate : &up;
    rows.row[r] = min(first + r % kOwn, view.inner - 1);
  }
  float sums[kRowsAWarp];
  multiply_rows<F>(rows, view.h, view.x + token * view.x_stride, sums);
  ask_for_down(view, expert);
#pragma unroll
  for (int r = 0; r < kOwn; ++r)
    if (lane == r && first + r < view.inner) view.hidden[(token * view.top_k + j) * view.inner + first + r] = gated(sums[r], sums[r + kOwn], view.limit);
}

/// out[token] (+)= the sum over j of weights[token, j] · down_e hidden[token, j]. The warps of a block share out a token's experts, four rows of
/// each, and add up by j. Grid: rows in fours, tokens.
template <tensor::WeightFormat F>
__global__ void __launch_bounds__(kWarpsABlock * kWarp, 4) few_experts_out(const __grid_constant__ FewExperts view) {
  __shared__ float products[kMostChoices][kRowsAWarp];
  after_previous();
  const std::int64_t token = blockIdx.y, first = static_cast<std::int64_t>(blockIdx.x) * kRowsAWarp;
  const int lane = threadIdx.x % kWarp;
  for (int j = static_cast<int>(threadIdx.x / kWarp); j < view.top_k; j += static_cast<int>(blockDim.x / kWarp)) {
    const int expert = view.indices.at(token)[j] - view.first_expert;
    float sums[kRowsAWarp] = {};
    if (expert >= 0 && expert < view.here) {
      const WeightView down = matrix_view(view.down, expert, view.h, view.inner, view.down_format);
      WarpRows rows;
#pragma unroll
      for (int r = 0; r < kRowsAWarp; ++r) rows.weight[r] = &down, rows.row[r] = min(first + r, view.h - 1);
      multiply_rows<F>(rows, view.inner, view.hidden + (token * view.top_k + j) * view.inner, sums);
    }
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r)
      if (lane == r) products[j][r] = sums[r];
  }
  __syncthreads();
  const std::int64_t row = first + threadIdx.x;
  if (threadIdx.x >= kRowsAWarp || row >= view.h) return;
  float* out = view.out.at(token) + row;
  float sum = view.accumulate ? *out : 0.0f;
  for (int j = 0; j < view.top_k; ++j) {
    const int expert = view.indices.at(token)[j] - view.first_expert;
    if (expert >= 0 && expert < view.here) sum += view.weights.at(token)[j] * products[j][threadIdx.x];
  }
  *out = sum + (view.added != nullptr ? view.added[token * view.added_stride + row] : 0.0f);
}

/// The first kernel and the second. Rows of x and of all matrices can be read in eights.
void launch_few_experts_in(Context& context, const FewExperts& view, std::int64_t tokens);
void launch_few_experts_out(Context& context, const FewExperts& view, std::int64_t tokens);

}  // namespace fathom::cuda
