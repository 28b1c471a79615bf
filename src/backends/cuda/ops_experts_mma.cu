// Experts with 16-bit weights on tensor cores: see experts_mma.h. Few hits an expert: the weights stream by. Many: tiles.
#include "backends/cuda/experts_mma.h"

#include "backends/cuda/experts_wide.cuh"
#include "backends/cuda/rounding.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

template <class T, bool kGated, int kTiles>
void launch_stream(Context& context, const MmaView& view, std::int64_t runs) {
  const dim3 grid(static_cast<unsigned>(divide_up(view.rows, kGated ? 16 : 32)), static_cast<unsigned>(runs));
  launch_early(context, &stream_hits<T, kGated, kTiles>, grid, kMmaStreamThreads, 0, view);
  context.launched();
}
template <class T, bool kGated>
void launch_panels(Context& context, const MmaView& view, std::int64_t runs) {
  const dim3 grid(static_cast<unsigned>(divide_up(view.rows, kGated ? kPanelRows / 2 : kPanelRows)), static_cast<unsigned>(runs));
  context.note(cudaFuncSetAttribute(&multiply_panels<T, kGated>, cudaFuncAttributeMaxDynamicSharedMemorySize, kPanelBytes));
  multiply_panels<T, kGated><<<grid, kPanelThreads, kPanelBytes, context.stream>>>(view);
  context.launched();
}
template <class T, bool kGated>
void launch_group(Context& context, const MmaView& view, std::int64_t runs) {
#if defined(FATHOM_CUDA_90A)
  static_assert(kPanelHits == kGroupHits);
  if (context.compute_capability == 90 && kPanelBytes <= static_cast<int>(context.shared_bytes)) return launch_panels<T, kGated>(context, view, runs);
#endif
  const dim3 grid(static_cast<unsigned>(divide_up(view.rows, kGated ? kGroupRows / 2 : kGroupRows)), static_cast<unsigned>(runs));
  context.note(cudaFuncSetAttribute(&multiply_group<T, kGated>, cudaFuncAttributeMaxDynamicSharedMemorySize, kGroupBytes));
  launch_early(context, &multiply_group<T, kGated>, grid, kGroupThreads, kGroupBytes, view);
  context.launched();
}

template <class T>
float* multiply(Context& context, const ExpertsArgs& args, const Matrices& matrices, const Tensor& x, const std::byte* kept, const GatherView& gather) {
  const std::int64_t inner = args.gate[0].rows, h = x.dim(1), runs = gather.most_runs;
  T* hidden = context.workspace.take<T>(gather.pairs * inner);
  float* y = context.workspace.take<float>(gather.pairs * h);
  const bool group = gather.run == kGroupHits;
  MmaView in;
  in.first = matrices.gate;
  in.second = matrices.up;
  in.rows = inner;
  in.cols = h;
  in.x = kept != nullptr ? static_cast<const void*>(kept) : rounded<T>(context, x);
  in.x_stride = h;
  in.token = gather.token;
  in.y = hidden;
  in.limit = static_cast<float>(args.limit);
  in.runs = gather.runs;
  MmaView out = in;
  out.first = matrices.down;
  out.rows = h;
  out.cols = inner;
  out.x = hidden;
  out.x_stride = inner;
  out.token = nullptr;
  out.y = y;
  if (group) {
    launch_group<T, true>(context, in, runs);
    launch_group<T, false>(context, out, runs);
  } else if (gather.run == 8) {
    launch_stream<T, true, 1>(context, in, runs);
    launch_stream<T, false, 1>(context, out, runs);
  } else {
    launch_stream<T, true, 2>(context, in, runs);
    launch_stream<T, false, 2>(context, out, runs);
  }
  return y;
}

}  // namespace

bool reads_vectors(std::span<const Weight> weights) {
  for (const Weight& weight : weights)
    if (weight.cols % 8 != 0 || reinterpret_cast<std::uintptr_t>(weight.data) % 16 != 0) return false;
  return true;
}

bool can_mma(const ExpertsArgs& args) {
  const WeightFormat format = args.gate[0].format;
  if (!reads_vectors(args.gate) || !reads_vectors(args.up) || !reads_vectors(args.down) || !rows_aligned(args.x, 16)) return false;
  return (format == WeightFormat::bf16 || format == WeightFormat::f16) && args.down[0].format == format && args.gate[0].rows % 8 == 0 && args.gate[0].cols % 8 == 0;
}

int mma_run(const ExpertsArgs& args, std::int64_t pairs) {
  const std::int64_t total = std::max<std::int64_t>(args.total_experts, std::ssize(args.gate));
  return pairs <= 4 * total ? 8 : pairs <= 12 * total ? 16 : kGroupHits;
}

float* multiply_mma(Context& context, const ExpertsArgs& args, const Matrices& matrices, const Tensor& x, const std::byte* kept, const GatherView& gather) {
  if (args.gate[0].format == WeightFormat::bf16) return multiply<__nv_bfloat16>(context, args, matrices, x, kept, gather);
  return multiply<__half>(context, args, matrices, x, kept, gather);
}

}  // namespace fathom::cuda
