// Attention of many tokens on tensor cores: see attention_ways.h.
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/flash_wide.cuh"
#include "backends/cuda/rounding.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kLeastFlashKeys = 256;  // of a part
constexpr Bytes kMostRounded = 128 * kMiB;     // of the workspace

DType operand_type(const AttentionArgs& args) {
  const DType stored = args.segments[0].k.dtype;
  return stored == DType::f32 ? args.rounds_to : stored;
}

/// The segment's tensors become rounded copies.
template <class T>
void round_segment(Context& context, const AttentionArgs& args, AttentionView& view) {
  const KvSegment& from = args.segments[0];
  SegmentView& segment = view.segments[0];
  const bool same = from.v.data == from.k.data && from.v.strides == from.k.strides && from.v.dim(2) <= from.k.dim(2);
  const auto bytes = [&](const Tensor& x) { return reinterpret_cast<const std::byte*>(rounded<T>(context, x)); };
  segment.k = bytes(from.k);
  segment.k_head = segment.dk, segment.k_row = segment.kv_heads * static_cast<std::int64_t>(segment.dk);
  if (segment.k_shared != nullptr) segment.k_shared = bytes(from.k_shared), segment.shared_row = segment.dr;
  segment.v = same ? segment.k : bytes(from.v);
  segment.v_head = same ? segment.k_head : view.dv, segment.v_row = same ? segment.k_row : segment.kv_heads * static_cast<std::int64_t>(view.dv);
  segment.dtype = kTypeOf<T>;
}

template <class T, int kWidth, int kValues>
void launch(Context& context, const AttentionView& view) {
  constexpr int bytes = kFlashBytes<kWidth, kValues>;
  const dim3 grid(static_cast<unsigned>(view.kv_heads * view.pieces), static_cast<unsigned>(view.tiles), static_cast<unsigned>(view.parts));
  context.note(cudaFuncSetAttribute(&attend_flash<T, kWidth, kValues>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_early(context, &attend_flash<T, kWidth, kValues>, grid, kFlashThreads, bytes, view);
  context.launched();
}
template <class T, int kWidth>
void launch_hopper(Context& context, const AttentionView& view) {
  constexpr int bytes = HopperRoom<kWidth>::kBytes;
  const dim3 grid(static_cast<unsigned>(view.kv_heads * view.pieces), static_cast<unsigned>(view.tiles), static_cast<unsigned>(view.parts));
  context.note(cudaFuncSetAttribute(&attend_flash_hopper<T, kWidth>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  attend_flash_hopper<T, kWidth><<<grid, kHopperThreads, bytes, context.stream>>>(view);
  context.launched();
}
template <class T>
void launch(Context& context, const AttentionView& view) {
#if defined(FATHOM_CUDA_90A)
  if (on_hopper(context, view)) return view.width <= 128 ? launch_hopper<T, 128>(context, view) : launch_hopper<T, 192>(context, view);
#endif
  if (view.width <= 64 && view.dv <= 64) launch<T, 64, 64>(context, view);
  else if (view.width <= 128) launch<T, 128, 128>(context, view);
  else launch<T, 192, 128>(context, view);
}

}  // namespace

bool on_hopper([[maybe_unused]] const Context& context, [[maybe_unused]] const AttentionView& view) {
#if defined(FATHOM_CUDA_90A)
  return context.compute_capability == 90 && (view.width > 64 || view.dv > 64) && HopperRoom<192>::kBytes <= static_cast<int>(context.shared_bytes);
#else
  return false;
#endif
}

bool can_flash(const Context& context, const AttentionArgs& args, const AttentionView& view) {
  using Kind = KvSegment::Kind;
  if (view.segment_count != 1 || view.selects || view.width > 192 || view.dv > 128 || view.width % 8 != 0 || view.dv % 8 != 0) return false;
  const KvSegment& segment = args.segments[0];
  const DType type = operand_type(args);
  if ((segment.kind != Kind::kCache && segment.kind != Kind::kFresh) || segment.k.dim(2) % 8 != 0 || (type != DType::f16 && type != DType::bf16)) return false;
  const bool aligned = rows_aligned(segment.k, 16) && rows_aligned(segment.v, 16) && (!segment.k_shared.defined() || rows_aligned(segment.k_shared, 16));
  const std::int64_t elements = segment.k.elements() + segment.v.elements() + (segment.k_shared.defined() ? segment.k_shared.elements() : 0);
  const bool fits = segment.k.dtype != DType::f32 || static_cast<Bytes>(elements) * 2 <= kMostRounded;
  return aligned && fits && rows_aligned(args.q, 16) && rows_aligned(args.out, 8) && kFlashBytes<192, 128> <= static_cast<int>(context.shared_bytes);
}

void launch_flash(Context& context, const AttentionArgs& args, AttentionView& view) {
  std::int64_t most = 1;
  for (const Sequence& sequence : args.batch->sequences) most = std::max<std::int64_t>(most, sequence.tokens);
  view.tile_heads = static_cast<int>(std::clamp<std::int64_t>(kFlashRows / most, 1, view.group));
  view.tile_tokens = kFlashRows / view.tile_heads;
  view.pieces = static_cast<int>(divide_up(view.group, view.tile_heads));
  view.tiles = tiles_of(*args.batch, view.tile_tokens);
  if (view.tiles == 0) return;
  const DType type = operand_type(args);
  if (view.segments[0].dtype == DType::f32) type == DType::bf16 ? round_segment<__nv_bfloat16>(context, args, view) : round_segment<__half>(context, args, view);
  cut_keys(context, args, view, static_cast<std::int64_t>(view.tiles) * view.kv_heads * view.pieces, (on_hopper(context, view) ? 1 : 2) * static_cast<std::int64_t>(context.multiprocessors), kLeastFlashKeys);
  if (view.rounded_type != type) view.rounded_out = nullptr;
  type == DType::bf16 ? launch<__nv_bfloat16>(context, view) : launch<__half>(context, view);
}

}  // namespace fathom::cuda
