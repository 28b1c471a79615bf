// Family hyper: manifold-constrained hyper-connections (DeepSeek-V4 §2.2), in f32.
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/cuda_ops.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kHyperThreads = 256;
constexpr int kTokens = 4;          // of one block of the mixing product
constexpr int kMostStreams = 16;
constexpr std::int64_t kColumns = 2048;  // of a block that collapses

// ---------------------------------------------------------------- z

/// z[t, r] = fn[r, :] · flatten(streams[t]) / rms(flatten(streams[t])). Grid: rows of fn, groups of kTokens tokens.
__global__ void __launch_bounds__(kHyperThreads) mix_logits(View<const float> streams, WeightView fn, float norm_eps, float* z) {
  __shared__ BlockRoom room;
  const std::int64_t row = blockIdx.x, first = static_cast<std::int64_t>(blockIdx.y) * kTokens, h = streams.dims[2], width = fn.cols;
  float dots[kTokens] = {}, squares[kTokens] = {};
  for (std::int64_t i = threadIdx.x; i < width; i += kHyperThreads) {
    const float weight = load_weight(fn, row, i);
    const std::int64_t stream = i / h, column = i % h;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= streams.dims[0]) continue;
      const float x = streams.at(first + t, stream)[column];
      dots[t] += weight * x;
      squares[t] += x * x;
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float dot = block_sum(dots[t], room), square = block_sum(squares[t], room);
    if (threadIdx.x == 0 && first + t < streams.dims[0])
      z[(first + t) * fn.rows + row] = dot * (1.0f / sqrtf(square / static_cast<float>(width) + norm_eps));
  }
}

float* launch_mix_logits(Context& context, const Tensor& streams, const Weight& fn, double norm_eps) {
  const std::int64_t tokens = streams.dim(0);
  FATHOM_CHECK(fn.cols == streams.dim(1) * streams.dim(2));
  float* z = context.workspace.take<float>(tokens * fn.rows);
  const dim3 grid(static_cast<unsigned>(fn.rows), static_cast<unsigned>(divide_up(tokens, kTokens)));
  mix_logits<<<grid, kHyperThreads, 0, context.stream>>>(view_of<const float>(streams), view_of(fn), static_cast<float>(norm_eps), z);
  context.launched();
  return z;
}

// ---------------------------------------------------------------- making a matrix doubly stochastic

/// m [c, c] in shared memory, by one warp: every element divided by eps + the sum of its row (or column).
__device__ void divide(float* m, int c, bool rows, float eps) {
  const int lane = threadIdx.x % kWarp;
  float divided[kMostStreams * kMostStreams / kWarp];
#pragma unroll
  for (int n = 0; n < kMostStreams * kMostStreams / kWarp; ++n) {
    const int i = lane + n * kWarp;
    if (i >= c * c) continue;
    const int j = i / c, k = i % c;
    float sum = eps;
    for (int x = 0; x < c; ++x) sum += rows ? m[j * c + x] : m[x * c + k];
    divided[n] = m[i] / sum;
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kMostStreams * kMostStreams / kWarp; ++n)
    if (lane + n * kWarp < c * c) m[lane + n * kWarp] = divided[n];
  __syncwarp();
}

/// Softmax of each row, plus eps; one lane a row.
__device__ void soften_rows(float* m, int c, float eps) {
  const int lane = threadIdx.x % kWarp;
  if (lane < c) {
    float* row = m + lane * c;
    float largest = -INFINITY, sum = 0.0f;
    for (int k = 0; k < c; ++k) largest = fmaxf(largest, row[k]);
    for (int k = 0; k < c; ++k) sum += row[k] = expf(row[k] - largest);
    for (int k = 0; k < c; ++k) row[k] = row[k] / sum + eps;
  }
  __syncwarp();
}

// ---------------------------------------------------------------- mix and head

struct CollapseView {
  View<const float> streams;      // [tokens, c, h]
  const float* z = nullptr;       // [tokens, z_rows]
  std::int64_t z_rows = 0;
  FloatVector base, scale;
  float eps = 0;
  View<float> collapsed;          // [tokens, h]
  View<float> post, comb;         // undefined: only collapse (the head)
  int c = 0;
  std::int64_t iterations = 0;
};

__device__ void store_post_and_comb(const CollapseView& view, std::int64_t token, float* matrix) {
  const float* z = view.z + token * view.z_rows;
  const int c = view.c, lane = threadIdx.x % kWarp;
  if (lane < c) view.post.at(token)[lane] = 2.0f * sigmoid(z[c + lane] * view.scale[1] + view.base[c + lane]);
  for (int i = lane; i < c * c; i += kWarp) matrix[i] = z[2 * c + i] * view.scale[2] + view.base[2 * c + i];
  __syncwarp();
  soften_rows(matrix, c, view.eps);
  divide(matrix, c, false, view.eps);
  for (std::int64_t i = 1; i < view.iterations; ++i) {
    divide(matrix, c, true, view.eps);
    divide(matrix, c, false, view.eps);
  }
  for (int i = lane; i < c * c; i += kWarp) view.comb.at(token, i / c)[i % c] = matrix[i];
}

