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
  const int last = all.gated ? all.gate : all.count - 1;
  const auto groups_of = [&](int i) { return divide_up(all.products[i].rows, all.gated && i == last ? kRowsAWarp / 2 : kRowsAWarp); };
  std::int64_t row_groups = 0;
  for (int i = 0; i <= last; ++i) row_groups += groups_of(i);
  int splits = 1;
  while (splits < kWarpsABlock && row_groups * p.groups * splits < wanted && p.weight.cols > splits * kWarp * 8) splits *= 2;
  unsigned blocks = 0;
  for (int i = 0; i <= last; ++i) {
    all.first_block[i] = blocks;
    blocks += static_cast<unsigned>(divide_up(groups_of(i), kWarpsABlock / splits));
  }
  const Beside beside{.splits = splits, .routes = route != nullptr, .route = route != nullptr ? *route : RouteView{}};
  const dim3 grid(blocks + (beside.routes ? 1 : 0), static_cast<unsigned>(p.groups));
  const std::size_t shared = beside.routes ? route_bytes(*route) : 0;
  const auto launch = [&](auto tokens, auto normed) { launch_early(context, &few_kernel<F, tokens(), normed()>, grid, kThreads, shared, all, beside); };
  constexpr std::false_type kThere{};
  if (all.norm.from != nullptr) launch(std::integral_constant<int, 1>{}, std::true_type{});
  else if (p.tokens == 1) launch(std::integral_constant<int, 1>{}, kThere);
  else if (kOftenHere<F> && p.tokens == 2) launch(std::integral_constant<int, kOftenHere<F> ? 2 : 8>{}, kThere);
  else if (kOftenHere<F> && p.tokens <= 4) launch(std::integral_constant<int, kOftenHere<F> ? 4 : 8>{}, kThere);
  else launch(std::integral_constant<int, 8>{}, kThere);
}

}  // namespace

bool can_route_beside(const Together& all) {
  const Product& p = all.products[0];
  return p.weight.format == WeightFormat::bf16 && p.tokens == 1 && p.groups == 1 && all.norm.from == nullptr && !all.gated;
}

void launch_together(Context& context, const Together& all, const RouteView* route) {
  if (can_stream(context, all)) return launch_stream(context, all);
  // One token's products with 16-bit weights wait for memory alone, unless they also norm x and gate: multiply-adds do.
  const bool busy = all.products[0].tokens > 1 || (all.gated && all.norm.from != nullptr);
  if (busy && can_use_mma(context, all)) return launch_few_mma(context, all);
  with_format(all.products[0].weight.format, [&](auto format) { launch_rows<format()>(context, all, route); });
}

void launch_few(Context& context, const Product& p) {
  if (!p.by_column) return launch_together(context, {.products = {p}, .count = 1});
  const dim3 grid(static_cast<unsigned>(divide_up(p.weight.cols, kColumnsABlock)), static_cast<unsigned>(p.groups), static_cast<unsigned>(p.tokens));
  with_format(p.weight.format, [&](auto format) { launch_early(context, &few_columns_kernel<format()>, grid, kThreads, 0, p); });
}

}  // namespace fathom::cuda
