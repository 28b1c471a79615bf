// Families rows, rope, loss and the elementwise part of experts, backwards.
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kChangeThreads = 256;
constexpr std::int32_t kIgnoredTarget = -100;

// ---------------------------------------------------------------- elementwise

/// change(row, column) for all of them; a block covers threadIdx.y rows at a time.
template <class Change>
__global__ void __launch_bounds__(kChangeThreads) change_elements(const __grid_constant__ Change change, std::int64_t rows, std::int64_t n) {
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += static_cast<std::int64_t>(gridDim.y) * blockDim.y)
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) change(row, i);
}

template <class Change>
void launch_change(Context& context, const Change& change, std::int64_t rows, std::int64_t n) {
  if (rows <= 0 || n <= 0) return;
  unsigned wide = kWarp;
  while (wide < kChangeThreads && wide < n) wide *= 2;
  const dim3 block(wide, kChangeThreads / wide);
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(divide_up(n, wide), 1024)), static_cast<unsigned>(std::min<std::int64_t>(divide_up(rows, block.y), 32768)));
  change_elements<Change><<<grid, block, 0, context.stream>>>(change, rows, n);
  context.launched();
}

struct SetZero {
  RowsView x;
  __device__ void operator()(std::int64_t row, std::int64_t i) const { x.row<float>(row)[i] = 0.0f; }
};

struct AddStreams {
  View<const float> dout;
  View<float> dx;
  __device__ void operator()(std::int64_t t, std::int64_t i) const {
    float sum = 0.0f;
    for (std::int64_t s = 0; s < dout.dims[1]; ++s) sum += dout.at(t, s)[i];
    dx.at(t)[i] += sum;
  }
};

struct GateChange {
  RowsView gate, up, dout, dgate, dup;
  float limit;
  __device__ void operator()(std::int64_t row, std::int64_t i) const {
    const GatedSlopes slopes = gated_slopes(gate.row<const float>(row)[i], up.row<const float>(row)[i], limit);
    const float change = dout.row<const float>(row)[i];
    if (dgate.data != nullptr) dgate.row<float>(row)[i] += change * slopes.gate;
    if (dup.data != nullptr) dup.row<float>(row)[i] += change * slopes.up;
  }
};

struct GeluChange {
  RowsView x, dout, dx;
  __device__ void operator()(std::int64_t row, std::int64_t i) const {
    constexpr float kRoot = 0.7978845608028654f, kCube = 0.044715f;
    const float v = x.row<const float>(row)[i], t = tanhf(kRoot * (v + kCube * v * v * v));
    dx.row<float>(row)[i] += dout.row<const float>(row)[i] * (0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * kRoot * (1.0f + 3.0f * kCube * v * v));
  }
};

void check_alike(const Tensor& x, const Tensor& shape) {
  FATHOM_CHECK(!x.defined() || (x.dtype == DType::f32 && x.shape == shape.shape), "activations and gradients are f32 of one shape");
}

// ---------------------------------------------------------------- rows added where they came from

struct ScatterView {
  RowsView from, to;
  const std::int32_t* places = nullptr;  // [from.count]; row i of `from` is added to row places[i] - first of `to`, if that is there
  std::int64_t first = 0;
};

/// The block of the first row that goes to a place adds all of them, in their order. Grid: rows, blocks of columns.
__global__ void __launch_bounds__(kChangeThreads) add_rows(const __grid_constant__ ScatterView view) {
  __shared__ std::int32_t found[kChangeThreads];
  __shared__ int counts[kChangeThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const std::int64_t own = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y) * kChangeThreads + thread;
  const std::int32_t place = view.places[own];
  const std::int64_t row = place - view.first;
  if (row < 0 || row >= view.to.count) return;
  bool earlier = false;
  for (std::int64_t i = thread; i < own; i += kChangeThreads) earlier = earlier || view.places[i] == place;
  if (__syncthreads_or(earlier ? 1 : 0) != 0) return;
  float sum = 0.0f;
  for (std::int64_t base = own; base < view.from.count; base += kChangeThreads) {
    const std::int64_t i = base + thread;
    const bool goes_here = i < view.from.count && view.places[i] == place;
    const unsigned lanes = __ballot_sync(kAllLanes, goes_here);
    if (lane == 0) counts[warp] = __popc(lanes);
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < kChangeThreads / kWarp; ++w) before += w < warp ? counts[w] : 0, all += counts[w];
    if (goes_here) found[before + __popc(lanes & ((1u << lane) - 1u))] = static_cast<std::int32_t>(i);
    __syncthreads();
    if (column < view.from.n)
      for (int n = 0; n < all; ++n) sum += view.from.row<const float>(found[n])[column];
    __syncthreads();
  }
  if (column < view.from.n) view.to.row<float>(row)[column] += sum;
}

