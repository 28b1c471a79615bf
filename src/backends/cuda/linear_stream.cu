// Launches of products of few tokens whose weights stream by.
#include "backends/cuda/linear_stream.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kTwoHere = 112 * 1024;  // shared memory of a block beside which the next launch's takes its place

bool is_streamed(WeightFormat format) {
  return format == WeightFormat::bf16 || format == WeightFormat::fp8_block128 || format == WeightFormat::fp8_row || format == WeightFormat::int8_row || is_int4(format);
}
bool is_whole(WeightFormat format) { return format == WeightFormat::int8_row || is_int4(format); }

int parts_of(const Product& p, std::int64_t tokens) {
  if (is_whole(p.weight.format)) return kDigits;
  return tokens <= kFewTokens ? 2 : 1;
}
int tiles_of(int columns) {
  const int tiles = static_cast<int>(divide_up(columns, 8));
  return tiles <= 3 ? tiles : tiles <= 4 ? 4 : 8;
}

/// Calls use(format, tiles) as constants; false: there is no such kernel.
template <class Use>
bool with_kernel(WeightFormat format, int tiles, Use use) {
  const auto go = [&](auto f, auto n) {
    use(f, n);
    return true;
  };
  constexpr std::integral_constant<int, 1> kOne{};
  constexpr std::integral_constant<int, 2> kTwo{};
  constexpr std::integral_constant<int, 3> kThree{};
  if (format == WeightFormat::bf16) {
    constexpr std::integral_constant<WeightFormat, WeightFormat::bf16> kFormat{};
    if (tiles == 1) return go(kFormat, kOne);
    if (tiles == 2) return go(kFormat, kTwo);
    if (tiles <= 4) return go(kFormat, std::integral_constant<int, 4>{});
    return tiles == 8 && go(kFormat, std::integral_constant<int, 8>{});
  }
  if (!is_whole(format)) {
    constexpr std::integral_constant<WeightFormat, WeightFormat::fp8_block128> kFormat{};
    return tiles == 1 ? go(kFormat, kOne) : tiles == 2 && go(kFormat, kTwo);
  }
  const auto whole = [&](auto kFormat) { return tiles == 1 ? go(kFormat, kOne) : tiles == 2 ? go(kFormat, kTwo) : tiles == 3 && go(kFormat, kThree); };
  if (format == WeightFormat::int8_row) return whole(std::integral_constant<WeightFormat, WeightFormat::int8_row>{});
  return whole(std::integral_constant<WeightFormat, WeightFormat::int4_group128>{});
}

StreamView view_of(const Together& all, std::int64_t tokens, int blocks) {
  const Product& p = all.products[0];
  StreamView view;
  view.all = all;
  view.tokens = static_cast<int>(tokens);
  view.parts = parts_of(p, tokens);
  view.columns = view.tokens * view.parts;
  view.blocks = blocks;
  view.row_tiles = blocks > 1 ? 2 : 1;
  const std::int64_t row_bytes = p.weight.cols * (p.weight.format == WeightFormat::bf16 ? 4 : is_int4(p.weight.format) ? 1 : 2) / 2;
  view.own = static_cast<int>(divide_up(divide_up(row_bytes, kStretch), blocks));
  return view;
}
int shared_of(const StreamView& view) {
  int bytes = 0;
  const bool there = with_kernel(view.all.products[0].weight.format, tiles_of(view.columns), [&](auto format, auto tiles) { bytes = stream_room<format(), tiles()>(view).all; });
  return there ? bytes : 1 << 30;
}

/// The fewest blocks of a cluster that x of these tokens fits, so that the next launch finds room where it can; 0: none.
int blocks_for(const Context& context, const Together& all, std::int64_t tokens) {
  const int most = context.compute_capability >= 90 && all.products[0].weight.format == WeightFormat::bf16 && all.norm.from == nullptr ? kMostClustered : 1;
  const int limit = static_cast<int>(context.shared_bytes) - 1024;
  for (const int bytes : {kTwoHere, limit})
    for (int blocks = 1; blocks <= most; blocks *= 2)
      if (shared_of(view_of(all, tokens, blocks)) <= std::min(bytes, limit)) return blocks;
  return 0;
}

template <WeightFormat F, int kTiles>
void launch(Context& context, StreamView view) {
  const int last = view.all.gated ? view.all.gate : view.all.count - 1;
  for (int i = 0; i <= last; ++i) {
    view.all.first_block[i] = view.units;
    view.units += static_cast<unsigned>(divide_up(view.all.products[i].rows, (view.all.gated && i == last ? 8 : 16) * view.row_tiles));
  }
  if (view.units == 0) return;
  const int shared = stream_room<F, kTiles>(view).all;
  auto* kernel = &stream_kernel<F, kTiles>;
  context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto bytes = static_cast<std::size_t>(shared);
  const auto blocks = static_cast<unsigned>(view.blocks);
  int clusters = context.multiprocessors;  // one block each: the next launch's take the rest
  if (blocks > 1) clusters = std::clamp(clusters_at_once(context, kernel, dim3(kStreamedThreads), bytes, blocks), 1, context.multiprocessors / view.blocks);
  ClusterLaunch launch(context, dim3(std::min(view.units, static_cast<unsigned>(clusters)) * blocks), dim3(kStreamedThreads), bytes, dim3(blocks));
  launch.go(context, kernel, view);
}

}  // namespace

bool can_stream(const Context& context, const Together& all) {
  const Product& p = all.products[0];
  const WeightFormat format = p.weight.format;
  if (!is_streamed(format) || p.groups != 1 || p.by_column || p.tokens < 1 || p.tokens > kMostStreamedTokens || p.weight.cols > (1 << 20)) return false;
  if (p.tokens > kFewTokens && (format != WeightFormat::bf16 || context.compute_capability < 90)) return false;
  if (p.weight.cols % (is_int4(format) ? 128 : format == WeightFormat::bf16 ? 8 : 16) != 0 || p.weight.cols == 0) return false;
  for (int i = 0; i < all.count; ++i) {
    const Product& own = all.products[i];
    if (reinterpret_cast<std::uintptr_t>(own.weight.data) % 16 != 0 || reinterpret_cast<std::uintptr_t>(own.weight.scales) % 4 != 0 || own.first_row % 8 != 0 || own.rows > (1 << 24)) return false;
  }
  return blocks_for(context, all, p.tokens <= kFewTokens ? 1 : p.tokens) > 0;
}

bool can_stream_many(const Context& context, const Product& p) {
  return p.tokens > kFewTokens && can_stream(context, {.products = {p}, .count = 1});
}

void launch_stream(Context& context, const Together& all) {
  std::int64_t tokens = all.products[0].tokens;
  while (blocks_for(context, all, tokens) == 0) --tokens;  // as many at a time as fit; can_stream: one does
  Together rest = all;
  for (std::int64_t first = 0; first < all.products[0].tokens; first += tokens) {
    const std::int64_t here = std::min(tokens, all.products[0].tokens - first);
    for (int i = 0; i < all.count; ++i) {
      const Product& whole = all.products[i];
      Product& p = rest.products[i];
      p.tokens = here;
      p.x = whole.x + first * whole.x_stride;
      p.out = whole.out + first * whole.out_stride;
      if (whole.added != nullptr) p.added = whole.added + first * whole.added_stride;
    }
    const StreamView view = view_of(rest, here, blocks_for(context, rest, here));
    with_kernel(rest.products[0].weight.format, tiles_of(view.columns), [&](auto format, auto tiles) { launch<format(), tiles()>(context, view); });
  }
}

}  // namespace fathom::cuda
