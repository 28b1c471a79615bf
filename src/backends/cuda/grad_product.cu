// The products of backward ops. A block makes 64 × 64 sums from tiles in shared memory, 16 deep, and reads the next tiles while it multiplies;
// dense operands at multiples of 16 bytes go to cuBLASLt where the op allows it.
#include "backends/cuda/blas.h"
#include "backends/cuda/grad_product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kGradDepth = 16, kGradThreads = 256;
constexpr int kGradEach = kGradTile * kGradDepth / kGradThreads;  // elements of a side that a thread reads a step
using GradRows = float[kGradDepth][kGradTile + 4];

/// What one thread reads of a side: elements whose neighbours in memory are read by neighbouring threads.
template <bool kWeight>  // whether it may be one
struct SideReader {
  const float* base[kGradEach];  // of the index; null: of a weight
  const std::byte *data = nullptr, *scales = nullptr;
  std::int64_t first_row = 0, first = 0, end = 0;
  int own_index, own_depth, index_step, depth_step;

  /// Indices from `from` on, below `to`.
  __device__ void begin(const GradSide& side, std::int64_t from, std::int64_t to, std::int64_t group, int expert, bool hits_are_rows) {
    const bool of_weight = kWeight && side.data == nullptr, along = of_weight ? side.depth_is_row : side.index == 1;
    const int thread = static_cast<int>(threadIdx.x);
    own_index = along ? thread % kGradTile : thread / kGradDepth, index_step = along ? 0 : kGradThreads / kGradDepth;
    own_depth = along ? thread / kGradTile : thread % kGradDepth, depth_step = along ? kGradThreads / kGradTile : 0;
    first = from, end = to;
    if (of_weight) {
      data = side.of_expert ? side.experts.data_of(expert) : side.weight.data;
      scales = side.of_expert ? side.experts.scales_of(expert) : side.weight.scales;
      first_row = side.first_row + group * side.row_step;
      return;
    }
    const float* start = side.data + group / side.share * side.group;
#pragma unroll
    for (int n = 0; n < kGradEach; ++n) {
      const std::int64_t i = first + own_index + n * index_step;
      base[n] = i >= end ? nullptr : start + (side.rows != nullptr && hits_are_rows ? side.rows[i] : i) * side.index;
    }
  }
  __device__ void read(const GradSide& side, std::int64_t depth, std::int64_t last, bool hits_are_rows, float (&out)[kGradEach]) const {
#pragma unroll
    for (int n = 0; n < kGradEach; ++n) {
      const std::int64_t i = first + own_index + n * index_step, d = depth + own_depth + n * depth_step;
      out[n] = 0.0f;
      if (i >= end || d >= last) continue;
      if (kWeight && side.data == nullptr) {
        const std::int64_t row = first_row + (side.depth_is_row ? d : i), col = side.depth_is_row ? i : d;
        out[n] = load_weight(side.weight.format, data, scales, row, col, side.weight.rows, side.weight.cols);
      } else if (side.inner > 0) {
        const auto whole = static_cast<std::uint32_t>(d), inner = static_cast<std::uint32_t>(side.inner);
        out[n] = base[n][whole / inner * side.outer + whole % inner * side.depth];
      } else {
        out[n] = base[n][(side.rows != nullptr && !hits_are_rows ? side.rows[d] : d) * side.depth];
      }
    }
  }
  __device__ void put(GradRows& tile, const float (&values)[kGradEach]) const {
#pragma unroll
    for (int n = 0; n < kGradEach; ++n) tile[own_depth + n * depth_step][own_index + n * index_step] = values[n];
  }
};

/// What a block does: rows [row, last_row) by columns [column, columns), over depth [first, end).
struct GradPart {
  std::int64_t row = 0, last_row = 0, column = 0, first = 0, end = 0;
  float* out = nullptr;
  int expert = 0;
};

/// Hits of an expert, which lie one after the other.
__device__ int2 hits_of_expert(const RunOfExpert* runs, int most_runs, int expert) {
  __shared__ int first, count;
  if (threadIdx.x == 0) first = 0x7fffffff, count = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < most_runs; i += kGradThreads)
    if (runs[i].expert == expert) atomicMin(&first, runs[i].first), atomicAdd(&count, runs[i].count);
  __syncthreads();
  return make_int2(first, count);
}

__device__ GradPart part_of_block(const GradProduct& p) {
  GradPart part{.row = static_cast<std::int64_t>(blockIdx.y) * kGradTile, .last_row = p.rows, .column = static_cast<std::int64_t>(blockIdx.x) * kGradTile, .end = p.depth};
  part.out = p.out + static_cast<std::int64_t>(blockIdx.z) * p.out_group;
  if (p.hits == GradProduct::Hits::kRows) {
    const RunOfExpert run = p.runs[blockIdx.y];
    part.expert = run.expert;
    part.row = run.first, part.last_row = run.expert < 0 ? run.first : run.first + run.count;
  } else if (p.hits == GradProduct::Hits::kDepth) {
    part.expert = static_cast<int>(blockIdx.z);
    part.out = reinterpret_cast<float*>(const_cast<std::byte*>(p.out_experts.data_of(part.expert)));
    const int2 hits = hits_of_expert(p.runs, p.most_runs, part.expert);
    part.first = hits.x, part.end = static_cast<std::int64_t>(hits.x) + hits.y;
    if (part.out == nullptr || hits.y == 0) part.last_row = part.row;
  }
  return part;
}