/// Grid: tokens, blocks of columns.
__global__ void __launch_bounds__(kHyperThreads) collapse(const __grid_constant__ CollapseView view) {
  __shared__ float pre[kMostStreams], matrix[kMostStreams * kMostStreams];
  const std::int64_t token = blockIdx.x;
  const int c = view.c;
  if (threadIdx.x < c) pre[threadIdx.x] = sigmoid(view.z[token * view.z_rows + threadIdx.x] * view.scale[0] + view.base[threadIdx.x]) + view.eps;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kColumns, last = min(first + kColumns, view.streams.dims[2]);
  for (std::int64_t column = first + threadIdx.x; column < last; column += kHyperThreads) {
    float sum = 0.0f;
    for (int j = 0; j < c; ++j) sum += pre[j] * view.streams.at(token, j)[column];
    view.collapsed.at(token)[column] = sum;
  }
  if (view.comb.defined() && blockIdx.y == 0 && threadIdx.x < kWarp) store_post_and_comb(view, token, matrix);
}

void launch_collapse(Context& context, const CollapseView& view) {
  const dim3 grid(static_cast<unsigned>(view.streams.dims[0]), static_cast<unsigned>(divide_up(view.streams.dims[2], kColumns)));
  collapse<<<grid, kHyperThreads, 0, context.stream>>>(view);
  context.launched();
}

// ---------------------------------------------------------------- merge

struct MergeView {
  View<const float> x, streams, post, comb;  // [tokens, h], [tokens, c, h], [tokens, c], [tokens, c, c]
  View<float> out;                           // [tokens, c, h]
  int c = 0;
};

/// Grid: tokens, blocks of columns.
__global__ void __launch_bounds__(kHyperThreads) merge_streams(const __grid_constant__ MergeView view) {
  __shared__ float post[kMostStreams], comb[kMostStreams * kMostStreams];
  const std::int64_t token = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y) * kHyperThreads + threadIdx.x;
  const int c = view.c;
  if (threadIdx.x < c) post[threadIdx.x] = view.post.at(token)[threadIdx.x];
  if (threadIdx.x < c * c) comb[threadIdx.x] = view.comb.at(token, threadIdx.x / c)[threadIdx.x % c];
  __syncthreads();
  if (column >= view.x.dims[1]) return;
  const float x = view.x.at(token)[column];
  float streams[kMostStreams];
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j)
    if (j < c) streams[j] = view.streams.at(token, j)[column];
  for (int k = 0; k < c; ++k) {
    float sum = post[k] * x;
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j)
      if (j < c) sum += comb[j * c + k] * streams[j];
    view.out.at(token, k)[column] = sum;
  }
}

}  // namespace

void CudaOps::hyper_mix(const HyperMixArgs& args) {
  flush();
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), rows = (2 + c) * c;
  FATHOM_CHECK(c <= kMostStreams && args.fn.rows == rows && args.base.elements() == rows && args.scale.elements() == 3);
  context_.workspace.reset();
  if (tokens == 0) return;
  CollapseView view;
  view.streams = view_of<const float>(args.streams);
  view.z = launch_mix_logits(context_, args.streams, args.fn, args.norm_eps);
  view.z_rows = rows;
  view.base = vector_of(args.base);
  view.scale = vector_of(args.scale);
  view.eps = static_cast<float>(args.eps);
  view.collapsed = view_of<float>(args.collapsed);
  view.post = view_of<float>(args.post);
  view.comb = view_of<float>(args.comb);
  view.c = static_cast<int>(c);
  view.iterations = args.iterations;
  launch_collapse(context_, view);
}

void CudaOps::hyper_merge(const HyperMergeArgs& args) {
  flush();
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2);
  FATHOM_CHECK(c <= kMostStreams && args.out.shape == args.streams.shape && args.x.shape == (Shape{tokens, h}));
  if (tokens == 0) return;
  MergeView view;
  view.x = view_of<const float>(args.x);
  view.streams = view_of<const float>(args.streams);
  view.post = view_of<const float>(args.post);
  view.comb = view_of<const float>(args.comb);
  view.out = view_of<float>(args.out);
  view.c = static_cast<int>(c);
  merge_streams<<<dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(divide_up(h, kHyperThreads))), kHyperThreads, 0, context_.stream>>>(view);
  context_.launched();
}

void CudaOps::hyper_head(const HyperHeadArgs& args) {
  flush();
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1);
  FATHOM_CHECK(c <= kMostStreams && args.fn.rows == c && args.base.elements() == c && args.scale.elements() == 1);
  context_.workspace.reset();
  if (tokens == 0) return;
  CollapseView view;
  view.streams = view_of<const float>(args.streams);
  view.z = launch_mix_logits(context_, args.streams, args.fn, args.norm_eps);
  view.z_rows = c;
  view.base = vector_of(args.base);
  view.scale = vector_of(args.scale);
  view.eps = static_cast<float>(args.eps);
  view.collapsed = view_of<float>(args.out);
  view.c = static_cast<int>(c);
  launch_collapse(context_, view);
}

}  // namespace fathom::cuda
