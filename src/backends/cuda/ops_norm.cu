// Family norm: a warp a row where rows are short, a block a row where they are long. Rows are read twice; the second time they are in L1.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kShortRow = 512;  // elements that a warp does alone
constexpr int kShortThreads = 128;

FloatVector vector_of_row(const Tensor& x, std::int64_t d) {
  FATHOM_CHECK(!x.defined() || x.elements() == d);
  return vector_of(x);
}

struct NormArgs {
  RowsView x, out;
  FloatVector weight, bias;
  float eps;
};

/// The threads that do one row: a warp of the block, or all of it.
template <bool kLong>
struct Team {
  int lane, lanes;
  BlockRoom* room;
  __device__ float sum(float value) const {
    if constexpr (kLong) return block_sum(value, *room);
    return warp_sum(value);
  }
};

template <bool kLong>
__device__ void rms_row(const NormArgs& args, std::int64_t row, const Team<kLong>& team) {
  const float* x = args.x.row<float>(row);
  float* out = args.out.row<float>(row);
  const std::int64_t n = args.x.n;
  float squares = 0.0f;
  for (std::int64_t i = team.lane; i < n; i += team.lanes) squares += x[i] * x[i];
  const float scale = 1.0f / sqrtf(team.sum(squares) / static_cast<float>(n) + args.eps);
  for (std::int64_t i = team.lane; i < n; i += team.lanes) out[i] = x[i] * scale * (args.weight.data != nullptr ? args.weight[i] : 1.0f);
}

template <bool kLong>
__device__ void layer_row(const NormArgs& args, std::int64_t row, const Team<kLong>& team) {
  const float* x = args.x.row<float>(row);
  float* out = args.out.row<float>(row);
  const std::int64_t n = args.x.n;
  float sum = 0.0f, squares = 0.0f;
  for (std::int64_t i = team.lane; i < n; i += team.lanes) sum += x[i];
  const float mean = team.sum(sum) / static_cast<float>(n);
  for (std::int64_t i = team.lane; i < n; i += team.lanes) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / sqrtf(team.sum(squares) / static_cast<float>(n) + args.eps);
  for (std::int64_t i = team.lane; i < n; i += team.lanes) out[i] = (x[i] - mean) * scale * args.weight[i] + args.bias[i];
}

template <bool kLong, bool kLayer>
__global__ void norm_kernel(NormArgs args) {
  __shared__ BlockRoom room;
  after_previous();
  const int teams = kLong ? 1 : blockDim.x / kWarp;
  const Team<kLong> team{kLong ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x % kWarp), kLong ? static_cast<int>(blockDim.x) : kWarp, &room};
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * teams + (kLong ? 0 : threadIdx.x / kWarp);
  for (std::int64_t row = first; row < args.x.count; row += static_cast<std::int64_t>(gridDim.x) * teams) {
    if constexpr (kLayer) layer_row<kLong>(args, row, team);
    else rms_row<kLong>(args, row, team);
  }
}

/// RMS norm of aligned rows: four elements a load, the row kept in registers.
constexpr int kKept = 4;  // vectors of four that a thread keeps
constexpr std::int64_t kLeastVectors = 64, kMostVectors = 1024 * kKept;  // of a row
__global__ void __launch_bounds__(1024) rms_vector_kernel(NormArgs args) {
  __shared__ BlockRoom room;
  after_previous();
  const int vectors = static_cast<int>(args.x.n / 4);
  for (std::int64_t row = blockIdx.x; row < args.x.count; row += gridDim.x) {
    const auto* x = args.x.row<const float4>(row);
    auto* out = args.out.row<float4>(row);
    float4 kept[kKept];
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * static_cast<int>(blockDim.x);
      kept[k] = i < vectors ? x[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      squares += kept[k].x * kept[k].x + kept[k].y * kept[k].y + kept[k].z * kept[k].z + kept[k].w * kept[k].w;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(args.x.n) + args.eps);
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * static_cast<int>(blockDim.x);
      if (i >= vectors) continue;
      float4 v = make_float4(kept[k].x * scale, kept[k].y * scale, kept[k].z * scale, kept[k].w * scale);
      if (args.weight.data != nullptr)
        v = make_float4(v.x * args.weight[4 * i], v.y * args.weight[4 * i + 1], v.z * args.weight[4 * i + 2], v.w * args.weight[4 * i + 3]);
      out[i] = v;
    }
  }
}

