// Attention of single tokens by clusters, several heads a key head: see attention_ways.h.
#include "backends/cuda/attention_groups.cuh"

#include "backends/cuda/attention_ways.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kLeastStageKeys = 64, kMostStageKeys = 128, kMostOneStageKeys = 256;
constexpr std::size_t kBesideRooms = 1024;  // that a block takes beside what it asks for

/// Room for all of a block's keys, if so many blocks then fit on the multiprocessors at once, or for as many as fit twice, in turn.
template <int kWidth>
GroupRoom<kWidth> room_for(const Context& context, std::int64_t blocks, int keys) {
  const std::int64_t beside = std::min<std::int64_t>(divide_up(blocks, context.multiprocessors), 2);
  const auto most = static_cast<unsigned>(context.shared_bytes / static_cast<std::size_t>(beside) - kBesideRooms);
  GroupRoom<kWidth> room;
  room.stages = 1, room.keys = static_cast<int>(divide_up(keys, 16)) * 16;
  if (room.keys <= kMostOneStageKeys && room.end() <= most) return room;
  room.stages = 2, room.keys = kMostStageKeys;
  while (room.keys > kLeastStageKeys && room.end() > most) room.keys -= 16;
  return room;
}

template <class T, int kWidth>
void launch_groups(Context& context, const AttentionArgs& args, const AttentionView& view, const FreshRows& fresh) {
  auto* kernel = &attend_groups<T, kWidth>;
  AttentionView own = view;
  GroupRoom<kWidth> room;
  const auto make_room = [&] {
    const std::int64_t blocks = static_cast<std::int64_t>(own.sequences) * own.kv_heads * own.parts;
    room = room_for<kWidth>(context, blocks, static_cast<int>(divide_up(most_keys(args), own.parts)) + 1);
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
  if (view.segments[0].dtype == DType::bf16) launch_groups<__nv_bfloat16>(context, args, view, fresh);
  else if (view.segments[0].dtype == DType::f8e4m3) launch_groups<E4m3>(context, args, view, fresh);
  else if (view.segments[0].dtype == DType::i8) launch_groups<Int8>(context, args, view, fresh);
  else launch_groups<__half>(context, args, view, fresh);
  context.launched();
}

}  // namespace fathom::cuda
