// Launches of mixtures of experts for one or two tokens, by weight format.
#include "backends/cuda/experts_few.cuh"

namespace fathom::cuda {
void launch_few_experts_in(Context& context, const FewExperts& view, std::int64_t tokens) {
  constexpr unsigned kThreads = kWarpsABlock * kWarp;
  const dim3 grid(static_cast<unsigned>(divide_up(view.inner, kWarpsABlock * kRowsAWarp / 2)), static_cast<unsigned>(view.top_k), static_cast<unsigned>(tokens));
  with_format(view.format, [&](auto format) { launch_early(context, &few_experts_in<format()>, grid, kThreads, 0, view); });
}

void launch_few_experts_out(Context& context, const FewExperts& view, std::int64_t tokens) {
  const dim3 grid(static_cast<unsigned>(divide_up(view.h, kRowsAWarp)), static_cast<unsigned>(tokens));
  const unsigned threads = std::min<unsigned>(static_cast<unsigned>(view.top_k), kWarpsABlock) * kWarp;
  with_format(view.down_format, [&](auto format) { launch_early(context, &few_experts_out<format()>, grid, threads, 0, view); });
}

}  // namespace fathom::cuda