template <bool kLayer>
void launch(Context& context, const NormArgs& args) {
  if (args.x.count == 0 || args.x.n == 0) return;
  if (args.x.n <= kShortRow) {
    launch_early(context, &norm_kernel<false, kLayer>, grid_for(context, args.x.count, kShortThreads / kWarp), kShortThreads, 0, args);
  } else {
    const int threads = args.x.n >= 4096 ? 1024 : 256;
    launch_early(context, &norm_kernel<true, kLayer>, grid_for(context, args.x.count, 1), threads, 0, args);
  }
}

void launch_vectors(Context& context, const NormArgs& args) {
  const auto threads = static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(args.x.n / 4, kWarp) * kWarp, 64, 1024));
  launch_early(context, &rms_vector_kernel, grid_for(context, args.x.count, 1), threads, 0, args);
}

NormArgs arguments(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, const Tensor& out) {
  FATHOM_CHECK(x.shape == out.shape && x.dtype == DType::f32 && out.dtype == DType::f32);
  const RowsView rows = rows_of(x);
  return {rows, rows_of(out), vector_of_row(weight, rows.n), vector_of_row(bias, rows.n), static_cast<float>(eps)};
}

bool vectors_fit(const RmsNormArgs& args) {
  const std::int64_t n = args.x.dim(args.x.shape.rank - 1);
  return n % 4 == 0 && n / 4 >= kLeastVectors && n / 4 <= kMostVectors && rows_aligned(args.x, 16) && rows_aligned(args.out, 16);
}

}  // namespace

void make_norm(Context& context, const RmsNormArgs& args) {
  if (norm_and_round(context, args)) return;
  const NormArgs norm = arguments(args.x, args.weight, Tensor{}, args.eps, args.out);
  if (vectors_fit(args) && norm.x.count > 0) launch_vectors(context, norm);
  else launch<false>(context, norm);
}

void launch_norm(Context& context, const NormedX& norm) {
  NormArgs args;
  args.x.data = reinterpret_cast<std::byte*>(const_cast<float*>(norm.from));
  args.out.data = reinterpret_cast<std::byte*>(norm.x);
  args.x.count = args.out.count = 1;
  args.x.n = args.out.n = norm.n;
  args.weight = {norm.weight, norm.weight_type};
  args.bias = {nullptr, DType::f32};
  args.eps = norm.eps;
  launch_vectors(context, args);
}

void CudaOps::rms_norm(const RmsNormArgs& args) {
  const std::int64_t tokens = args.x.dim(0);
  const TokenRows rows = token_rows(args.x), normed = token_rows(args.out);
  const bool heads = args.x.shape.rank == 3 && rows.n <= kShortRow && tokens <= TokenProgram::kMostTokens;  // rotations follow
  if ((heads || waiting_->has_program(tokens)) && tokens > 0 && rows.n > 0 && rows.dtype == DType::f32 && normed.dtype == DType::f32) {
    FATHOM_CHECK(args.x.shape == args.out.shape);
    const FloatVector weight = vector_of_row(args.weight, rows.n);
    return waiting_->take(context_, {.kind = TokenAction::Kind::kNorm, .x = rows, .out = normed, .weight = weight.data, .weight_type = weight.dtype, .eps = static_cast<float>(args.eps)}, tokens);
  }
  if (waiting_->take_sums_into(context_, args)) return;
  settle();  // stages go on where the norm waits
  if (can_only_round(args)) return waiting_->promise(args);
  const std::int64_t n = args.x.dim(args.x.shape.rank - 1);
  const auto *from = args.x.as<float>(), *x = args.out.as<float>();
  const bool apart = from + n <= x || x + n <= from;
  if (args.x.elements() != n || n % 8 != 0 || !vectors_fit(args) || !apart) return close_stages(context_), make_norm(context_, args);
  const FloatVector weight = vector_of_row(args.weight, n);
  if (reinterpret_cast<std::uintptr_t>(weight.data) % 16 != 0) return close_stages(context_), make_norm(context_, args);
  waiting_->take({.from = from, .x = args.out.as<float>(), .weight = weight.data, .weight_type = weight.dtype, .eps = static_cast<float>(args.eps), .n = n, .unread = args.only_products});
}

void CudaOps::layer_norm(const LayerNormArgs& args) {
  flush();
  launch<true>(context_, arguments(args.x, args.weight, args.bias, args.eps, args.out));
}

}  // namespace fathom::cuda
