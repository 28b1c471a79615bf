// Family hyper backwards, in f32. Some tokens at a time: their streams, flattened and divided by their root mean square, are a matrix y; z = y
// fnᵀ, what the gates make of it, what that makes of z, and then dfn += dzᵀ y and dy = dz fn are products (grad_product.cu).
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kStreamThreads = 256, kStreamWarps = kStreamThreads / kWarp;
constexpr int kMostGradStreams = 16;

struct HyperGradView {
  View<const float> streams;                   // [tokens, c, h]
  View<const float> dcollapsed, dpost, dcomb;  // undefined: zero
  View<float> dstreams;                        // undefined: not wanted
  FloatVector base, scale;
  int c = 0, rows = 0;                // rows of fn
  std::int64_t h = 0, first = 0, divisions = 0;  // first: token; divisions: of the matrix that is made doubly stochastic
  float eps = 0, norm_eps = 0;
  // Of the tokens from `first` on, dense.
  float *y = nullptr, *dy = nullptr, *inverse = nullptr;                       // [count, c · h], [count]: 1 / rms
  float *z = nullptr, *dz = nullptr, *du = nullptr, *pre = nullptr;            // [count, rows], pre [count, c]
  float *dscale = nullptr, *before = nullptr;                                  // [count, 3], [count, divisions, c · c]
};

/// dots of rows that a warp reads: the same in all lanes.
__device__ float dot_of(const float* a, const float* b, std::int64_t n) {
  float sum = 0.0f;
  for (std::int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) sum += a[i] * b[i];
  return warp_sum(sum);
}

/// y = streams / rms. A block a token.
__global__ void __launch_bounds__(kStreamThreads) normalize_streams(const __grid_constant__ HyperGradView view) {
  __shared__ BlockRoom room;
  const std::int64_t own = blockIdx.x, token = view.first + own, width = view.c * view.h;
  float squares = 0.0f;
  for (int j = 0; j < view.c; ++j) {
    const float* stream = view.streams.at(token, j);
    for (std::int64_t i = threadIdx.x; i < view.h; i += kStreamThreads) squares += stream[i] * stream[i];
  }
  const float inverse = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(width) + view.norm_eps);
  if (threadIdx.x == 0) view.inverse[own] = inverse;
  for (int j = 0; j < view.c; ++j) {
    const float* stream = view.streams.at(token, j);
    for (std::int64_t i = threadIdx.x; i < view.h; i += kStreamThreads) view.y[own * width + j * view.h + i] = stream[i] * inverse;
  }
}

using StreamMatrix = float[kMostGradStreams * kMostGradStreams];

/// The sum of the row (or column) that element i of m [c, c] lies in, with what f makes of each element's place.
template <class Term>
__device__ float sum_of_line(int i, int c, bool row, Term term) {
  float sum = 0.0f;
  for (int x = 0; x < c; ++x) sum += term(row ? i / c * c + x : x * c + i % c);
  return sum;
}
/// to[i] = make(i) for every element, where make reads what lies there before. By one warp.
template <class Make>
__device__ void remake(float* to, int c, Make make) {
  const int lane = threadIdx.x % kWarp;
  float made[kMostGradStreams * kMostGradStreams / kWarp];
#pragma unroll
  for (int n = 0; n < kMostGradStreams * kMostGradStreams / kWarp; ++n)
    if (lane + n * kWarp < c * c) made[n] = make(lane + n * kWarp);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kMostGradStreams * kMostGradStreams / kWarp; ++n)
    if (lane + n * kWarp < c * c) to[lane + n * kWarp] = made[n];
  __syncwarp();
}

