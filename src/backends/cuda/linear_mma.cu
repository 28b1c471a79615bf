// Launches of products of few tokens on tensor cores.
#include "backends/cuda/linear_mma.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kTokensOfTwoHalves = kMmaColumns / 2;

int halves_of(const Product& p) { return p.tokens <= kTokensOfTwoHalves ? 2 : 1; }
/// Columns begin 64 bytes apart modulo 128, so that lanes of two columns meet all banks once.
std::int64_t stride_of(std::int64_t cols) { return divide_up(cols * 2, 128) * 64 + 32; }
std::int64_t shared_of(const Product& p) { return p.tokens * halves_of(p) * stride_of(p.weight.cols) * 2; }

template <WeightFormat F>
void launch(Context& context, const FewMmaView& view, unsigned blocks) {
  const auto shared = static_cast<std::size_t>(shared_of(view.all.products[0]));
  const auto go = [&](auto* kernel) {
    if (shared > 32 * 1024) context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    launch_early(context, kernel, blocks, kWarpsABlock * kWarp, shared, view);
  };
  const bool normed = view.all.norm.from != nullptr;
  if (view.all.gated) normed ? go(&few_mma_kernel<F, true, true>) : go(&few_mma_kernel<F, false, true>);
  else normed ? go(&few_mma_kernel<F, true, false>) : go(&few_mma_kernel<F, false, false>);
}

}  // namespace

bool can_use_mma(const Context& context, const Together& all) {
  const Product& p = all.products[0];
  if (p.groups != 1 || (p.weight.format != WeightFormat::bf16 && p.weight.format != WeightFormat::mxfp4) || p.weight.cols % kStepColumns != 0) return false;
  if (p.weight.cols > (1 << 20) || shared_of(p) + 16 * 1024 > static_cast<std::int64_t>(context.shared_bytes)) return false;
  for (int i = 0; i < all.count; ++i)
    if (all.products[i].rows > (1 << 24)) return false;
  return true;
}

void launch_few_mma(Context& context, const Together& all) {
  const Product& p = all.products[0];
  FewMmaView view;
  view.all = all;
  view.tokens = static_cast<int>(p.tokens);
  view.halves = halves_of(p);
  view.x_stride = static_cast<int>(stride_of(p.weight.cols));
  const std::int64_t wanted = static_cast<std::int64_t>(context.multiprocessors) * 16, segments = divide_up(p.weight.cols, kSegment);
  const int own = all.gated ? kTileRows16 / 2 : kTileRows16, parts = all.gated ? 1 : all.count;
  std::int64_t tiles = 0;
  for (int i = 0; i < parts; ++i) tiles += divide_up(all.products[i].rows, own);
  while (view.splits < kWarpsABlock && tiles * view.splits < wanted && segments >= 2 * view.splits) view.splits *= 2;
  unsigned blocks = 0;
  for (int i = 0; i < parts; ++i) {
    view.all.first_block[i] = blocks;
    blocks += static_cast<unsigned>(divide_up(divide_up(all.products[i].rows, own), kWarpsABlock / view.splits));
  }
  if (p.weight.format == WeightFormat::bf16) launch<WeightFormat::bf16>(context, view, blocks);
  else launch<WeightFormat::mxfp4>(context, view, blocks);
}

}  // namespace fathom::cuda
