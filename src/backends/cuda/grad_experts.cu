// Family experts backwards. Hits (pairs of a token and an expert that is here) lie sorted by expert, as forward gathers them. With a = gate x,
// b = up x, u = downᵀ dout and w the token's weight: dw = gated(a, b) · u; da and db are w · u times the slopes of the gate; dx += gateᵀ da +
// upᵀ db; the matrices get da xᵀ, db xᵀ and dout (w · gated)ᵀ, each expert by the blocks that own it. Routing's backward is here too.
#include <vector>

#include "backends/cuda/experts_mma.h"
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"
#include "backends/cuda/route.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

// ---------------------------------------------------------------- routing

struct RouteGradView {
  RouteView route;  // scoring and sizes
  View<const float> logits, dweights;
  View<const std::int32_t> indices;
  View<float> dlogits;
};

/// A warp a token; scores in f64, as forward has them.
__global__ void __launch_bounds__(kWarp) route_backward_kernel(const __grid_constant__ RouteGradView view) {
  extern __shared__ double route_scores[];  // [experts], and what they change by
  double *scores = route_scores, *changes = route_scores + view.route.experts;
  const int lane = static_cast<int>(threadIdx.x), experts = view.route.experts, top_k = view.route.top_k;
  for (std::int64_t t = blockIdx.x; t < view.logits.dims[0]; t += gridDim.x) {
    score_experts(view.route, view.logits.at(t), scores);
    for (int e = lane; e < experts; e += kWarp) changes[e] = 0;
    __syncwarp();
    if (lane == 0) {
      double sum = 1e-20, along = 0;  // weights = scaling · score / sum
      for (int j = 0; j < top_k; ++j) {
        const double score = scores[view.indices.at(t)[j]];
        sum += score, along += view.dweights.at(t)[j] * score;
      }
      for (int j = 0; j < top_k; ++j) {
        const double change = view.dweights.at(t)[j];
        changes[view.indices.at(t)[j]] += view.route.scaling * (view.route.normalize ? (change - along / sum) / sum : change);
      }
    }
    __syncwarp();
    double mean = 0;
    for (int e = lane; e < experts; e += kWarp) mean += changes[e] * scores[e];
    mean = warp_sum(mean);
    for (int e = lane; e < experts; e += kWarp) {
      const double s = scores[e], ds = changes[e];
      double change = 0;
      switch (view.route.scoring) {
        case Scoring::kSoftmax: change = s * (ds - mean); break;
        case Scoring::kSigmoid: change = s * (1.0 - s) * ds; break;
        case Scoring::kSqrtSoftplus: change = ds == 0.0 ? 0.0 : 1.0 / (1.0 + exp(-static_cast<double>(view.logits.at(t)[e]))) / (2.0 * s) * ds; break;
      }
      view.dlogits.at(t)[e] += static_cast<float>(change);
    }
    __syncwarp();
  }
}

// ---------------------------------------------------------------- experts

constexpr int kHitThreads = 256;

struct HitSlopesView {
  const std::int32_t* hit = nullptr;  // [tokens · top_k]
  View<const float> weights;          // [tokens, top_k]
  View<float> dweights;
  std::int64_t inner = 0;
  int top_k = 1;
  float limit = 0;
  float *a = nullptr, *b = nullptr, *u = nullptr;  // [hits, inner]: become da, db and weight · gated
};

/// A block a pair.
__global__ void __launch_bounds__(kHitThreads) hit_slopes(const __grid_constant__ HitSlopesView view) {
  __shared__ BlockRoom room;
  const std::int64_t pair = blockIdx.x, token = pair / view.top_k, choice = pair % view.top_k;
  const std::int32_t hit = view.hit[pair];
  if (hit < 0) return;
  const float weight = view.weights.at(token)[choice];
  float *a = view.a + hit * view.inner, *b = view.b + hit * view.inner, *u = view.u + hit * view.inner, along = 0.0f;
  for (std::int64_t i = threadIdx.x; i < view.inner; i += kHitThreads) {
    const float made = gated(a[i], b[i], view.limit), change = weight * u[i];
    const GatedSlopes slopes = gated_slopes(a[i], b[i], view.limit);
    along += made * u[i];
    a[i] = change * slopes.gate;
    b[i] = change * slopes.up;
    u[i] = weight * made;
  }
  along = block_sum(along, room);
  if (threadIdx.x == 0 && view.dweights.defined()) view.dweights.at(token)[choice] += along;
}

/// dx[token] += the sum of its hits' rows, choices ascending. Grid: tokens, blocks of columns.
__global__ void __launch_bounds__(kHitThreads) add_hits(const std::int32_t* hit, int top_k, const float* y, View<float> dx) {
  const std::int64_t token = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y) * kHitThreads + threadIdx.x, h = dx.dims[1];
  if (column >= h) return;
  float sum = 0.0f;
  for (int j = 0; j < top_k; ++j)
    if (const std::int32_t own = hit[token * top_k + j]; own >= 0) sum += y[own * h + column];
  dx.at(token)[column] += sum;
}