__global__ void __launch_bounds__(kGradThreads) grad_product_kernel(const __grid_constant__ GradProduct p) {
  __shared__ __align__(16) GradRows left_tile, right_tile;
  const GradPart part = part_of_block(p);
  if (part.row >= part.last_row) return;
  const bool hits_are_rows = p.hits != GradProduct::Hits::kDepth;
  const std::int64_t group = p.hits == GradProduct::Hits::kNone ? static_cast<std::int64_t>(blockIdx.z) : 0;
  SideReader<false> left;
  SideReader<true> right;
  left.begin(p.left, part.row, part.last_row, group, part.expert, hits_are_rows);
  right.begin(p.right, part.column, p.columns, group, part.expert, hits_are_rows);
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float sums[4][4] = {}, left_next[kGradEach], right_next[kGradEach];
  left.read(p.left, part.first, part.end, hits_are_rows, left_next);
  right.read(p.right, part.first, part.end, hits_are_rows, right_next);
  for (std::int64_t depth = part.first; depth < part.end; depth += kGradDepth) {
    __syncthreads();
    left.put(left_tile, left_next);
    right.put(right_tile, right_next);
    __syncthreads();
    if (depth + kGradDepth < part.end) {
      left.read(p.left, depth + kGradDepth, part.end, hits_are_rows, left_next);
      right.read(p.right, depth + kGradDepth, part.end, hits_are_rows, right_next);
    }
#pragma unroll
    for (int d = 0; d < kGradDepth; ++d) {
      const float4 a = *reinterpret_cast<const float4*>(&left_tile[d][4 * ty]), b = *reinterpret_cast<const float4*>(&right_tile[d][4 * tx]);
      const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += as[i] * bs[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t row = part.row + 4 * ty + i, column = part.column + 4 * tx + j;
      if (row >= part.last_row || column >= p.columns) continue;
      float& to = part.out[row * p.out_stride + column];
      to = p.accumulate ? to + sums[i][j] : sums[i][j];
    }
}

bool at_16(const void* data, std::int64_t stride, std::int64_t step) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0 && step % 4 == 0;
}
std::int64_t long_stride(const GradSide& side) { return side.index == 1 ? side.depth : side.index; }

bool multiply_by_blas(Context& context, const GradProduct& p, std::byte* room) {
  const BlasProduct product{.tokens = p.rows,
                            .n = p.columns,
                            .k = p.depth,
                            .batch = p.groups,
                            .type = BlasType::f32,
                            .transposed = p.right.index != 1,
                            .x_transposed = p.left.depth != 1,
                            .x = p.left.data,
                            .w = p.right.data,
                            .out = p.out,
                            .x_stride = p.left.depth == 1 ? p.left.index : p.left.depth,
                            .w_stride = long_stride(p.right),
                            .out_stride = p.out_stride,
                            .x_step = p.left.group,
                            .w_step = p.right.group,
                            .out_step = p.out_group,
                            .accumulate = p.accumulate};
  return context.blas->multiply(context, product, room);
}

}  // namespace

bool fits_blas(const GradProduct& p) {
  const auto dense = [](const GradSide& side) {
    return side.data != nullptr && side.inner == 0 && side.share == 1 && side.rows == nullptr && (side.index == 1 || side.depth == 1) && side.index > 0 && side.depth > 0 &&
           at_16(side.data, std::max(side.index, side.depth), side.group);
  };
  return p.hits == GradProduct::Hits::kNone && dense(p.left) && dense(p.right) && at_16(p.out, p.out_stride, p.out_group) && p.columns % 4 == 0;
}

void launch_grad_product(Context& context, const GradProduct& p, std::byte* room) {
  FATHOM_CHECK(p.left.data != nullptr, "a weight is a product's right side");
  if (p.rows <= 0 || p.columns <= 0 || p.groups <= 0 || (p.depth <= 0 && p.accumulate)) return;
  if (room != nullptr && fits_blas(p) && multiply_by_blas(context, p, room)) return;
  const bool rows = p.hits == GradProduct::Hits::kRows, depth = p.hits == GradProduct::Hits::kDepth;
  const std::int64_t down = rows ? p.most_runs : divide_up(p.rows, kGradTile), parts = depth ? p.here : rows ? 1 : p.groups;
  FATHOM_CHECK(down <= 65535 && parts <= 65535, "a product with more parts than a grid has");
  const dim3 grid(static_cast<unsigned>(divide_up(p.columns, kGradTile)), static_cast<unsigned>(down), static_cast<unsigned>(parts));
  grad_product_kernel<<<grid, kGradThreads, 0, context.stream>>>(p);
  context.launched();
}

GradSide weight_side(const Weight& weight, std::int64_t first_row, std::int64_t row_step, bool depth_is_row) {
  FATHOM_CHECK(weight.format != WeightFormat::f64 && weight.format != WeightFormat::i64, "a weight that the cuda backend cannot multiply with");
  GradSide side;
  side.depth_is_row = depth_is_row;
  if (weight.format == WeightFormat::f32) {
    side.data = reinterpret_cast<const float*>(weight.data) + first_row * weight.cols;
    side.index = depth_is_row ? 1 : weight.cols;
    side.depth = depth_is_row ? weight.cols : 1;
    side.group = row_step * weight.cols;
    return side;
  }
  side.weight = view_of(weight);
  side.first_row = first_row;
  side.row_step = row_step;
  return side;
}

}  // namespace fathom::cuda
