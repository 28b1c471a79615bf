// Experts with 16-bit weights on tensor cores: see experts_mma.h. Few hits an expert: the weights stream by. Many: tiles.
#include "backends/cuda/experts_mma.h"

#include <type_traits>

#include "backends/cuda/copy_maps.h"
#include "backends/cuda/experts_ring.cuh"
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
#if defined(FATHOM_CUDA_90A)
/// A matrix of `experts` experts as boxes of 16 rows and some times 64 columns. False where the copy engine does not take it.
template <class T>
bool describe(CUtensorMap& map, const MatrixOfExperts& matrix, std::int64_t experts, std::int64_t rows, std::int64_t cols) {
  const auto step = static_cast<cuuint64_t>(experts > 1 ? matrix.data_step : 2 * rows * cols);
  if (matrix.table != nullptr || matrix.data_step < 0 || step % 16 != 0 || step >= cuuint64_t{1} << 40 || cols % kRingBox != 0) return false;
  const cuuint64_t dims[5] = {kRingBox, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(cols / kRingBox), static_cast<cuuint64_t>(experts), 1};
  const cuuint64_t strides[4] = {static_cast<cuuint64_t>(2 * cols), 2 * kRingBox, step, step};
  const cuuint32_t box[5] = {kRingBox, kRingRows, kRingColumns / kRingBox, 1, 1}, one[5] = {1, 1, 1, 1, 1};
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return encode_tiled()(&map, type, 5, const_cast<std::byte*>(matrix.data), dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
#endif

/// Both products. False: nothing was launched.
template <class T, int kTiles>
bool launch_ring([[maybe_unused]] Context& context, [[maybe_unused]] const MmaView& in, [[maybe_unused]] const MmaView& out, [[maybe_unused]] std::int64_t experts, [[maybe_unused]] int most_runs) {
#if defined(FATHOM_CUDA_90A)
  constexpr unsigned kBytes = RingRoom<kTiles>::kBytes;
  if (context.compute_capability != 90 || kBytes > context.shared_bytes || encode_tiled() == nullptr) return false;
  RingView view{.parts = {in, out}, .most_runs = most_runs, .meetings = context.meetings};
  if (!describe<T>(view.gate, in.first, experts, in.rows, in.cols) || !describe<T>(view.up, in.second, experts, in.rows, in.cols) || !describe<T>(view.down, out.first, experts, out.rows, out.cols))
    return false;
  context.note(cudaFuncSetAttribute(&stream_experts<T, kTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  launch_early(context, &stream_experts<T, kTiles>, static_cast<unsigned>(context.multiprocessors), kRingThreads, kBytes, view);
  context.launched();
  return true;
#else
  return false;
#endif
}
/// Both products of runs of at most 8 · kTiles hits.
template <class T, int kTiles>
void launch_few(Context& context, const MmaView& in, const MmaView& out, std::int64_t experts, int most_runs) {
  if (launch_ring<T, kTiles>(context, in, out, experts, most_runs)) return;
  launch_stream<T, true, kTiles>(context, in, most_runs);
  launch_stream<T, false, kTiles>(context, out, most_runs);
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
    launch_few<T, 1>(context, in, out, std::ssize(args.gate), gather.most_runs);
  } else {
    launch_few<T, 2>(context, in, out, std::ssize(args.gate), gather.most_runs);
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
