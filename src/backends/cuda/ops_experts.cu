// Family experts: mixtures of experts. Tokens are gathered by expert on the device; then one kernel makes every hit's gated product, one its
// product with the down matrix, and one adds them up for each token, experts ascending. Few hits an expert: the weights stream by and
// are read once. Many: tiles through shared memory. 16-bit weights: tensor cores (ops_experts_mma.cu). Routing is in ops_route.cu.
#include "backends/cuda/codes.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/experts_few.h"
#include "backends/cuda/experts_gather.cuh"
#include "backends/cuda/experts_mma.h"
#include "backends/cuda/experts_stream.h"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/product.cuh"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kFewHits = 4;            // of a run whose rows stream by
constexpr std::int64_t kManyHits = 8;  // an expert on average, from where on tiles pay
constexpr std::int64_t kPointers = 128;  // that one launch carries

struct PointerChunk { const std::byte* values[kPointers]; };

/// Brings addresses to the device as a launch's arguments, so that a captured graph keeps them.
__global__ void store_pointers(const __grid_constant__ PointerChunk chunk, int count, const std::byte** to) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = chunk.values[threadIdx.x];
}

template <WeightFormat F, bool kVector, bool kGated>
void launch_product(Context& context, const ProductView& view, std::int64_t runs) {
  const auto y = static_cast<unsigned>(runs);
  if (view.run == kTileHits) {
    launch_early(context, &multiply_many<F, kVector, kGated>, dim3(static_cast<unsigned>(divide_up(view.rows, kTileRows)), y), kProductThreads, 0, view);
  } else {
    const dim3 grid(static_cast<unsigned>(divide_up(view.rows, kProductThreads / kWarp)), y);
    if (view.run == 1) launch_early(context, &multiply_few<F, kVector, kGated, 1>, grid, kProductThreads, 0, view);
    else launch_early(context, &multiply_few<F, kVector, kGated, kFewHits>, grid, kProductThreads, 0, view);
  }
  context.launched();
}

template <bool kGated>
void launch_product(Context& context, const ProductView& view, std::int64_t runs, bool vectors) {
  if (!vectors) return launch_product<WeightFormat::f32, false, kGated>(context, view, runs);
  switch (read_as(view.format)) {
    case WeightFormat::f32: return launch_product<WeightFormat::f32, true, kGated>(context, view, runs);
    case WeightFormat::f16: return launch_product<WeightFormat::f16, true, kGated>(context, view, runs);
    case WeightFormat::bf16: return launch_product<WeightFormat::bf16, true, kGated>(context, view, runs);
    case WeightFormat::fp8_block128: return launch_product<WeightFormat::fp8_block128, true, kGated>(context, view, runs);
    case WeightFormat::mxfp4: return launch_product<WeightFormat::mxfp4, true, kGated>(context, view, runs);
    case WeightFormat::int8_row: return launch_product<WeightFormat::int8_row, true, kGated>(context, view, runs);
    case WeightFormat::int4_group128: return launch_product<WeightFormat::int4_group128, true, kGated>(context, view, runs);
    default: FATHOM_CHECK(false, "not a format that the cuda backend multiplies with");
  }
}

void check_shapes(const ExpertsArgs& args) {
  FATHOM_CHECK(args.out.shape == args.x.shape && args.weights.shape == args.indices.shape && args.indices.dim(0) == args.x.dim(0));
  FATHOM_CHECK(args.gate.size() == args.up.size() && args.gate.size() == args.down.size() && args.gate.size() <= kMostExperts);
  FATHOM_CHECK(args.indices.dim(1) <= kMostChoices && args.x.dtype == DType::f32 && args.out.dtype == DType::f32);
  for (std::size_t e = 0; e < args.gate.size(); ++e) {
    const Weight &gate = args.gate[e], &up = args.up[e], &down = args.down[e];
    FATHOM_CHECK(gate.rows == args.gate[0].rows && gate.cols == args.x.dim(1) && up.rows == gate.rows && up.cols == gate.cols && down.rows == gate.cols &&
                 down.cols == gate.rows);
    FATHOM_CHECK(gate.format == args.gate[0].format && up.format == gate.format && down.format == args.down[0].format);
  }
}