/// logits [c, c] become their softmax by rows; d [c, c], the change of the doubly stochastic matrix, becomes that of the logits. By one warp.
__device__ void stochastic_backward(const HyperGradView& view, float* before, float* matrix, float* softmax, float* d) {
  const int c = view.c, size = c * c, lane = threadIdx.x % kWarp;
  float largest[kMostGradStreams * kMostGradStreams / kWarp];
#pragma unroll
  for (int n = 0; n < kMostGradStreams * kMostGradStreams / kWarp; ++n) {
    const int i = lane + n * kWarp;
    largest[n] = -INFINITY;
    if (i < size)
      for (int k = 0; k < c; ++k) largest[n] = fmaxf(largest[n], softmax[i / c * c + k]);
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kMostGradStreams * kMostGradStreams / kWarp; ++n)
    if (lane + n * kWarp < size) softmax[lane + n * kWarp] = expf(softmax[lane + n * kWarp] - largest[n]);
  __syncwarp();
  remake(softmax, c, [&](int i) { return softmax[i] / sum_of_line(i, c, true, [&](int at) { return softmax[at]; }); });
  remake(matrix, c, [&](int i) { return softmax[i] + view.eps; });
  for (std::int64_t step = 0; step < view.divisions; ++step) {  // columns, rows, columns, …
    for (int i = lane; i < size; i += kWarp) before[step * size + i] = matrix[i];
    remake(matrix, c, [&](int i) { return matrix[i] / (view.eps + sum_of_line(i, c, step % 2 == 1, [&](int at) { return matrix[at]; })); });
  }
  for (std::int64_t step = view.divisions - 1; step >= 0; --step) {
    for (int i = lane; i < size; i += kWarp) matrix[i] = before[step * size + i];
    __syncwarp();
    const bool row = step % 2 == 1;
    remake(d, c, [&](int i) {
      const float sum = view.eps + sum_of_line(i, c, row, [&](int at) { return matrix[at]; });
      return (d[i] - sum_of_line(i, c, row, [&](int at) { return d[at] * (matrix[at] / sum); })) / sum;
    });
  }
  remake(d, c, [&](int i) { return softmax[i] * (d[i] - sum_of_line(i, c, true, [&](int at) { return softmax[at] * d[at]; })); });
}

/// du, dz and the parts of dscale of a token: a block a token. z's rows are c of the collapse, then (mixing) c of post and c · c of comb.
__global__ void __launch_bounds__(kStreamThreads) gates_backward(const __grid_constant__ HyperGradView view) {
  __shared__ float dots[kMostGradStreams];
  __shared__ StreamMatrix matrix, softmax, changes;
  const std::int64_t own = blockIdx.x, token = view.first + own;
  const int c = view.c, thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const float* z = view.z + own * view.rows;
  float *du = view.du + own * view.rows, *dz = view.dz + own * view.rows;
  for (int j = warp; j < c; j += kStreamWarps) {
    const float dot = view.dcollapsed.defined() ? dot_of(view.dcollapsed.at(token), view.streams.at(token, j), view.h) : 0.0f;
    if (lane == 0) dots[j] = dot;
  }
  __syncthreads();
  if (warp > 0) return;
  const auto gate = [&](int row, int group, float change) {
    const float s = sigmoid(z[row] * view.scale[group] + view.base[row]);
    du[row] = change * s * (1.0f - s);
    return s;
  };
  if (lane < c) view.pre[own * c + lane] = gate(lane, 0, dots[lane]) + view.eps;
  const bool mixes = view.rows > c;
  if (mixes && lane < c) gate(c + lane, 1, view.dpost.defined() ? 2.0f * view.dpost.at(token)[lane] : 0.0f);
  if (mixes) {
    for (int i = lane; i < c * c; i += kWarp) {
      softmax[i] = z[2 * c + i] * view.scale[2] + view.base[2 * c + i];
      changes[i] = view.dcomb.defined() ? view.dcomb.at(token, i / c)[i % c] : 0.0f;
    }
    __syncwarp();
    stochastic_backward(view, view.before + own * view.divisions * c * c, matrix, softmax, changes);
    for (int i = lane; i < c * c; i += kWarp) du[2 * c + i] = changes[i];
  }
  __syncwarp();
  float sums[3] = {};
  for (int i = lane; i < view.rows; i += kWarp) {
    const int group = i < c ? 0 : i < 2 * c ? 1 : 2;
    dz[i] = du[i] * view.scale[group];
#pragma unroll
    for (int g = 0; g < 3; ++g) sums[g] += g == group ? du[i] * z[i] : 0.0f;
  }
#pragma unroll
  for (int g = 0; g < 3; ++g) {
    const float sum = warp_sum(sums[g]);
    if (lane == 0 && (mixes || g == 0)) view.dscale[own * (mixes ? 3 : 1) + g] = sum;
  }
}

