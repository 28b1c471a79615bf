// Launches of products of few tokens, by weight format.
#include "backends/cuda/linear_mma.cuh"
#include "backends/cuda/linear_stream.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr unsigned kThreads = kWarpsABlock * kWarp;
/// Formats whose products of a few tokens tensor cores do not take but for odd shapes (linear_stream.cu, linear_mma.cu): worth kernels of two and four tokens.
template <WeightFormat F>
constexpr bool kOftenHere = F == WeightFormat::f32 || F == WeightFormat::f16;

/// All of one shape but for their rows.
template <WeightFormat F>
void launch_rows(Context& context, Together all, const RouteView* route) {
  const Product& p = all.products[0];
  const std::int64_t wanted = static_cast<std::int64_t>(context.multiprocessors) * 16;
  const int own = all.gated ? kRowsAWarp / 2 : kRowsAWarp, parts = all.gated ? 1 : all.count;
  const bool third = all.gated && all.count == 3;
  std::int64_t row_groups = third ? divide_up(all.products[2].rows, kRowsAWarp) : 0;
  for (int i = 0; i < parts; ++i) row_groups += divide_up(all.products[i].rows, own);
  int splits = 1;
  while (splits < kWarpsABlock && row_groups * p.groups * splits < wanted && p.weight.cols > splits * kWarp * 8) splits *= 2;
  unsigned blocks = route != nullptr ? 1 : 0;  // the first chooses
  const auto place = [&](int i, int rows) {
    all.first_block[i] = blocks;
    blocks += static_cast<unsigned>(divide_up(divide_up(all.products[i].rows, rows), kWarpsABlock / splits));
  };
  if (third) place(2, kRowsAWarp);
  for (int i = 0; i < parts; ++i) place(i, own);
  const dim3 grid(blocks, static_cast<unsigned>(p.groups));
  const auto launch = [&](auto tokens, auto normed, auto gate) {
    launch_early(context, &few_kernel<F, tokens(), normed(), gate()>, grid, kThreads, 0, all, splits, RouteView{});
  };
  const auto by_tokens = [&](auto gate) {
    constexpr std::false_type kThere{};
    if (all.norm.from != nullptr) launch(std::integral_constant<int, 1>{}, std::true_type{}, gate);
    else if (p.tokens == 1) launch(std::integral_constant<int, 1>{}, kThere, gate);
    else if (kOftenHere<F> && p.tokens == 2) launch(std::integral_constant<int, kOftenHere<F> ? 2 : 8>{}, kThere, gate);
    else if (kOftenHere<F> && p.tokens <= 4) launch(std::integral_constant<int, kOftenHere<F> ? 4 : 8>{}, kThere, gate);
    else launch(std::integral_constant<int, 8>{}, kThere, gate);
  };
  if constexpr (F == WeightFormat::bf16)
    if (route != nullptr) return launch_early(context, &few_kernel<F, 1, false, false, true>, dim3(blocks), kThreads, route_bytes(*route), all, splits, *route);
  if (all.gated) by_tokens(std::true_type{});
  else by_tokens(std::false_type{});
}

}  // namespace

bool can_route_beside(const Together& all) {
  const Product& p = all.products[0];
  return p.weight.format == WeightFormat::bf16 && p.tokens == 1 && p.groups == 1 && all.norm.from == nullptr && !all.gated;
}

void launch_together(Context& context, const Together& all, const RouteView* route, const GatherView* gather) {
  close_stages(context);  // these may be launched by the same kernels, with other room in shared memory
  if (all.products[0].tokens > kFewTokens) return launch_some(context, all, route, gather);
  if (can_stream(context, all)) return launch_stream(context, all);
  // One token's products wait for memory alone, unless their warps also norm x and gate.
  const bool busy = all.products[0].tokens > 1 || (all.gated && all.norm.from != nullptr && all.count == 2);
  if (busy && can_use_mma(context, all)) return launch_few_mma(context, all);
  with_format(all.products[0].weight.format, [&](auto format) { launch_rows<format()>(context, all, route); });
}

void launch_few(Context& context, const Product& p) {
  if (!p.by_column) return launch_together(context, {.products = {p}, .count = 1});
  const dim3 grid(static_cast<unsigned>(divide_up(p.weight.cols, kColumnsABlock)), static_cast<unsigned>(p.groups), static_cast<unsigned>(p.tokens));
  with_format(p.weight.format, [&](auto format) { launch_early(context, &few_columns_kernel<format()>, grid, kThreads, 0, p); });
}

}  // namespace fathom::cuda
