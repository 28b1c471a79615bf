// Family experts, routing: see route.cuh. Of a few tokens it waits for products that do not need it, beside which it runs (waiting.cuh).
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/experts_few.h"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kMostTokensBeside = 32;  // with more, products do not take it along

/// A block a token. Shared: route_bytes.
__global__ void __launch_bounds__(kWarp) route_tokens(const __grid_constant__ RouteView view) {
  extern __shared__ double shared[];
  after_previous();
  route_token(view, blockIdx.x, shared);
}

}  // namespace

void launch_route(Context& context, const RouteView& view, std::int64_t tokens) {
  launch_early(context, &route_tokens, static_cast<unsigned>(tokens), kWarp, route_bytes(view), view);
}

void CudaOps::route(const RouteArgs& args) {
  const Routing& routing = args.routing;
  const std::int64_t tokens = args.logits.dim(0), experts = args.logits.dim(1), top_k = routing.top_k;
  FATHOM_CHECK(experts == routing.experts && args.indices.shape == (Shape{tokens, top_k}) && args.weights.shape == args.indices.shape);
  FATHOM_CHECK(top_k <= experts && (!args.bias.defined() || args.bias.elements() == experts));
  FATHOM_CHECK(!args.table.defined() || (args.table.cols == top_k && args.table.format == WeightFormat::i64));
  FATHOM_CHECK(routing.groups <= 1 || (experts % routing.groups == 0 && routing.top_groups <= routing.groups &&
                                       top_k <= routing.top_groups * (experts / routing.groups)));
  const bool after = (tokens == 1 || (tokens > kFewTokens && tokens <= kMostTokensBeside)) && top_k <= kMostChoices && waiting_->makes(context_, args.logits);
  if (!after) launch_waiting(), waiting_->settle(context_);
  const RoundedActivations kept = context_.rounded;
  context_.rounded = {};
  if (tokens == 0) return;
  const auto apart = [&](const Tensor& x) {
    const auto *begin = reinterpret_cast<const float*>(x.data), *end = begin + (tokens - 1) * x.strides[0] + top_k, *last = kept.x + (kept.tokens - 1) * kept.stride + kept.width;
    return end <= kept.x || last <= begin;
  };
  if (kept.x != nullptr && kept.groups == 1 && apart(args.indices) && apart(args.weights)) context_.rounded = kept;  // the same x goes on to others
  RouteView view;
  view.logits = view_of<const float>(args.logits);
  view.bias = vector_of(args.bias);
  if (args.table.defined()) {
    view.table = reinterpret_cast<const std::int64_t*>(args.table.data);
    view.ids = view_of<const std::int32_t>(args.ids);
  }
  view.indices = view_of<std::int32_t>(args.indices);
  view.weights = view_of<float>(args.weights);
  view.scoring = routing.scoring;
  view.group_rank = routing.group_rank;
  view.experts = static_cast<int>(experts);
  view.top_k = static_cast<int>(top_k);
  view.groups = static_cast<int>(std::max<std::int64_t>(routing.groups, 1));
  view.top_groups = static_cast<int>(routing.top_groups);
  view.normalize = routing.normalize;
  view.scaling = routing.scaling;
  FATHOM_CHECK(route_bytes(view) <= 48 * 1024, "more experts than a router's shared memory holds");
  if (after) return waiting_->take_after(view, tokens);
  const bool some = tokens > kFewTokens && tokens <= kMostTokensBeside;
  if (some || (tokens <= kFewExpertTokens && view.top_k <= kMostChoices)) return waiting_->take(context_, view, tokens);
  launch_route(context_, view, tokens);
}

}  // namespace fathom::cuda
