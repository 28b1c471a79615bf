// Launches what follows latent attention of some tokens: see latents_leave.cuh.
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/latents_leave.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

template <class T>
void launch(Context& context, const LeaveView& view) {
  auto* kernel = &leave_latents<T>;
  context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLeaveBytes));
  ClusterLaunch launch(context, dim3(static_cast<unsigned>(view.attention.heads) * kLeaveBlocks), dim3(kLeaveThreads), kLeaveBytes, dim3(kLeaveBlocks));
  launch.go(context, kernel, view);
  context.launched();
}

}  // namespace

bool can_leave(const Context& context, const AttentionView& view) {
  const bool room = context.compute_capability >= 90 && kLeaveBytes <= static_cast<int>(context.shared_bytes);
  const bool rows = view.kv_heads == 1 && view.dv == kLeaveRank && view.tokens > kFewTokens && view.tokens <= kLeaveTokens;
  const bool aligned = reinterpret_cast<std::uintptr_t>(view.out.data) % 16 == 0 && view.out.strides[0] % 4 == 0 && view.out.strides[1] % 4 == 0;
  return room && rows && aligned && view.parts > 1 && !view.clustered && view.rounded_out == nullptr;
}

bool can_leave(const AttentionView& view, const Product& p) {
  const bool same_x = p.x == view.out.data && p.tokens == view.tokens && p.groups == view.heads && p.x_stride == view.out.strides[0] && p.x_step == view.out.strides[1];
  const bool shape = !p.by_column && is_half(p.weight.format) && p.weight.cols == kLeaveRank && p.rows % kLeaveRows == 0 && reinterpret_cast<std::uintptr_t>(p.weight.data) % 16 == 0;
  return same_x && shape && p.bias == nullptr && !p.accumulate && p.added == nullptr && p.activations == Activations::kAsTheyAre;
}

void launch_leave(Context& context, const AttentionView& attention, const Product& p) {
  LeaveView view{.attention = attention, .product = p};
  const std::int64_t width = p.groups * p.rows;
  const DType type = type_of_half(p.weight.format);
  context.rounded = {};
  if (p.out_step == p.rows && 2 * p.tokens * width <= static_cast<std::int64_t>(kRoundedBytes)) {
    view.rounded = context.rounded_data;
    context.rounded = {.x = p.out, .tokens = p.tokens, .groups = 1, .width = width, .stride = p.out_stride, .step = 0, .type = type};
    context.product_type = type;
  }
  if (type == DType::bf16) launch<__nv_bfloat16>(context, view);
  else launch<__half>(context, view);
}

}  // namespace fathom::cuda
