// Family attention backwards (Dao 2023), from the log-sum-exp that forward left. With D = dout · out and p = exp(score - lse): ds = scale · p ·
// (dout · v - D), dq += ds k, dk += dsᵀ q, dv += pᵀ dout; the sink gets -exp(sink - lse) · D. Scores are made again, for some queries and the
// keys that any of them sees at a time, as matrices [heads, queries, keys] in the workspace, and everything else is products of those
// (grad_product.cu); what a query does not see is zero there.
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"
#include "backends/cuda/segments.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kGradQueries = 128;       // at a time
constexpr std::int64_t kMostGradKeys = 1 << 17;  // at a time: one bit each in shared memory
constexpr int kSlopeThreads = 256;

/// d[t, h] = dout[t, h] · out[t, h], and what the sink gets of it. A warp a (token, head).
__global__ void __launch_bounds__(kSlopeThreads) dots_of_outputs(View<const float> out, View<const float> dout, View<const float> lse, FloatVector sink, float* d, float* dsink) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t heads = out.dims[1], step = static_cast<std::int64_t>(gridDim.x) * (kSlopeThreads / kWarp);
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * (kSlopeThreads / kWarp) + threadIdx.x / kWarp; i < out.dims[0] * heads; i += step) {
    const std::int64_t t = i / heads, h = i % heads;
    float sum = 0.0f;
    for (std::int64_t c = lane; c < out.dims[2]; c += kWarp) sum += dout.at(t, h)[c] * out.at(t, h)[c];
    sum = warp_sum(sum);
    if (lane != 0) continue;
    d[i] = sum;
    if (dsink != nullptr) dsink[i] = -expf(sink[h] - lse.at(t)[h]) * sum;
  }
}

struct SlopesView {
  SegmentView segment;
  const std::int32_t* table = nullptr;
  int sequences = 0;
  std::int64_t query = 0, queries = 0, key = 0, keys = 0, heads = 0;  // the first of each, and how many
  float scale = 1;
  View<const float> lse;       // [tokens, heads]
  const float* d = nullptr;    // [tokens, heads]
  float *p = nullptr, *ds = nullptr;  // [heads, queries, keys]: q · k and dout · v before
};

/// Bits of the keys that the token chose among names [first, end).
__device__ void mark_chosen(const SlopesView& view, std::int64_t token, const NameRange& names, std::int64_t base, unsigned* chosen) {
  for (std::int64_t i = threadIdx.x; i < divide_up(view.keys, 32); i += blockDim.x) chosen[i] = 0;
  __syncthreads();
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < view.segment.selected_count; i += static_cast<std::int32_t>(blockDim.x)) {
    const std::int32_t name = view.segment.selected[token * view.segment.selected_row + i];
    const std::int64_t key = base + name - view.key;
    if (name >= names.first && name < names.end && key >= 0 && key < view.keys) atomicOr(&chosen[key / 32], 1u << (key % 32));
  }
  __syncthreads();
}

/// Grid: queries, heads.
__global__ void __launch_bounds__(kSlopeThreads) attention_slopes(const __grid_constant__ SlopesView view) {
  extern __shared__ unsigned chosen_keys[];
  const std::int64_t token = view.query + blockIdx.x, head = blockIdx.y, at = (head * view.queries + blockIdx.x) * view.keys;
  const Piece piece = find_piece(view.table, view.sequences, 1, static_cast<std::int32_t>(token));
  NameRange names;
  std::int64_t base = 0;
  if (piece.sequence >= 0) {
    const SequenceRow sequence = sequence_row(view.table, piece.sequence);
    names = visible_names(view.segment, sequence.past, sequence.past + piece.first);
    base = base_row(view.segment, view.table, piece.sequence, sequence);
  }
  const bool chooses = view.segment.selected != nullptr;
  if (chooses) mark_chosen(view, token, names, base, chosen_keys);
  const float lse = view.lse.at(token)[head], d = view.d[token * view.heads + head];
  for (std::int64_t i = threadIdx.x; i < view.keys; i += kSlopeThreads) {
    const std::int64_t name = view.key + i - base;
    const bool seen = name >= names.first && name < names.end && (!chooses || (chosen_keys[i / 32] >> (i % 32) & 1u) != 0);
    const float p = seen ? expf(view.scale * view.p[at + i] - lse) : 0.0f;
    view.ds[at + i] = seen ? view.scale * p * (view.ds[at + i] - d) : 0.0f;
    view.p[at + i] = p;
  }
}

