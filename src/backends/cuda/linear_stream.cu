// Launches of products of few tokens whose weights stream by.
#include "backends/cuda/linear_stream.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kMostSlots = 16;

bool is_streamed(WeightFormat format) {
  return format == WeightFormat::fp8_block128 || format == WeightFormat::fp8_row || format == WeightFormat::int8_row || is_int4(format);
}
bool is_whole(WeightFormat format) { return format == WeightFormat::int8_row || is_int4(format); }

int parts_of(const Product& p) { return is_whole(p.weight.format) ? kDigits : 2; }
int tiles_of(int columns) { return static_cast<int>(divide_up(columns, 8)); }

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
  if (!is_whole(format)) {
    constexpr std::integral_constant<WeightFormat, WeightFormat::fp8_block128> kFormat{};
    return tiles == 1 ? go(kFormat, kOne) : tiles == 2 && go(kFormat, kTwo);
  }
  const auto whole = [&](auto kFormat) { return tiles == 1 ? go(kFormat, kOne) : tiles == 2 ? go(kFormat, kTwo) : tiles == 3 && go(kFormat, kThree); };
  if (format == WeightFormat::int8_row) return whole(std::integral_constant<WeightFormat, WeightFormat::int8_row>{});
  return whole(std::integral_constant<WeightFormat, WeightFormat::int4_group128>{});
}

/// The most warps to a unit whose shares of its stretches differ little.
int team_of(int stretches) {
  int team = kStreamedWarps;
  while (team > 1 && stretches * 7 < divide_up(stretches, team) * team * 6) team /= 2;
  return team;
}

/// Units of all products; `view` may have their first_block.
unsigned deal_units(Together& all) {
  const int last = all.gated ? 0 : all.count - 1;
  unsigned units = 0;
  for (int i = 0; i <= last; ++i) {
    all.first_block[i] = units;
    units += static_cast<unsigned>(divide_up(all.products[i].rows, all.gated && i == last ? 8 : 16));
  }
  return units;
}

int shared_of(const StreamView& view) {
  int bytes = 0;
  const bool there = with_kernel(view.all.products[0].weight.format, tiles_of(view.columns), [&](auto format, auto tiles) { bytes = stream_room<format(), tiles()>(view).all; });
  return there ? bytes : 1 << 30;
}

/// Takes slots away until a block fits. False: it does not.
bool fit(const Context& context, StreamView& view) {
  while (view.slots > 0 && shared_of(view) > static_cast<int>(context.shared_bytes) - 1024) --view.slots;
  return view.slots > 0;
}
/// The most tokens at a time, up to those of `all`, whose x fits a block; 0: none.
std::int64_t most_tokens(const Context& context, const Together& all) {
  for (std::int64_t tokens = all.products[0].tokens; tokens > 0; --tokens) {
    StreamView view = stream_view(context, all, tokens);
    if (fit(context, view)) return tokens;
  }
  return 0;
}

template <WeightFormat F, int kTiles>
void launch(Context& context, StreamView view) {
  if (view.units == 0) return;
  const int shared = stream_room<F, kTiles>(view).all;
  auto* kernel = &stream_kernel<F, kTiles>;
  context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto most = static_cast<unsigned>(divide_up(view.units, kStreamedWarps / view.team));
  launch_early(context, kernel, dim3(std::min(most, static_cast<unsigned>(context.multiprocessors))), dim3(kStreamedThreads), static_cast<std::size_t>(shared), view);
}

}  // namespace

StreamView stream_view(const Context& context, const Together& all, std::int64_t tokens) {
  const Product& p = all.products[0];
  StreamView view;
  view.all = all;
  view.units = deal_units(view.all);
  view.tokens = static_cast<int>(tokens);
  view.parts = parts_of(p);
  view.columns = view.tokens * view.parts;
  view.stretches = static_cast<int>(divide_up(static_cast<std::int64_t>(weight_row_bytes(p.weight.format, p.weight.cols)), kStretch));
  view.team = team_of(view.stretches);
  view.slots = static_cast<int>(std::min<std::int64_t>(divide_up(view.units, context.multiprocessors * (kStreamedWarps / view.team)), kMostSlots));
  return view;
}

bool rows_can_be_copied(const Together& all) {
  const WeightView& weight = all.products[0].weight;
  const bool half = weight.format == WeightFormat::bf16;
  if (weight.cols == 0 || weight.cols > (1 << 20) || weight.cols % (is_int4(weight.format) ? 128 : half ? 8 : 16) != 0) return false;
  for (int i = 0; i < all.count; ++i) {
    const Product& own = all.products[i];
    if (reinterpret_cast<std::uintptr_t>(own.weight.data) % 16 != 0 || own.rows > (1 << 24)) return false;
    if (!half && (reinterpret_cast<std::uintptr_t>(own.weight.scales) % 4 != 0 || own.first_row % 8 != 0)) return false;
  }
  return true;
}

bool can_stream(const Context& context, const Together& all) {
  const Product& p = all.products[0];
  const WeightFormat format = p.weight.format;
  if (!is_streamed(format) || p.groups != 1 || p.by_column || p.tokens < 1 || p.tokens > kFewTokens || !rows_can_be_copied(all)) return false;
  StreamView one = stream_view(context, all, 1);
  return fit(context, one);
}

void launch_stream(Context& context, const Together& all) {
  const std::int64_t tokens = most_tokens(context, all);
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
    StreamView view = stream_view(context, rest, here);
    fit(context, view);
    with_kernel(rest.products[0].weight.format, tiles_of(view.columns), [&](auto format, auto tiles) { launch<format(), tiles()>(context, view); });
  }
}

}  // namespace fathom::cuda
