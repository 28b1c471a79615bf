// Attention of single tokens by clusters, several heads a key head: see attention_ways.h.
#include "backends/cuda/attention_groups.cuh"

#include "backends/cuda/attention_ways.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kOneStageKeys = 128, kStageKeys = 64;

template <class T, int kWidth>
void launch_groups(Context& context, const AttentionArgs& args, const AttentionView& view, const FreshRows& fresh) {
  auto* kernel = &attend_groups<T, kWidth>;
  AttentionView own = view;
  GroupRoom<kWidth> room;
  const auto make_room = [&] {
    const auto keys = static_cast<int>(divide_up(most_keys(args), own.parts)) + 1;
    room.stages = keys > kOneStageKeys ? 2 : 1;
    room.keys = room.stages > 1 ? kStageKeys : (keys + 15) / 16 * 16;
    context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(room.end())));
  };
  make_room();
  if (own.parts > 8 && clusters_at_once(context, kernel, dim3(kGroupThreads), room.end(), static_cast<unsigned>(own.parts)) < 1) {
    own.parts = 8;
    make_room();
  }
  const auto parts = static_cast<unsigned>(own.parts);
  ClusterLaunch launch(context, dim3(static_cast<unsigned>(own.sequences), static_cast<unsigned>(own.kv_heads), parts), dim3(kGroupThreads), room.end(), dim3(1, 1, parts));
  launch.go(context, kernel, own, fresh, room.keys, room.stages);
}
template <class T>
void launch_groups(Context& context, const AttentionArgs& args, const AttentionView& view, const FreshRows& fresh) {
  view.dv == 64 ? launch_groups<T, 64>(context, args, view, fresh) : launch_groups<T, 128>(context, args, view, fresh);
}

}  // namespace

void launch_attention_groups(Context& context, const AttentionArgs& args, const AttentionView& view, const FreshRows& fresh) {
  view.segments[0].dtype == DType::bf16 ? launch_groups<__nv_bfloat16>(context, args, view, fresh) : launch_groups<__half>(context, args, view, fresh);
  context.launched();
}

}  // namespace fathom::cuda