/// Both products by f32 multiply-adds; the second's results. Runs are those of gather.
float* multiply_plain(Context& context, const ExpertsArgs& args, const Matrices& matrices, const Tensor& x, const GatherView& gather) {
  const std::int64_t inner = args.gate[0].rows, h = x.dim(1);
  float* hidden = context.workspace.take<float>(gather.pairs * inner);
  float* y = context.workspace.take<float>(gather.pairs * h);
  ProductView in;
  in.first = matrices.gate;
  in.second = matrices.up;
  in.format = args.gate[0].format;
  in.rows = inner;
  in.cols = h;
  in.x = x.as<float>();
  in.x_stride = x.strides[0];
  if (rounds_activations(args.gate[0], args.x.dim(0))) {
    float* rounded = context.workspace.take<float>(x.dim(0) * h);
    round_values(context, args.gate[0], in.x, in.x_stride, x.dim(0), h, rounded, h);
    in.x = rounded;
    in.x_stride = h;
  }
  in.token = gather.token;
  in.y = hidden;
  in.limit = static_cast<float>(args.limit);
  in.runs = gather.runs;
  in.run = gather.run;
  launch_product<true>(context, in, gather.most_runs, reads_vectors(args.gate) && reads_vectors(args.up) && rows_aligned(args.x, 16));
  if (rounds_activations(args.down[0], args.x.dim(0))) round_values(context, args.down[0], hidden, inner, gather.pairs, inner, hidden, inner);
  ProductView out = in;
  out.first = matrices.down;
  out.format = args.down[0].format;
  out.rows = h;
  out.cols = inner;
  out.x = hidden;
  out.x_stride = inner;
  out.token = nullptr;
  out.y = y;
  launch_product<false>(context, out, gather.most_runs, reads_vectors(args.down));
  return y;
}

/// Some tokens, all of whose hits fit the workspace. `kept`: their x in the weights' 16-bit type, or null.
/// Answers how they are added up, which is to be launched. `find`: launches what finds the hits.
template <class Find>
CombineView run_tokens(Context& context, const ExpertsArgs& args, const Matrices& matrices, const std::byte* kept, std::int64_t first, std::int64_t count, Find&& find) {
  Workspace& workspace = context.workspace;
  const std::int64_t top_k = args.indices.dim(1), h = args.x.dim(1), pairs = count * top_k, here = std::ssize(args.gate);
  const Tensor x = args.x.rows(first, count), indices = args.indices.rows(first, count);
  const bool mma = here > 0 && can_mma(args), stream = here > 0 && can_stream(args);
  GatherView gather;
  gather.indices = view_of<const std::int32_t>(indices);
  gather.pairs = static_cast<int>(pairs);
  gather.top_k = static_cast<int>(top_k);
  gather.first_expert = static_cast<int>(args.first_expert);
  gather.here = static_cast<int>(here);
  gather.run = mma ? mma_run(args, pairs) : stream ? stream_run(args, pairs) : count == 1 ? 1 : pairs < kManyHits * here ? kFewHits : kTileHits;
  gather.most_runs = static_cast<int>(std::min(pairs, here + pairs / gather.run));
  gather.runs = workspace.take<RunOfExpert>(gather.most_runs);
  gather.token = workspace.take<std::int32_t>(pairs);
  gather.hit = workspace.take<std::int32_t>(pairs);
  gather.hits = workspace.take<std::int32_t>(1);
  find(gather);
  float* y = nullptr;
  if (mma) y = multiply_mma(context, args, matrices, x, kept, gather);
  else if (stream) y = multiply_stream(context, args, matrices, x, gather);
  else if (here > 0) y = multiply_plain(context, args, matrices, x, gather);
  CombineView combine;
  combine.indices = gather.indices;
  combine.weights = view_of<const float>(args.weights.rows(first, count));
  combine.hit = gather.hit;
  combine.y = y;
  combine.out = view_of<float>(args.out.rows(first, count));
  combine.top_k = static_cast<int>(top_k);
  combine.accumulate = args.accumulate;
  combine.fours = h % 4 == 0 && rows_aligned(args.out, 16);
  return combine;
}