/// Rows [first, end) of a segment that tokens [query, query + queries) may see.
struct KeyRange { std::int64_t first = 0, end = 0; };
KeyRange keys_of(const KvSegment& segment, const Batch& batch, std::int64_t query, std::int64_t queries) {
  const bool entries = segment.kind == KvSegment::Kind::kFreshEntries;
  KeyRange range{.first = -1};
  std::int64_t entry_row = 0;
  for (const Sequence& sequence : batch.sequences) {
    const std::int64_t begin = sequence.first_token, end = begin + sequence.tokens;
    if (begin < query + queries && end > query) {
      const std::int64_t from = std::max(begin, query) - begin, last = std::min(end, query + queries) - 1 - begin;  // positions
      const std::int64_t first = entries ? entry_row : begin + (segment.window > 0 ? std::max<std::int64_t>(0, from - segment.window + 1) : 0);
      if (range.first < 0) range.first = first;
      range.end = entries ? entry_row + (last + 1) / segment.ratio : begin + last + 1;
    }
    entry_row += max_entries(sequence.tokens, segment.ratio);
  }
  return range.first < 0 ? KeyRange{} : range;
}

/// A view [rows, heads, width] or [rows, width] as an operand, from `row` on: by its columns (depth), or its columns as the index.
GradSide side_of_rows(const Tensor& x, std::int64_t row, std::int64_t column, bool columns_are_depth) {
  FATHOM_CHECK(x.dtype == DType::f32, "activations and gradients are f32");
  GradSide side;
  side.data = x.as<float>() + row * x.strides[0] + column;
  side.index = columns_are_depth ? x.strides[0] : 1;
  side.depth = columns_are_depth ? 1 : x.strides[0];
  side.group = x.shape.rank == 3 ? x.strides[1] : 0;
  return side;
}

/// Backward of some queries and some of the keys that they see.
class GradTile {
 public:
  GradTile(Context& context, const AttentionGrad& args, SlopesView view) : context_(context), args_(args), view_(view), heads_(view.heads) {}

  void run(const KvSegment& segment, const KvSegmentGrad& grad) {
    const std::int64_t dk = segment.k.dim(2), dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    score(args_.f.q, 0, segment.k, dk, view_.p, false);
    if (dr > 0) score(args_.f.q, dk, segment.k_shared, dr, view_.p, true);
    score(args_.dout, 0, segment.v, segment.v.dim(2), view_.ds, false);
    const auto shared = static_cast<std::size_t>(view_.segment.selected != nullptr ? divide_up(view_.keys, 32) * 4 : 0);
    attention_slopes<<<dim3(static_cast<unsigned>(view_.queries), static_cast<unsigned>(heads_)), kSlopeThreads, shared, context_.stream>>>(view_);
    context_.launched();
    if (args_.dq.defined()) {
      add_to_queries(segment.k, dk, 0);
      if (dr > 0) add_to_queries(segment.k_shared, dr, dk);
    }
    if (grad.dk.defined()) add_to_keys(view_.ds, args_.f.q, 0, grad.dk, dk);
    if (dr > 0 && grad.dk_shared.defined()) add_to_keys(view_.ds, args_.f.q, dk, grad.dk_shared, dr);
    if (grad.dv.defined()) add_to_keys(view_.p, args_.dout, 0, grad.dv, segment.v.dim(2));
  }

 private:
  static std::int64_t heads_of(const Tensor& keys) { return keys.shape.rank == 3 ? keys.dim(1) : 1; }

  /// to[h, query, key] (+)= rows[query, h, column …] · keys[key, …].
  void score(const Tensor& rows, std::int64_t column, const Tensor& keys, std::int64_t width, float* to, bool accumulate) {
    GradProduct p{.left = side_of_rows(rows, view_.query, column, true), .right = side_of_rows(keys, view_.key, 0, true), .rows = view_.queries, .columns = view_.keys, .depth = width,
                  .groups = heads_, .out = to, .out_stride = view_.keys, .out_group = view_.queries * view_.keys, .accumulate = accumulate};
    p.right.share = static_cast<std::int32_t>(heads_ / heads_of(keys));
    launch_grad_product(context_, p);
  }
  void add_to_queries(const Tensor& keys, std::int64_t width, std::int64_t column) {
    const Tensor& dq = args_.dq;
    GradProduct p{.right = side_of_rows(keys, view_.key, 0, false), .rows = view_.queries, .columns = width, .depth = view_.keys, .groups = heads_,
                  .out = dq.as<float>() + view_.query * dq.strides[0] + column, .out_stride = dq.strides[0], .out_group = dq.strides[1]};
    p.left.data = view_.ds;
    p.left.index = view_.keys;
    p.left.depth = 1;
    p.left.group = view_.queries * view_.keys;
    p.right.share = static_cast<std::int32_t>(heads_ / heads_of(keys));
    launch_grad_product(context_, p);
  }
  /// to[key, g, …] += the sum over heads h of g and queries of from[h, query, key] · rows[query, h, column …].
  void add_to_keys(const float* from, const Tensor& rows, std::int64_t column, const Tensor& to, std::int64_t width) {
    const std::int64_t groups = heads_of(to), heads = heads_ / groups;
    FATHOM_CHECK(to.dtype == DType::f32 && to.dim(to.shape.rank - 1) == width, "gradients are f32");
    GradProduct p{.right = side_of_rows(rows, view_.query, column, false), .rows = view_.keys, .columns = width, .depth = heads * view_.queries, .groups = groups,
                  .out = to.as<float>() + view_.key * to.strides[0], .out_stride = to.strides[0], .out_group = to.shape.rank == 3 ? to.strides[1] : 0};
    p.left.data = from;
    p.left.index = 1;
    p.left.depth = view_.keys;  // of the heads' queries, which follow each other
    p.left.group = heads * view_.queries * view_.keys;
    p.right.inner = static_cast<std::int32_t>(view_.queries);
    p.right.outer = rows.strides[1];
    p.right.group = heads * rows.strides[1];
    launch_grad_product(context_, p);
  }

