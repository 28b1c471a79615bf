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
void launch_rows(Context& context, Together all) {
  const Product& p = all.products[0];
  const std::int64_t wanted = static_cast<std::int64_t>(context.multiprocessors) * 16;
  const int own = all.gated ? kRowsAWarp / 2 : kRowsAWarp, parts = all.gated ? 1 : all.count;
  std::int64_t row_groups = 0;
  for (int i = 0; i < parts; ++i) row_groups += divide_up(all.products[i].rows, own);
  int splits = 1;
  while (splits < kWarpsABlock && row_groups * p.groups * splits < wanted && p.weight.cols > splits * kWarp * 8) splits *= 2;
  unsigned blocks = 0;
  for (int i = 0; i < parts; ++i) {
    all.first_block[i] = blocks;
    blocks += static_cast<unsigned>(divide_up(divide_up(all.products[i].rows, own), kWarpsABlock / splits));
  }
  const dim3 grid(blocks, static_cast<unsigned>(p.groups));
  const auto launch = [&](auto tokens, auto normed, auto gate) {
    launch_early(context, &few_kernel<F, tokens(), normed(), gate()>, grid, kThreads, 0, all, splits);
  };
  const auto by_tokens = [&](auto gate) {
    constexpr std::false_type kThere{};
    if (all.norm.from != nullptr) launch(std::integral_constant<int, 1>{}, std::true_type{}, gate);
    else if (p.tokens == 1) launch(std::integral_constant<int, 1>{}, kThere, gate);
    else if (kOftenHere<F> && p.tokens == 2) launch(std::integral_constant<int, kOftenHere<F> ? 2 : 8>{}, kThere, gate);
    else if (kOftenHere<F> && p.tokens <= 4) launch(std::integral_constant<int, kOftenHere<F> ? 4 : 8>{}, kThere, gate);
    else launch(std::integral_constant<int, 8>{}, kThere, gate);
  };
  if (all.gated) by_tokens(std::true_type{});
  else by_tokens(std::false_type{});
}

}  // namespace

bool can_gate_last(const Context& context, const Together& all) { return can_stream(context, all); }

void launch_together(Context& context, const Together& all) {
  // One token's products with 16-bit weights wait for memory alone, unless they also norm x and gate: multiply-adds do.
  const bool busy = all.products[0].tokens > 1 || (all.gated && all.norm.from != nullptr);
  if ((busy || all.gate > 0 || all.products[0].weight.format != WeightFormat::bf16) && can_stream(context, all)) return launch_stream(context, all);
  if (busy && can_use_mma(context, all)) return launch_few_mma(context, all);
  with_format(all.products[0].weight.format, [&](auto format) { launch_rows<format()>(context, all); });
}

void launch_few(Context& context, const Product& p) {
  if (!p.by_column) return launch_together(context, {.products = {p}, .count = 1});
  const dim3 grid(static_cast<unsigned>(divide_up(p.weight.cols, kColumnsABlock)), static_cast<unsigned>(p.groups), static_cast<unsigned>(p.tokens));
  with_format(p.weight.format, [&](auto format) { launch_early(context, &few_columns_kernel<format()>, grid, kThreads, 0, p); });
}

}  // namespace fathom::cuda