/// dstreams[j] += pre_j · dcollapsed + (dy - y · mean(dy · y)) / rms. A block a token.
__global__ void __launch_bounds__(kStreamThreads) add_to_streams(const __grid_constant__ HyperGradView view) {
  __shared__ BlockRoom room;
  const std::int64_t own = blockIdx.x, token = view.first + own, width = view.c * view.h;
  const float *y = view.y + own * width, *dy = view.dy + own * width;
  float along = 0.0f;
  for (std::int64_t i = threadIdx.x; i < width; i += kStreamThreads) along += dy[i] * y[i];
  const float mean = block_sum(along, room) / static_cast<float>(width), inverse = view.inverse[own];
  for (int j = 0; j < view.c; ++j) {
    float* to = view.dstreams.at(token, j);
    const float pre = view.pre[own * view.c + j];
    const float* collapsed = view.dcollapsed.defined() ? view.dcollapsed.at(token) : nullptr;
    for (std::int64_t i = threadIdx.x; i < view.h; i += kStreamThreads) {
      const std::int64_t at = j * view.h + i;
      to[i] += (collapsed != nullptr ? pre * collapsed[i] : 0.0f) + inverse * (dy[at] - y[at] * mean);
    }
  }
}

GradSide dense_side(const float* data, std::int64_t index, std::int64_t depth) {
  GradSide side;
  side.data = data;
  side.index = index;
  side.depth = depth;
  return side;
}

/// Where the gradients of the parameters go; null: frozen.
struct HyperParameters { float *dfn, *dbase, *dscale; };

/// Mixing, and the head, which only collapses. The view has its tensors; all of the workspace is this op's.
void hyper_backward(Context& context, HyperGradView view, const Weight& fn, const HyperParameters& to) {
  const std::int64_t tokens = view.streams.dims[0], width = view.c * view.h, rows = view.rows, scales = rows > view.c ? 3 : 1;
  FATHOM_CHECK(view.c <= kMostGradStreams && fn.rows == rows && fn.cols == width);
  const std::int64_t each = 2 * width + 1 + 3 * rows + view.c + scales + view.divisions * view.c * view.c;
  const std::int64_t chunk = std::min(tokens, (static_cast<std::int64_t>(context.workspace.left()) - 10 * 256) / 4 * 7 / 8 / each);  // an eighth: sums over rows
  FATHOM_CHECK(tokens == 0 || chunk > 0, "streams that are too wide for the workspace");
  const auto take = [&](std::int64_t n) { return context.workspace.take<float>(chunk * n); };
  view.y = take(width), view.dy = take(width), view.inverse = take(1);
  view.z = take(rows), view.dz = take(rows), view.du = take(rows), view.pre = take(view.c);
  view.dscale = take(scales), view.before = take(view.divisions * view.c * view.c);
  for (view.first = 0; view.first < tokens; view.first += chunk) {
    const std::int64_t count = std::min(chunk, tokens - view.first);
    const auto blocks = static_cast<unsigned>(count);
    normalize_streams<<<blocks, kStreamThreads, 0, context.stream>>>(view);
    context.launched();
    launch_grad_product(context, {.left = dense_side(view.y, width, 1), .right = weight_side(fn, 0, 0, false), .rows = count, .columns = rows, .depth = width, .out = view.z, .out_stride = rows,
                                  .accumulate = false});
    gates_backward<<<blocks, kStreamThreads, 0, context.stream>>>(view);
    context.launched();
    if (to.dbase != nullptr) add_column_sums(context, {.values = dense_rows(view.du, count, rows)}, to.dbase);
    if (to.dscale != nullptr) add_column_sums(context, {.values = dense_rows(view.dscale, count, scales)}, to.dscale);
    if (to.dfn != nullptr)
      launch_grad_product(context, {.left = dense_side(view.dz, 1, rows), .right = dense_side(view.y, 1, width), .rows = rows, .columns = width, .depth = count, .out = to.dfn,
                                    .out_stride = width});
    if (!view.dstreams.defined()) continue;
    launch_grad_product(context, {.left = dense_side(view.dz, rows, 1), .right = weight_side(fn, 0, 0, true), .rows = count, .columns = width, .depth = rows, .out = view.dy,
                                  .out_stride = width, .accumulate = false});
    add_to_streams<<<blocks, kStreamThreads, 0, context.stream>>>(view);
    context.launched();
  }
}

// ---------------------------------------------------------------- merge

struct MergeGradView {
  View<const float> x, streams, post, comb, dout;  // as in MergeView of ops_hyper.cu
  View<float> dx, dstreams, dpost, dcomb;
  int c = 0;
  std::int64_t h = 0;
};