  Context& context_;
  const AttentionGrad& args_;
  SlopesView view_;
  std::int64_t heads_;
};

void check_attention(const AttentionGrad& args) {
  const AttentionArgs& f = args.f;
  FATHOM_CHECK(f.batch != nullptr && f.q.shape.rank == 3 && f.q.dim(0) == f.batch->tokens && args.dout.shape == f.out.shape);
  FATHOM_CHECK(args.segments.size() == f.segments.size() && f.lse.defined() && f.lse.dtype == DType::f32, "backward needs what forward left");
  FATHOM_CHECK(!args.dq.defined() || (args.dq.dtype == DType::f32 && args.dq.shape == f.q.shape), "gradients are f32");
  for (const Sequence& sequence : f.batch->sequences) FATHOM_CHECK(sequence.past == 0, "a past is not differentiated");
  for (const KvSegment& segment : f.segments) {
    const std::int64_t dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    FATHOM_CHECK(segment.kind == KvSegment::Kind::kFresh || segment.kind == KvSegment::Kind::kFreshEntries, "caches are not differentiated");
    FATHOM_CHECK(segment.k.dim(2) + dr == f.q.dim(2) && segment.v.dim(2) == args.dout.dim(2) && segment.k.dim(1) == segment.v.dim(1) && f.q.dim(1) % segment.k.dim(1) == 0);
  }
}

}  // namespace

void CudaGradOps::attention_backward(const AttentionGrad& args) {
  Context& context = begin();
  check_attention(args);
  const AttentionArgs& f = args.f;
  const std::int64_t tokens = f.q.dim(0), heads = f.q.dim(1);
  if (tokens == 0 || heads == 0) return;
  SlopesView view;
  view.table = sequence_table(*f.batch);
  view.sequences = static_cast<int>(f.batch->sequences.size());
  view.heads = heads;
  view.scale = static_cast<float>(f.scale);
  view.lse = view_of<const float>(f.lse);
  float* const d = context.workspace.take<float>(tokens * heads);
  float* const dsink = f.sink.defined() && args.dsink.defined() ? context.workspace.take<float>(tokens * heads) : nullptr;
  view.d = d;
  dots_of_outputs<<<grid_for(context, tokens * heads, kSlopeThreads / kWarp), kSlopeThreads, 0, context.stream>>>(view_of<const float>(f.out), view_of<const float>(args.dout), view.lse,
                                                                                                           vector_of(f.sink), d, dsink);
  context.launched();
  if (dsink != nullptr) add_column_sums(context, {.values = dense_rows(dsink, tokens, heads)}, parameter_of(args.dsink, heads));
  const std::int64_t room = static_cast<std::int64_t>(context.workspace.left()) / 8 - 64;  // floats of one of the two matrices
  const std::int64_t step = std::min(tokens, kGradQueries), keys = std::min(room / (heads * step), kMostGradKeys) / kGradTile * kGradTile;
  FATHOM_CHECK(keys > 0, "more heads than the workspace holds scores of");
  view.p = context.workspace.take<float>(heads * step * keys);
  view.ds = context.workspace.take<float>(heads * step * keys);
  for (view.query = 0; view.query < tokens; view.query += step) {
    view.queries = std::min(step, tokens - view.query);
    for (std::size_t s = 0; s < f.segments.size(); ++s) {
      const KeyRange range = keys_of(f.segments[s], *f.batch, view.query, view.queries);
      view.segment = view_of(f.segments[s]);
      for (view.key = range.first; view.key < range.end; view.key += keys) {
        view.keys = std::min(keys, range.end - view.key);
        GradTile(context, args, view).run(f.segments[s], args.segments[s]);
      }
    }
  }
}

}  // namespace fathom::cuda