void launch_add_rows(Context& context, const Tensor& places, const Tensor& from, const Tensor& to, std::int64_t first) {
  FATHOM_CHECK(places.dtype == DType::i32 && places.contiguous() && places.elements() == from.dim(0));
  FATHOM_CHECK(from.dtype == DType::f32 && to.dtype == DType::f32 && from.shape.rank == 2 && to.shape.rank == 2 && from.dim(1) == to.dim(1), "gradients are f32");
  if (from.elements() == 0) return;
  const ScatterView view{.from = rows_of(from), .to = rows_of(to), .places = places.as<std::int32_t>(), .first = first};
  add_rows<<<dim3(static_cast<unsigned>(from.dim(0)), static_cast<unsigned>(divide_up(from.dim(1), kChangeThreads))), kChangeThreads, 0, context.stream>>>(view);
  context.launched();
}

// ---------------------------------------------------------------- loss

/// dlogits[t, :] += dlosses[t] · (softmax(logits[t]) - onehot): a block a token.
__global__ void cross_entropy_backward_kernel(View<const float> logits, View<const std::int32_t> targets, View<const float> dlosses, View<float> dlogits) {
  __shared__ BlockRoom room;
  const std::int64_t vocabulary = logits.dims[1];
  for (std::int64_t t = blockIdx.x; t < logits.dims[0]; t += gridDim.x) {
    const std::int32_t target = *targets.at(t);
    if (target == kIgnoredTarget) continue;
    const float *row = logits.at(t), change = *dlosses.at(t);
    float largest = -INFINITY, sum = 0.0f, *to = dlogits.at(t);
    for (std::int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) largest = larger(largest, row[i]);
    largest = block_max(largest, room);
    for (std::int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(row[i] - largest);
    sum = block_sum(sum, room);
    for (std::int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) to[i] += change * (expf(row[i] - largest) / sum - (i == target ? 1.0f : 0.0f));
  }
}

}  // namespace

void CudaGradOps::zero(const Tensor& x) {
  Context& context = begin();
  FATHOM_CHECK(x.dtype == DType::f32, "gradients are f32");
  const RowsView rows = x.contiguous() ? dense_rows(x.as<float>(), 1, x.elements()) : rows_of(x);
  launch_change(context, SetZero{rows}, rows.count, rows.n);
}

void CudaGradOps::embed_backward(const EmbedGrad& args) {
  Context& context = begin();
  if (!args.dtable.defined()) return;
  FATHOM_CHECK(args.dtable.dim(0) == args.f.table.rows);
  launch_add_rows(context, args.f.ids, args.dout, args.dtable, args.f.first_id);
}

void CudaGradOps::gather_rows_backward(const GatherRowsGrad& args) {
  Context& context = begin();
  if (args.dx.defined()) launch_add_rows(context, args.f.rows, args.dout, args.dx, 0);
}

void CudaGradOps::accumulate(const AccumulateGrad& args) {
  begin();
  if (!args.dx.defined()) return;
  ops_.add({.a = args.dx, .b = args.dout, .out = args.dx});
  ops_.flush();
}

void CudaGradOps::expand_streams_backward(const ExpandStreamsGrad& args) {
  Context& context = begin();
  if (!args.dx.defined()) return;
  FATHOM_CHECK(args.dx.dim(0) == args.dout.dim(0) && args.dx.dim(1) == args.dout.dim(2));
  launch_change(context, AddStreams{view_of<const float>(args.dout), view_of<float>(args.dx)}, args.dx.dim(0), args.dx.dim(1));
}

// A rotation's transpose is the rotation back, a scale in cos and sin included.
void CudaGradOps::rope_backward(const RopeGrad& args) {
  begin();
  RopeArgs back = args.f;
  back.x = args.dx;
  back.inverse = !args.f.inverse;
  ops_.rope(back);
  ops_.flush();  // nothing of backward waits
}

void CudaGradOps::swiglu_backward(const SwigluGrad& args) {
  Context& context = begin();
  for (const Tensor* x : {&args.f.gate, &args.f.up, &args.dout, &args.dgate, &args.dup}) check_alike(*x, args.dout);
  const RowsView rows = rows_of(args.dout);
  launch_change(context, GateChange{rows_of(args.f.gate), rows_of(args.f.up), rows, rows_of(args.dgate), rows_of(args.dup), static_cast<float>(args.f.limit)}, rows.count, rows.n);
}

void CudaGradOps::gelu_backward(const GeluGrad& args) {
  Context& context = begin();
  if (!args.dx.defined()) return;
  for (const Tensor* x : {&args.f.x, &args.dout, &args.dx}) check_alike(*x, args.dout);
  const RowsView rows = rows_of(args.dout);
  launch_change(context, GeluChange{rows_of(args.f.x), rows, rows_of(args.dx)}, rows.count, rows.n);
}

void CudaGradOps::cross_entropy_backward(const CrossEntropyGrad& args) {
  Context& context = begin();
  const std::int64_t tokens = args.f.logits.dim(0), vocabulary = args.f.logits.dim(1);
  FATHOM_CHECK(args.f.targets.elements() == tokens && args.dlosses.elements() == tokens);
  if (tokens == 0 || !args.dlogits.defined()) return;
  const int threads = vocabulary >= 8192 ? 1024 : 256;
  cross_entropy_backward_kernel<<<grid_for(context, tokens, 1), threads, 0, context.stream>>>(
      view_of<const float>(args.f.logits), view_of<const std::int32_t>(args.f.targets), view_of<const float>(args.dlosses), view_of<float>(args.dlogits));
  context.launched();
}

}  // namespace fathom::cuda