/// Launches the first kernel; what the second needs.
FewExperts begin_few(Context& context, const ExpertsArgs& args, const Matrices& matrices) {
  const std::int64_t tokens = args.x.dim(0), top_k = args.indices.dim(1), inner = args.gate[0].rows;
  FewExperts view;
  view.gate = matrices.gate;
  view.up = matrices.up;
  view.down = matrices.down;
  view.format = args.gate[0].format;
  view.down_format = args.down[0].format;
  view.inner = inner;
  view.h = args.x.dim(1);
  view.indices = view_of<const std::int32_t>(args.indices);
  view.weights = view_of<const float>(args.weights);
  view.x = args.x.as<float>();
  view.x_stride = args.x.strides[0];
  view.hidden = context.workspace.take<float>(tokens * top_k * inner);
  view.out = view_of<float>(args.out);
  view.top_k = static_cast<int>(top_k);
  view.first_expert = static_cast<int>(args.first_expert);
  view.here = static_cast<int>(args.gate.size());
  view.limit = static_cast<float>(args.limit);
  view.accumulate = args.accumulate;
  launch_few_experts_in(context, view, tokens);
  return view;
}

}  // namespace

MatrixOfExperts matrix_of(Context& context, std::span<const Weight> weights) {
  MatrixOfExperts matrix{.data = weights[0].data, .scales = weights[0].scales};
  const auto count = std::ssize(weights);
  bool even = true;
  if (count > 1) {
    matrix.data_step = weights[1].data - weights[0].data;
    matrix.scales_step = weights[0].scales != nullptr ? weights[1].scales - weights[0].scales : 0;
  }
  for (std::ptrdiff_t e = 0; e < count; ++e) {
    const Weight& weight = weights[static_cast<std::size_t>(e)];
    even = even && weight.data == matrix.data + e * matrix.data_step && (weight.scales == nullptr || weight.scales == matrix.scales + e * matrix.scales_step);
  }
  if (even) return matrix;
  const std::byte** table = context.workspace.take<const std::byte*>(2 * count);
  for (std::ptrdiff_t first = 0; first < 2 * count; first += kPointers) {
    PointerChunk chunk{};
    const auto here = static_cast<int>(std::min<std::ptrdiff_t>(kPointers, 2 * count - first));
    for (int i = 0; i < here; ++i) {
      const Weight& weight = weights[static_cast<std::size_t>((first + i) / 2)];
      chunk.values[i] = (first + i) % 2 == 0 ? weight.data : weight.scales;
    }
    store_pointers<<<1, kPointers, 0, context.stream>>>(chunk, here, table + first);
    context.launched();
  }
  matrix.table = table;
  return matrix;
}

void launch_gather(Context& context, const GatherView& view) {
  launch_early(context, &gather_hits, 1, kGatherThreads, 0, view);
  context.launched();
}
void launch_combine(Context& context, const CombineView& view) {
  const dim3 grid(static_cast<unsigned>(view.out.dims[0]), static_cast<unsigned>(divide_up(view.out.dims[1], view.y16 != nullptr ? 2 * kCombineColumns : kCombineColumns)));
  launch_early(context, &combine_hits, grid, kCombineThreads, 0, view);
  context.launched();
}