struct GradMatrices { MatrixOfExperts gate, up, down, dgate, dup, ddown; };

MatrixOfExperts gradients_of(Context& context, std::span<const Tensor> gradients, std::int64_t elements) {
  if (gradients.empty()) return {};
  std::vector<Weight> matrices;
  for (const Tensor& gradient : gradients) {
    Weight& matrix = matrices.emplace_back();
    matrix.data = reinterpret_cast<const std::byte*>(parameter_of(gradient, elements));
  }
  return matrix_of(context, matrices);
}

/// Hits of some tokens, and products with their experts.
class HitProducts {
 public:
  HitProducts(Context& context, const GatherView& gather) : context_(context), gather_(gather) {}

  /// out [hits, columns] (+)= rows of the hits (`of_tokens`: their tokens' rows) · the expert's matrix: its rows or its columns are summed over.
  void multiply(const float* rows, std::int64_t stride, bool of_tokens, const MatrixOfExperts& matrix, const Weight& like, bool over_rows, float* out, bool accumulate) {
    GradProduct p = product(GradProduct::Hits::kRows);
    p.left.data = rows;
    p.left.index = stride;
    p.left.depth = 1;
    p.left.rows = of_tokens ? gather_.token : nullptr;
    p.right.weight = view_of(like);
    p.right.depth_is_row = over_rows;
    p.right.of_expert = true;
    p.right.experts = matrix;
    p.rows = gather_.pairs;
    p.columns = over_rows ? like.cols : like.rows;
    p.depth = over_rows ? like.rows : like.cols;
    p.out = out;
    p.out_stride = p.columns;
    p.accumulate = accumulate;
    launch_grad_product(context_, p);
  }
  /// The expert's matrix [rows, columns] += the sum over its hits of left · right, either of which may be a token's.
  void add(const float* left, std::int64_t left_stride, bool left_of_tokens, const float* right, std::int64_t right_stride, bool right_of_tokens, std::int64_t rows, std::int64_t columns,
           const MatrixOfExperts& to) {
    GradProduct p = product(GradProduct::Hits::kDepth);
    p.left.data = left;
    p.left.index = 1;
    p.left.depth = left_stride;
    p.left.rows = left_of_tokens ? gather_.token : nullptr;
    p.right.data = right;
    p.right.index = 1;
    p.right.depth = right_stride;
    p.right.rows = right_of_tokens ? gather_.token : nullptr;
    p.rows = rows;
    p.columns = p.out_stride = columns;
    p.depth = gather_.pairs;
    p.out_experts = to;
    launch_grad_product(context_, p);
  }

 private:
  GradProduct product(GradProduct::Hits hits) const {
    GradProduct p;
    p.hits = hits;
    p.runs = gather_.runs;
    p.most_runs = gather_.most_runs;
    p.here = gather_.here;
    return p;
  }
  Context& context_;
  const GatherView& gather_;
};

GatherView gather(Context& context, const ExpertsArgs& f, const Tensor& indices) {
  const std::int64_t pairs = indices.elements(), here = std::ssize(f.gate);
  GatherView view;
  view.indices = view_of<const std::int32_t>(indices);
  view.pairs = static_cast<int>(pairs);
  view.top_k = static_cast<int>(indices.dim(1));
  view.first_expert = static_cast<int>(f.first_expert);
  view.here = static_cast<int>(here);
  view.run = kGradTile;
  view.most_runs = static_cast<int>(std::min(pairs, here + pairs / kGradTile));
  view.runs = context.workspace.take<RunOfExpert>(view.most_runs);
  view.token = context.workspace.take<std::int32_t>(pairs);
  view.hit = context.workspace.take<std::int32_t>(pairs);
  launch_gather(context, view);
  return view;
}

/// Tokens [first, first + count).
void run_tokens_backward(Context& context, const ExpertsGrad& args, const GradMatrices& matrices, std::int64_t first, std::int64_t count) {
  const ExpertsArgs& f = args.f;
  const std::int64_t h = f.x.dim(1), inner = f.gate[0].rows, top_k = f.indices.dim(1), pairs = count * top_k;
  const Tensor x = f.x.rows(first, count), dout = args.dout.rows(first, count);
  const GatherView hits = gather(context, f, f.indices.rows(first, count));
  float *const a = context.workspace.take<float>(pairs * inner), *const b = context.workspace.take<float>(pairs * inner), *const u = context.workspace.take<float>(pairs * inner);
  HitProducts products(context, hits);
  products.multiply(x.as<float>(), x.strides[0], true, matrices.gate, f.gate[0], false, a, false);
  products.multiply(x.as<float>(), x.strides[0], true, matrices.up, f.up[0], false, b, false);
  products.multiply(dout.as<float>(), dout.strides[0], true, matrices.down, f.down[0], true, u, false);
  HitSlopesView slopes{.hit = hits.hit, .weights = view_of<const float>(f.weights.rows(first, count)), .inner = inner, .top_k = static_cast<int>(top_k),
                       .limit = static_cast<float>(f.limit), .a = a, .b = b, .u = u};
  if (args.dweights.defined()) slopes.dweights = view_of<float>(args.dweights.rows(first, count));
  hit_slopes<<<static_cast<unsigned>(pairs), kHitThreads, 0, context.stream>>>(slopes);
  context.launched();
  if (args.dx.defined()) {
    float* const y = context.workspace.take<float>(pairs * h);
    products.multiply(a, inner, false, matrices.gate, f.gate[0], true, y, false);
    products.multiply(b, inner, false, matrices.up, f.up[0], true, y, true);
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(divide_up(h, kHitThreads)));
    add_hits<<<grid, kHitThreads, 0, context.stream>>>(hits.hit, static_cast<int>(top_k), y, view_of<float>(args.dx.rows(first, count)));
    context.launched();
  }
  if (!args.dgate.empty()) products.add(a, inner, false, x.as<float>(), x.strides[0], true, inner, h, matrices.dgate);
  if (!args.dup.empty()) products.add(b, inner, false, x.as<float>(), x.strides[0], true, inner, h, matrices.dup);
  if (!args.ddown.empty()) products.add(dout.as<float>(), dout.strides[0], true, u, inner, false, h, inner, matrices.ddown);
}

