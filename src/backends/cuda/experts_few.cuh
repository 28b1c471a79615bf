// Mixtures of experts for one or two tokens: every chosen expert is one matrix more to read, so nothing is gathered or sorted. One kernel makes
// the gated products, one the sum over a token's experts. ops_experts.cu chooses.
#pragma once
#include "backends/cuda/experts_few.h"
#include "backends/cuda/linear_few.cuh"

namespace fathom::cuda {

/// sums[r] = the products of rows[r] with x, the same in all lanes. `next`: what of the rows, from column lane · 8 on, is on its way.
template <tensor::WeightFormat F>
__device__ void multiply_rows(const WarpRows& rows, int cols, const float* x, OnTheWay<F>& next, float (&sums)[kRowsAWarp]) {
  RowsOfX<false> from{x, 0, 0, nullptr, 0.0f};
  float acc[kRowsAWarp][1] = {};
  for (int col = threadIdx.x % kWarp * 8; col < cols; col += kAhead<F> * kWarp * 8) {
#pragma unroll
    for (int a = 0; a < kAhead<F>; ++a) {
      if (col + a * kWarp * 8 < cols) multiply_eight<F, 1, false>(next.eight[a], rows, cols, col + a * kWarp * 8, from, acc);
      next.read_place(a, rows, cols, col + (a + kAhead<F>) * kWarp * 8);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) sums[r] = warp_sum(acc[r][0]);
}

__device__ inline WeightView matrix_view(const MatrixOfExperts& matrix, int expert, std::int64_t rows, std::int64_t cols, tensor::WeightFormat format) {
  return {.data = matrix.data_of(expert), .scales = matrix.scales_of(expert), .rows = rows, .cols = cols, .format = format};
}

/// hidden[token, j, :] = gated(gate_e x, up_e x) of its j-th expert e. A warp has two rows of both. Grid: blocks of rows, top_k, tokens.
template <tensor::WeightFormat F>
__global__ void __launch_bounds__(kWarpsABlock * kWarp) few_experts_in(const __grid_constant__ FewExperts view) {
  constexpr int kOwn = kRowsAWarp / 2;
  wait_for_previous();
  let_next_start();  // not before: few_experts_out reads the choice of experts when it starts
  const std::int64_t token = blockIdx.z, j = blockIdx.y, first = (static_cast<std::int64_t>(blockIdx.x) * kWarpsABlock + threadIdx.x / kWarp) * kOwn;
  const int expert = view.indices.at(token)[j] - view.first_expert, lane = threadIdx.x % kWarp;
  if (expert < 0 || expert >= view.here || first >= view.inner) return;
  const WeightView gate = matrix_view(view.gate, expert, view.inner, view.h, view.format), up = matrix_view(view.up, expert, view.inner, view.h, view.format);
  WarpRows rows;
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    rows.weight[r] = r < kOwn ? &gate : &up, rows.row[r] = min(first + r % kOwn, view.inner - 1);
  }
  OnTheWay<F> next;
  next.read(rows, static_cast<int>(view.h), lane * 8, kWarp * 8);
  float sums[kRowsAWarp];
  multiply_rows<F>(rows, static_cast<int>(view.h), view.x + token * view.x_stride, next, sums);
#pragma unroll
  for (int r = 0; r < kOwn; ++r)
    if (lane == r && first + r < view.inner) view.hidden[(token * view.top_k + j) * view.inner + first + r] = gated(sums[r], sums[r + kOwn], view.limit);
}

/// out[token] (+)= the sum over j of weights[token, j] · down_e hidden[token, j]. The warps of a block share out a token's experts, four rows of
/// each, and add up by j. Grid: rows in fours, tokens.
template <tensor::WeightFormat F>
__global__ void __launch_bounds__(kWarpsABlock * kWarp, 3) few_experts_out(const __grid_constant__ FewExperts view) {
  __shared__ float products[kMostChoices][kRowsAWarp], shares[kMostChoices];
  let_next_start();
  const std::int64_t token = blockIdx.y, first = static_cast<std::int64_t>(blockIdx.x) * kRowsAWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const auto expert_of = [&](int j) {  // -1: not here
    const int expert = view.indices.at(token)[j] - view.first_expert;
    return expert < view.here ? max(expert, -1) : -1;
  };
  for (int j = static_cast<int>(threadIdx.x); j < view.top_k; j += static_cast<int>(blockDim.x)) shares[j] = expert_of(j) >= 0 ? view.weights.at(token)[j] : 0.0f;
  WeightView down;
  WarpRows rows;
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) rows.weight[r] = &down, rows.row[r] = min(first + r, view.h - 1);
  OnTheWay<F> next;
  int expert = warp < view.top_k ? expert_of(warp) : -1;
  const auto begin = [&] {
    down = matrix_view(view.down, max(expert, 0), view.h, view.inner, view.down_format);
    if (expert >= 0) next.read(rows, static_cast<int>(view.inner), lane * 8, kWarp * 8);
  };
  begin();
  wait_for_previous();
  const std::int64_t row = first + threadIdx.x;
  const bool own = threadIdx.x < kRowsAWarp && row < view.h;
  float* out = view.out.at(token) + row;
  float sum = own && view.accumulate ? *out : 0.0f;
  const float added = own && view.added != nullptr ? view.added[token * view.added_stride + row] : 0.0f;
#pragma unroll 1
  for (int j = warp; j < view.top_k; j += warps) {
    float sums[kRowsAWarp] = {};
    if (expert >= 0) multiply_rows<F>(rows, static_cast<int>(view.inner), view.hidden + (token * view.top_k + j) * view.inner, next, sums);
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r)
      if (lane == r) products[j][r] = sums[r];
    if (j + warps >= view.top_k) break;
    expert = expert_of(j + warps);
    begin();
  }
  __syncthreads();
  if (!own) return;
  for (int j = 0; j < view.top_k; ++j) sum += shares[j] * products[j][threadIdx.x];
  *out = sum + added;
}

}  // namespace fathom::cuda
