// Launches of mixtures of experts for one or two tokens, by weight format.
#include "backends/cuda/experts_few.cuh"

namespace fathom::cuda {
void launch_few_experts(Context& context, const FewExperts& view, std::int64_t tokens) {
  constexpr unsigned kThreads = kWarpsABlock * kWarp;
  const auto count = static_cast<unsigned>(tokens);
  const dim3 in(static_cast<unsigned>(divide_up(view.inner, kWarpsABlock * kRowsAWarp / 2)), static_cast<unsigned>(view.top_k), count);
  const dim3 out(static_cast<unsigned>(divide_up(view.h, kRowsAWarp)), count);
  with_format(view.format, [&](auto format) { launch_early(context, &few_experts_in<format()>, in, kThreads, 0, view); });
  with_format(view.down_format, [&](auto format) { launch_early(context, &few_experts_out<format()>, out, std::min<unsigned>(static_cast<unsigned>(view.top_k) * kWarp, kThreads), 0, view); });
}

}  // namespace fathom::cuda
