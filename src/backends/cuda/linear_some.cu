// Launches of products of some tokens whose weights stream through Hopper's matrix units.
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/copy_maps.h"
#include "backends/cuda/linear_some.cuh"
#include "backends/cuda/many_rows.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr Bytes kBeside = kRoundedBytes / 2;
[[maybe_unused]] constexpr std::int64_t kMostElements = std::int64_t{1} << 23;  // of a weight: cuBLASLt is as fast with large ones, or faster

/// Rows by sixteens of which the second eight lie `mate` bytes behind the first, as boxes of 8 × 16 rows and 64 columns.
bool describe_weights(CUtensorMap& map, const Product& p, const std::byte* data, std::int64_t mate) {
  const auto stride = static_cast<cuuint64_t>(2 * p.weight.cols);
  const bool mates = mate > 0;
  const cuuint64_t dims[5] = {static_cast<cuuint64_t>(p.weight.cols), 8, 2, static_cast<cuuint64_t>(p.rows / (mates ? 8 : 16)), 1};
  const cuuint64_t strides[4] = {stride, mates ? static_cast<cuuint64_t>(mate) : 8 * stride, (mates ? 8 : 16) * stride, static_cast<cuuint64_t>(p.rows) * stride};
  const cuuint32_t box[5] = {kSomeDepth, 8, 2, kSomeRows / 16, 1}, one[5] = {1, 1, 1, 1, 1};
  const auto type = p.weight.format == WeightFormat::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode_tiled()(&map, type, 5, const_cast<std::byte*>(data), dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
bool describe_x(CUtensorMap& map, const Product& p, const std::byte* x) {
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(p.weight.cols), static_cast<cuuint64_t>(p.tokens)}, strides[1] = {static_cast<cuuint64_t>(2 * p.weight.cols)};
  const cuuint32_t box[2] = {kSomeDepth, kSomeTokens / 2}, one[2] = {1, 1};
  const auto type = p.weight.format == WeightFormat::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode_tiled()(&map, type, 2, const_cast<std::byte*>(x), dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/// Tiles of all products, and how many blocks share one.
void divide(const Context& context, SomeView& view) {
  const Together& all = view.all;
  view.tiles = all.gated ? static_cast<int>(divide_up(all.products[0].rows, kSomeRows)) : 0;
  for (int i = all.gated ? 2 : 0; i < all.count; ++i) {
    view.first_tile[i] = view.tiles;
    view.tiles += static_cast<int>(divide_up(all.products[i].rows, 2 * kSomeRows));
  }
  while (view.split < kMostSomeSplit && 4 * view.split * view.tiles <= context.multiprocessors && view.depths >= 4 * view.split) view.split *= 2;
}

/// The maps of all products.
void describe(SomeView& view) {
  Together& all = view.all;
  const Product &gate = all.products[0], &up = all.products[1];
  bool described = true;
  if (all.gated) {
    const std::int64_t mate = weights_of(up) - weights_of(gate);
    view.up_first = mate < 0;
    described = describe_weights(view.weights[0], gate, mate < 0 ? weights_of(up) : weights_of(gate), std::abs(mate));
  }
  for (int i = all.gated ? 2 : 0; i < all.count; ++i) described = described && describe_weights(view.weights[i], all.products[i], weights_of(all.products[i]), 0);
  FATHOM_CHECK(described, "weights that the copy engine does not take");
}

/// Bytes of shared memory that choosing, and finding the hits of `here` experts behind it, takes.
std::size_t route_room(const RouteView& route, int here) { return std::max(route_bytes(route), gather_bytes(here, kSomeTokens * route.top_k)); }

template <class T>
void launch(Context& context, SomeView& view) {
  auto* kernel = &multiply_some<T>;
  const std::size_t shared = kSomeBytes + (view.route_tokens > 0 ? route_room(view.route, view.gather.here) : 0);
  context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(context.shared_bytes)));
  const int clusters = view.split == 1 ? std::min(view.tiles, context.multiprocessors / 2) : view.tiles;
  const auto blocks = static_cast<unsigned>(2 * view.split);
  ClusterLaunch launch(context, dim3(blocks * static_cast<unsigned>(clusters)), dim3(kSomeThreads), shared, dim3(blocks));
  launch.go(context, kernel, view);
  context.launched();
}

}  // namespace

bool can_use_some([[maybe_unused]] const Context& context, [[maybe_unused]] const Product& p) {
#if defined(FATHOM_CUDA_90A)
  const bool device = context.compute_capability == 90 && kSomeBytes <= context.shared_bytes && encode_tiled() != nullptr;
  const bool shape = p.tokens > kFewTokens && p.tokens <= kSomeTokens && p.groups == 1 && !p.by_column && p.rows % 16 == 0 && p.weight.cols % 8 == 0 && p.weight.cols >= kSomeDepth;
  const bool sizes = p.rows * p.weight.cols <= kMostElements && p.rows < (1 << 24) && p.weight.cols < (1 << 18);
  return device && shape && sizes && is_half(p.weight.format) && reinterpret_cast<std::uintptr_t>(weights_of(p)) % 16 == 0;
#else
  return false;
#endif
}

bool can_route_beside_some(const Context& context, const RouteView& route, int here) { return kSomeBytes + route_room(route, here) <= context.shared_bytes; }

void launch_some(Context& context, const Together& all, const RouteView* route, const GatherView* gather) {
  const Product& p = all.products[0];
  SomeView view{};
  view.all = all;
  view.depths = static_cast<int>(divide_up(p.weight.cols, kSomeDepth));
  view.early = all.gated || all.count > 1 || p.added != nullptr;  // what reads much through the first cache must not begin before this launch leaves its shared memory
  if (route != nullptr) view.route = *route, view.route_tokens = static_cast<int>(p.tokens);
  if (gather != nullptr) view.gather = *gather, view.arrivals = context.arrivals;
  const std::byte* x = rounded_rows(context, p);
  FATHOM_CHECK(describe_x(view.x, p, x), "rows that the copy engine does not take");
  divide(context, view);
  describe(view);
  if (all.gated && 2 * p.tokens * p.rows <= static_cast<std::int64_t>(kBeside) && p.out_stride == p.rows) {
    const bool beside = context.rounded.beside;  // where x is
    context.rounded_before = context.rounded;
    view.rounded = context.rounded_data + (beside ? 0 : kBeside);
    context.rounded = {.x = p.out, .tokens = p.tokens, .groups = 1, .width = p.rows, .stride = p.rows, .step = 0, .type = context.rounded.type, .beside = !beside};
  }
  if (p.weight.format == WeightFormat::bf16) launch<__nv_bfloat16>(context, view);
  else launch<__half>(context, view);
  for (int i = 0; i < all.count; ++i) {
    const Product& own = all.products[i];
    if (own.out < p.x + (p.tokens - 1) * p.x_stride + p.weight.cols && p.x < own.out + (own.tokens - 1) * own.out_stride + own.rows && context.rounded.x == p.x) context.rounded = {};
  }
}

}  // namespace fathom::cuda