bool combine_and_norm(Context& context, const CombineView& view, const RmsNormArgs& norm) {
  constexpr std::int64_t kMostFours = 4;
  const std::int64_t tokens = view.out.dims[0], h = view.out.dims[1];
  std::byte* room = view.fours && view.y != nullptr && h <= kMostFours * 4 * kCombineNormThreads ? room_to_round(context, norm) : nullptr;
  if (room == nullptr || norm.x.as<float>() != view.out.data || norm.x.dim(0) != tokens || norm.x.dim(1) != h || view.out.strides[0] != h) return false;
  // What was added may have been released, and the norm's rows lie over it: a block reads and writes one row of each at its own pace.
  // So may have been the weights of the choices, which every block reads at its own pace too.
  const auto* out = norm.out.as<float>();
  const auto meets = [&](const float* rows, std::int64_t stride, std::int64_t width) { return out < rows + (tokens - 1) * stride + width && rows < out + tokens * h; };
  const bool same_rows = out == view.added && view.added_stride == h;
  if ((!same_rows && meets(view.added, view.added_stride, h)) || meets(view.weights.data, view.weights.strides[0], view.top_k)) return false;
  const auto launch = [&](auto* kernel, auto* rounded) {
    launch_early(context, kernel, static_cast<unsigned>(tokens), kCombineNormThreads, 0, view, vector_of(norm.weight), static_cast<float>(norm.eps), norm.out.as<float>(), rounded);
    context.launched();
  };
  const bool one = h <= 4 * kCombineNormThreads;
  if (auto* bf16 = reinterpret_cast<__nv_bfloat16*>(room); context.product_type == DType::bf16)
    one ? launch(&combine_and_norm_kernel<__nv_bfloat16, 1>, bf16) : launch(&combine_and_norm_kernel<__nv_bfloat16, kMostFours>, bf16);
  else
    one ? launch(&combine_and_norm_kernel<__half, 1>, reinterpret_cast<__half*>(room)) : launch(&combine_and_norm_kernel<__half, kMostFours>, reinterpret_cast<__half*>(room));
  keep_rounded(context, norm.out);
  return true;
}

void CudaOps::experts(const ExpertsArgs& args) {
  check_shapes(args);
  const std::int64_t tokens = args.x.dim(0), h = args.x.dim(1), top_k = args.indices.dim(1);
  if (tokens == 0) return flush();
  const std::int64_t inner = args.gate.empty() ? 0 : args.gate[0].rows, here = std::ssize(args.gate);
  const bool vectors = here > 0 && inner % 8 == 0 && reads_vectors(args.gate) && reads_vectors(args.up) && reads_vectors(args.down) && rows_aligned(args.x, 16);
  const bool few = tokens <= kFewExpertTokens && vectors, mma = here > 0 && can_mma(args);
  const bool behind = mma && waiting_->can_gather(context_, tokens, static_cast<int>(here));
  if (!behind) launch_waiting();
  waiting_->settle(context_);
  const std::byte* const kept = mma ? kept_rounded(context_, args.x, args.gate[0].format == WeightFormat::bf16 ? DType::bf16 : DType::f16) : nullptr;
  if (!behind) context_.rounded = {};  // else what waits wants it
  context_.workspace.reset();
  Matrices matrices;
  if (here > 0) matrices = {matrix_of(context_, args.gate), matrix_of(context_, args.up), matrix_of(context_, args.down)};
  if (few) return waiting_->take(begin_few(context_, args, matrices), tokens);
  if (here > 0 && can_multiply_codes(context_, args, matrices)) return multiply_codes(context_, args, matrices);
  const Workspace start = context_.workspace;  // chunks follow one another on the stream: each may overwrite the one before
  const std::int64_t inner_bytes = inner * (mma ? 2 : here > 0 && can_stream(args) ? 6 : 4) + 4;
  const auto token_bytes = static_cast<Bytes>(top_k * (inner_bytes + (h + 2) * 4 + static_cast<std::int64_t>(sizeof(RunOfExpert))) + (here > 0 && rounds_activations(args.gate[0], tokens) ? 4 : 2) * h);
  const auto fixed = static_cast<Bytes>(here) * sizeof(RunOfExpert) + 12 * 256;
  FATHOM_CHECK(start.left() >= fixed + token_bytes, "an expert is too large for the workspace");
  const std::int64_t chunk = std::min<std::int64_t>({tokens, static_cast<std::int64_t>((start.left() - fixed) / token_bytes), (std::int64_t{1} << 21) / top_k});  // runs are a grid.y
  if (chunk < tokens && behind) launch_waiting();  // the hits of some tokens at a time
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    context_.workspace = start;
    const CombineView combine = run_tokens(context_, args, matrices, kept == nullptr ? nullptr : kept + 2 * first * h, first, std::min(chunk, tokens - first), [&](const GatherView& gather) {
      if (behind && chunk >= tokens) waiting_->launch_gathering(context_, gather);
      else launch_gather(context_, gather);
    });
    if (chunk >= tokens && tokens <= kMostTokensTogether) waiting_->take(combine);
    else launch_combine(context_, combine);
  }
  context_.rounded = {};
}

}  // namespace fathom::cuda
