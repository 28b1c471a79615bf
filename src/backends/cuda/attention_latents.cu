// Latent attention: see attention_ways.h.
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/latents.cuh"
#include "backends/cuda/latents_mma.cuh"
#include "backends/cuda/latents_wide.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kLeastLatents = 16, kLeastWide = 128;  // keys of a part

template <class T, int kWidth, int kValues>
void launch_mma(Context& context, const AttentionView& view, dim3 grid) {
  constexpr int bytes = kSharedBytes<kWidth>;
  context.note(cudaFuncSetAttribute(&attend_latents_mma<T, kWidth, kValues>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_early(context, &attend_latents_mma<T, kWidth, kValues>, grid, kSharedThreads, bytes, view);
  context.launched();
}
template <class T>
void launch_mma(Context& context, const AttentionView& view, dim3 grid) {
  if (view.width <= 128 && view.dv <= 128) launch_mma<T, 128, 128>(context, view, grid);
  else launch_mma<T, 576, 512>(context, view, grid);
}

/// On tensor cores: 16-bit caches.
bool can_mma(const Context& context, const AttentionArgs& args, const AttentionView& view) {
  const DType type = args.segments[0].k.dtype;
  return (type == DType::bf16 || type == DType::f16) && view.width <= 576 && view.dv <= 512 && view.dv % 8 == 0 && rows_aligned(args.q, 16) && rows_aligned(args.out, 8) &&
         kSharedBytes<576> + 1024 <= static_cast<int>(context.shared_bytes);
}

/// On Hopper's matrix units: more rows (tokens × heads) than the 16 of the other ways.
bool can_go_wide(const Context& context, const AttentionArgs& args, const AttentionView& view) {
#if defined(FATHOM_CUDA_90A)
  const KvSegment& segment = args.segments[0];
  if (context.compute_capability != 90 || segment.kind != KvSegment::Kind::kCache || view.width != kWideWidth || view.dv != kWideValues) return false;
  if (!can_mma(context, args, view) || kWideBytes > static_cast<int>(context.shared_bytes)) return false;
  return view.heads > kSharedHeads || !one_token_each(*args.batch);
#else
  return false;
#endif
}

template <class T>
void launch_wide(Context& context, const AttentionView& view) {
  const dim3 grid(static_cast<unsigned>(view.pieces), static_cast<unsigned>(view.tiles), static_cast<unsigned>(view.parts));
  context.note(cudaFuncSetAttribute(&attend_latents_wide<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kWideBytes));
  attend_latents_wide<T><<<grid, kWideThreads, kWideBytes, context.stream>>>(view);
  context.launched();
}

void launch_wide(Context& context, const AttentionArgs& args, AttentionView& view) {
  view.tile_heads = std::min(view.heads, kWideRows);
  view.tile_tokens = kWideRows / view.tile_heads;
  view.pieces = static_cast<int>(divide_up(view.heads, view.tile_heads));
  view.tiles = tiles_of(*args.batch, view.tile_tokens);
  if (view.tiles == 0) return;
  cut_keys(context, args, view, static_cast<std::int64_t>(view.tiles) * view.pieces, context.multiprocessors, kLeastWide);
  view.segments[0].dtype == DType::bf16 ? launch_wide<__nv_bfloat16>(context, view) : launch_wide<__half>(context, view);
}

}  // namespace

bool can_share_latents(const Context& context, const AttentionArgs& args, const AttentionView& view) {
  if (view.selects || view.segment_count != 1 || view.kv_heads != 1 || view.group < 2) return false;
  const KvSegment& segment = args.segments[0];
  if (dtype_bytes(segment.k.dtype) == 1) return false;
  const bool aligned = rows_aligned(segment.k, 16) && segment.k.dim(2) % 8 == 0 && view.width % 8 == 0 && (!segment.k_shared.defined() || rows_aligned(segment.k_shared, 16));
  if (!aligned || segment.v.data != segment.k.data || segment.v.strides[0] != segment.k.strides[0] || view.dv > segment.k.dim(2)) return false;
  if (can_go_wide(context, args, view)) return true;
  return one_token_each(*args.batch) && view.dv <= kMostLatentValues && view.width <= kMostLatentWidth && latent_bytes(view.width) + 4096 <= context.shared_bytes;
}

void launch_latents(Context& context, const AttentionArgs& args, AttentionView& view) {
  view.rounded_out = nullptr;  // what comes next is a product by head
  if (can_go_wide(context, args, view)) return launch_wide(context, args, view);
  const std::int64_t groups = divide_up(view.heads, kLatentHeads), blocks = static_cast<std::int64_t>(view.sequences) * groups, processors = context.multiprocessors;
  const bool mma = can_mma(context, args, view);
  cut_keys(context, args, view, blocks, mma ? processors : 2 * processors, mma ? kSharedKeys : kLeastLatents);
  const dim3 grid(static_cast<unsigned>(view.sequences), static_cast<unsigned>(groups), static_cast<unsigned>(view.parts));
  const DType type = view.segments[0].dtype;
  if (mma) return type == DType::bf16 ? launch_mma<__nv_bfloat16>(context, view, grid) : launch_mma<__half>(context, view, grid);
  const std::size_t bytes = latent_bytes(view.width);
  const auto launch = [&](auto* kernel) {
    context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    launch_early(context, kernel, grid, kLatentThreads, bytes, view);
  };
  if (type == DType::f32) launch(&attend_latents<float>);
  else if (type == DType::bf16) launch(&attend_latents<__nv_bfloat16>);
  else launch(&attend_latents<__half>);
  context.launched();
}

}  // namespace fathom::cuda
