// Attention of single tokens by clusters: see attention_ways.h.
#include "backends/cuda/attention_clusters.cuh"
#include "backends/cuda/attention_groups.cuh"
#include "backends/cuda/attention_ways.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kLeastKeys16 = 16, kManyKeys = 256;  // of a part
// Heads of a key head. With one, 3 µs less than attend_groups (32 key heads, 512 keys); with six, 254 registers a thread and more than attend_groups takes.
constexpr int kMostHeads = 2;

template <class T, int kWidth, int kHeads>
void launch(Context& context, const AttentionView& view, const FreshRows& fresh) {
  auto* kernel = &attend_clusters<T, kWidth, kHeads>;
  context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kHeldBytes<T>)));
  AttentionView own = view;
  if (own.parts > 8 && clusters_at_once(context, kernel, dim3(kClusterThreads), kHeldBytes<T>, static_cast<unsigned>(own.parts)) < 1) own.parts = 8;
  const auto parts = static_cast<unsigned>(own.parts);
  ClusterLaunch launch(context, dim3(static_cast<unsigned>(own.sequences), static_cast<unsigned>(own.kv_heads), parts), dim3(kClusterThreads), kHeldBytes<T>, dim3(1, 1, parts));
  launch.go(context, kernel, own, fresh);
}
template <class T, int kWidth>
void launch(Context& context, const AttentionView& view, const FreshRows& fresh) {
  view.group == 1 ? launch<T, kWidth, 1>(context, view, fresh) : launch<T, kWidth, 2>(context, view, fresh);
}
template <class T>
void launch(Context& context, const AttentionView& view, const FreshRows& fresh) {
  view.dv == 64 ? launch<T, 64>(context, view, fresh) : launch<T, 128>(context, view, fresh);
}

}  // namespace

int cluster_parts(const Context& context, const AttentionArgs& args, const AttentionView& view) {
  if (context.compute_capability < 90 || view.group > kGroupHeads || args.segments.size() != 1 || args.segments[0].kind != KvSegment::Kind::kCache) return 0;
  const KvSegment& segment = args.segments[0];
  if (segment.k.dtype == DType::f32 || !rows_aligned(args.q, 16)) return 0;
  const std::int64_t blocks = static_cast<std::int64_t>(view.sequences) * view.kv_heads, keys = most_keys(args);
  int parts = 1;
  while (parts < kMostClusterParts && blocks * parts < context.multiprocessors && keys / (2 * parts) >= kLeastKeys16) parts *= 2;
  // Long caches of few key heads need more blocks than clusters have.
  if (parts < 2 || (blocks * parts < context.multiprocessors && keys / parts > kManyKeys)) return 0;
  return parts;
}

bool clusters_make_rows(const AttentionView& view) { return view.group <= kMostHeads || view.segments[0].dtype != DType::i8; }

void launch_attention_clusters(Context& context, const AttentionArgs& args, const AttentionView& view, const FreshRows& fresh) {
  if (view.group > kMostHeads) return launch_attention_groups(context, args, view, fresh);
  if (view.segments[0].dtype == DType::bf16) launch<__nv_bfloat16>(context, view, fresh);
  else if (view.segments[0].dtype == DType::f8e4m3) launch<E4m3>(context, view, fresh);
  else if (view.segments[0].dtype == DType::i8) launch<Int8>(context, view, fresh);
  else launch<__half>(context, view, fresh);
}

}  // namespace fathom::cuda
