// Latent attention of one token with what goes before it: see attention_ways.h.
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/latents_absorbed.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
constexpr int kMostAbsorbedHeads = 16;
constexpr std::int64_t kMostAbsorbedKeys = 16384;  // of more, more blocks than clusters have find more in the same time
}  // namespace

bool can_absorb(Context& context, const AttentionArgs& args, const AttentionView& view) {
  if (context.compute_capability < 90 || view.sequences != 1 || view.tokens != 1 || view.segment_count != 1 || view.selects) return false;
  if (view.heads % kAbsorbedHeads != 0 || view.heads > kMostAbsorbedHeads) return false;
  const KvSegment& segment = args.segments[0];
  const SegmentView& own = view.segments[0];
  if (own.kind != KvSegment::Kind::kCache || own.dtype != DType::bf16 || own.dk != kAbsorbedRank || own.dr != kAbsorbedRope || own.kv_heads != 1 || view.dv != kAbsorbedRank) return false;
  if (own.v != own.k || own.v_row != own.k_row || !rows_aligned(segment.k, 16) || !rows_aligned(segment.k_shared, 16)) return false;
  if (most_keys(args) > kMostAbsorbedKeys || sizeof(AbsorbedRoom) > context.shared_bytes) return false;
  context.note(cudaFuncSetAttribute(&attend_absorbed, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(AbsorbedRoom))));
  return clusters_at_once(context, &attend_absorbed, dim3(kAbsorbedThreads), sizeof(AbsorbedRoom), kAbsorbedBlocks) * kAbsorbedHeads >= view.heads;
}

void launch_absorbed(Context& context, const AttentionView& view, const FreshLatents& fresh) {
  ClusterLaunch launch(context, dim3(static_cast<unsigned>(view.heads / kAbsorbedHeads * kAbsorbedBlocks)), dim3(kAbsorbedThreads), sizeof(AbsorbedRoom), dim3(kAbsorbedBlocks));
  launch.go(context, &attend_absorbed, view, fresh);
}

}  // namespace fathom::cuda