/// A block a token.
__global__ void __launch_bounds__(kStreamThreads) merge_backward(const __grid_constant__ MergeGradView view) {
  const std::int64_t token = blockIdx.x;
  const int c = view.c, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < c * (c + 1); i += kStreamWarps) {  // c dots with x, then c · c with the streams
    const int j = i / c - 1, k = i % c;
    if (j < 0 ? !view.dpost.defined() : !view.dcomb.defined()) continue;
    const float dot = dot_of(j < 0 ? view.x.at(token) : view.streams.at(token, j), view.dout.at(token, k), view.h);
    if (lane == 0) *(j < 0 ? view.dpost.at(token) + k : view.dcomb.at(token, j) + k) += dot;
  }
  for (std::int64_t i = threadIdx.x; i < view.h; i += kStreamThreads) {
    if (view.dx.defined()) {
      float sum = 0.0f;
      for (int k = 0; k < c; ++k) sum += view.post.at(token)[k] * view.dout.at(token, k)[i];
      view.dx.at(token)[i] += sum;
    }
    for (int j = 0; view.dstreams.defined() && j < c; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < c; ++k) sum += view.comb.at(token, j)[k] * view.dout.at(token, k)[i];
      view.dstreams.at(token, j)[i] += sum;
    }
  }
}

}  // namespace

void CudaGradOps::hyper_mix_backward(const HyperMixGrad& args) {
  Context& context = begin();
  const HyperMixArgs& f = args.f;
  const std::int64_t c = f.streams.dim(1), rows = (2 + c) * c;
  FATHOM_CHECK(f.base.elements() == rows && f.scale.elements() == 3);
  HyperGradView view;
  view.streams = view_of<const float>(f.streams);
  view.dcollapsed = view_of<const float>(args.dcollapsed);
  view.dpost = view_of<const float>(args.dpost);
  view.dcomb = view_of<const float>(args.dcomb);
  view.dstreams = view_of<float>(args.dstreams);
  view.base = vector_of(f.base);
  view.scale = vector_of(f.scale);
  view.c = static_cast<int>(c);
  view.rows = static_cast<int>(rows);
  view.h = f.streams.dim(2);
  view.divisions = 2 * std::max<std::int64_t>(f.iterations, 1) - 1;
  view.eps = static_cast<float>(f.eps);
  view.norm_eps = static_cast<float>(f.norm_eps);
  hyper_backward(context, view, f.fn, {parameter_of(args.dfn, rows * f.fn.cols), parameter_of(args.dbase, rows), parameter_of(args.dscale, 3)});
}

void CudaGradOps::hyper_head_backward(const HyperHeadGrad& args) {
  Context& context = begin();
  const HyperHeadArgs& f = args.f;
  const std::int64_t c = f.streams.dim(1);
  FATHOM_CHECK(f.base.elements() == c && f.scale.elements() == 1);
  HyperGradView view;
  view.streams = view_of<const float>(f.streams);
  view.dcollapsed = view_of<const float>(args.dout);
  view.dstreams = view_of<float>(args.dstreams);
  view.base = vector_of(f.base);
  view.scale = vector_of(f.scale);
  view.c = view.rows = static_cast<int>(c);
  view.h = f.streams.dim(2);
  view.eps = static_cast<float>(f.eps);
  view.norm_eps = static_cast<float>(f.norm_eps);
  hyper_backward(context, view, f.fn, {parameter_of(args.dfn, c * f.fn.cols), parameter_of(args.dbase, c), parameter_of(args.dscale, 1)});
}

void CudaGradOps::hyper_merge_backward(const HyperMergeGrad& args) {
  Context& context = begin();
  const std::int64_t tokens = args.f.streams.dim(0), c = args.f.streams.dim(1), h = args.f.streams.dim(2);
  FATHOM_CHECK(c <= kMostGradStreams && args.dout.shape == args.f.streams.shape && args.f.x.shape == (Shape{tokens, h}));
  if (tokens == 0) return;
  MergeGradView view;
  view.x = view_of<const float>(args.f.x);
  view.streams = view_of<const float>(args.f.streams);
  view.post = view_of<const float>(args.f.post);
  view.comb = view_of<const float>(args.f.comb);
  view.dout = view_of<const float>(args.dout);
  view.dx = view_of<float>(args.dx);
  view.dstreams = view_of<float>(args.dstreams);
  view.dpost = view_of<float>(args.dpost);
  view.dcomb = view_of<float>(args.dcomb);
  view.c = static_cast<int>(c);
  view.h = h;
  merge_backward<<<static_cast<unsigned>(tokens), kStreamThreads, 0, context.stream>>>(view);
  context.launched();
}

}  // namespace fathom::cuda