void check_experts(const ExpertsGrad& args) {
  const ExpertsArgs& f = args.f;
  const std::int64_t h = f.x.dim(1), inner = f.gate[0].rows;
  FATHOM_CHECK(args.dout.shape == f.x.shape && f.weights.shape == f.indices.shape && f.indices.dim(0) == f.x.dim(0) && f.indices.dim(1) <= kMostChoices);
  FATHOM_CHECK(f.gate.size() == f.up.size() && f.gate.size() == f.down.size() && f.gate.size() <= kMostExperts);
  FATHOM_CHECK(f.x.dtype == DType::f32 && args.dout.dtype == DType::f32 && (!args.dx.defined() || args.dx.dtype == DType::f32), "activations and gradients are f32");
  for (std::size_t e = 0; e < f.gate.size(); ++e)
    for (const Weight* weight : {&f.gate[e], &f.up[e], &f.down[e]}) {
      const bool down = weight == &f.down[e];
      FATHOM_CHECK(weight->rows == (down ? h : inner) && weight->cols == (down ? inner : h));
      FATHOM_CHECK(weight->format == (down ? f.down[0] : f.gate[0]).format && weight->format != WeightFormat::f64 && weight->format != WeightFormat::i64);
    }
}

}  // namespace

void CudaGradOps::route_backward(const RouteGrad& args) {
  Context& context = begin();
  const Routing& routing = args.f.routing;
  const std::int64_t tokens = args.f.logits.dim(0);
  FATHOM_CHECK(args.f.logits.dim(1) == routing.experts && args.f.indices.dim(1) == routing.top_k && routing.experts <= kMostExperts);
  if (tokens == 0 || !args.dlogits.defined()) return;
  RouteGradView view;
  view.logits = view_of<const float>(args.f.logits);
  view.dweights = view_of<const float>(args.dweights);
  view.indices = view_of<const std::int32_t>(args.f.indices);
  view.dlogits = view_of<float>(args.dlogits);
  view.route.scoring = routing.scoring;
  view.route.experts = static_cast<int>(routing.experts);
  view.route.top_k = static_cast<int>(routing.top_k);
  view.route.normalize = routing.normalize;
  view.route.scaling = routing.scaling;
  const auto shared = static_cast<std::size_t>(2 * routing.experts) * sizeof(double);
  route_backward_kernel<<<grid_for(context, tokens, 1), kWarp, shared, context.stream>>>(view);
  context.launched();
}

void CudaGradOps::experts_backward(const ExpertsGrad& args) {
  Context& context = begin();
  const ExpertsArgs& f = args.f;
  const std::int64_t tokens = f.x.dim(0), top_k = f.indices.dim(1);
  if (tokens == 0 || f.gate.empty() || top_k == 0) return;
  check_experts(args);
  const std::int64_t h = f.x.dim(1), inner = f.gate[0].rows;
  const GradMatrices matrices{matrix_of(context, f.gate), matrix_of(context, f.up), matrix_of(context, f.down),
                              gradients_of(context, args.dgate, inner * h), gradients_of(context, args.dup, inner * h), gradients_of(context, args.ddown, h * inner)};
  const Workspace start = context.workspace;  // chunks follow one another on the stream: each may overwrite the one before
  const auto token_bytes = static_cast<Bytes>(top_k * (4 * (3 * inner + h) + 8 + static_cast<std::int64_t>(sizeof(RunOfExpert))));
  const auto fixed = static_cast<Bytes>(std::ssize(f.gate)) * sizeof(RunOfExpert) + 12 * 256;
  FATHOM_CHECK(start.left() >= fixed + token_bytes, "an expert is too large for the workspace");
  const std::int64_t chunk = std::min<std::int64_t>({tokens, static_cast<std::int64_t>((start.left() - fixed) / token_bytes), (std::int64_t{1} << 21) / top_k});
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    context.workspace = start;
    run_tokens_backward(context, args, matrices, first, std::min(chunk, tokens - first));
  }
}

}  // namespace fathom::cuda
