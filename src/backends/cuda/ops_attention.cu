// Family attention: softmax attention over segments, one pass over the keys with a running maximum and sum (Dao 2022). The ways, the first
// that can: single tokens whose few heads of a key head share each cache row as it streams by; latent attention of single tokens, all of
// whose heads share the rows; tensor cores for many tokens with 16-bit keys; and tiles for anything. The first and the tiles read caches of
// 8 bits; for the others their rows are widened first. Where there are too few blocks to
// fill the device, keys are cut into parts, which a last kernel joins in their order.
#include "backends/cuda/attention.cuh"

#include "backends/cuda/attention_join.cuh"
#include "backends/cuda/attention_streams.cuh"
#include "backends/cuda/attention_tiles.cuh"
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/stages.h"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kMostStreamedHeads = 8;
constexpr std::int64_t kBlocksOfStreams = 8;  // a multiprocessor
constexpr std::int64_t kLeastStreamed = 32, kLeastShared = 16;  // keys of a part, where one or several heads share them

void check_shapes(const AttentionArgs& args) {
  FATHOM_CHECK(args.batch != nullptr && args.q.shape.rank == 3 && args.out.shape.rank == 3 && args.q.dim(0) == args.batch->tokens);
  FATHOM_CHECK(args.out.dim(0) == args.q.dim(0) && args.out.dim(1) == args.q.dim(1) && args.q.dtype == DType::f32 && args.out.dtype == DType::f32);
  FATHOM_CHECK(!args.segments.empty() && args.segments.size() <= kMostSegments);
  FATHOM_CHECK(!args.lse.defined() || args.lse.dtype == DType::f32);
  for (const KvSegment& segment : args.segments) {
    const std::int64_t dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    FATHOM_CHECK(segment.k.dim(2) + dr == args.q.dim(2) && segment.v.dim(2) == args.out.dim(2));
    FATHOM_CHECK(segment.k.dim(1) == segment.v.dim(1) && args.q.dim(1) % segment.k.dim(1) == 0);
  }
}

AttentionView view_of_args(const AttentionArgs& args) {
  AttentionView view;
  view.segment_count = static_cast<int>(args.segments.size());
  for (int i = 0; i < view.segment_count; ++i) {
    view.segments[i] = view_of(args.segments[static_cast<std::size_t>(i)]);
    view.kv_heads = std::max(view.kv_heads, view.segments[i].kv_heads);
    view.selects = view.selects || view.segments[i].selected != nullptr;
  }
  for (int i = 0; i < view.segment_count; ++i) FATHOM_CHECK(view.kv_heads % view.segments[i].kv_heads == 0);
  view.q = view_of<const float>(args.q);
  view.out = view_of<float>(args.out);
  view.lse = view_of<float>(args.lse);
  FATHOM_CHECK(!args.sink.defined() || args.sink.elements() == args.q.dim(1));
  view.sink = vector_of(args.sink);
  view.table = sequence_table(*args.batch);
  view.sequences = static_cast<int>(args.batch->sequences.size());
  view.tokens = static_cast<int>(args.batch->tokens);
  view.heads = static_cast<int>(args.q.dim(1));
  view.group = view.heads / view.kv_heads;
  view.width = static_cast<int>(args.q.dim(2));
  view.dv = static_cast<int>(args.out.dim(2));
  view.scale = static_cast<float>(args.scale);
  return view;
}

/// Whether single tokens can stream the cache: few heads a key head, and rows that 16-byte loads can read.
bool can_stream(const AttentionArgs& args, const AttentionView& view) {
  if (view.selects || view.group > kMostStreamedHeads || view.width != view.dv || (view.dv != 64 && view.dv != 128)) return false;
  if (!one_token_each(*args.batch)) return false;
  for (const KvSegment& segment : args.segments)
    if (segment.k_shared.defined() || segment.k.dtype != args.segments[0].k.dtype || segment.k.dim(1) != view.kv_heads || !rows_aligned(segment.k, 16) || !rows_aligned(segment.v, 16)) return false;
  return true;
}

/// Whether single tokens whose key heads serve many heads over many keys do better on matrix units, though most rows of a tile are idle: the
/// multiply-adds of eight heads a key head take longer than the keys take to come. Known before a step is recorded.
bool better_on_units(const Context& context, const AttentionArgs& args, const AttentionView& view) {
  constexpr std::int64_t kLeastHeads = 4, kLeastKeysOfAll = 128 * 1024;
  return view.group >= kLeastHeads && context.compute_capability >= 90 && can_flash(context, args, view) &&
         static_cast<std::int64_t>(view.sequences) * view.kv_heads * most_keys(args) >= kLeastKeysOfAll;
}

void launch_tiles(Context& context, const AttentionArgs& args, AttentionView& view) {
  view.rounded_out = nullptr;
  const bool small = view.group <= 16 && (view.selects || one_token_each(*args.batch));
  const int rows = small ? 16 : 64;
  view.tile_heads = std::min(view.group, rows);
  view.pieces = (view.group + view.tile_heads - 1) / view.tile_heads;
  view.tile_tokens = view.selects ? 1 : std::max(1, rows / view.tile_heads);
  view.tiles = tiles_of(*args.batch, view.tile_tokens);
  if (view.tiles == 0) return;
  const int chunks = static_cast<int>(divide_up(view.dv, kColumns));
  const int own = chunks <= 1 ? 1 : chunks <= 2 ? 2 : chunks <= 4 ? 4 : 8;
  view.column_pieces = (chunks + own - 1) / own;
  const std::int64_t blocks = static_cast<std::int64_t>(view.tiles) * view.kv_heads * view.pieces;
  cut_keys(context, args, view, blocks * view.column_pieces, 2 * static_cast<std::int64_t>(context.multiprocessors));
  const dim3 grid(static_cast<unsigned>(view.tiles), static_cast<unsigned>(view.kv_heads * view.pieces), static_cast<unsigned>(view.parts * view.column_pieces));
  const auto launch = [&](auto rows_a_thread) {
    constexpr int kRows = decltype(rows_a_thread)::value;
    if (own == 1) launch_early(context, &attend_tiles<kRows, 1>, grid, kTileThreads, 0, view);
    else if (own == 2) launch_early(context, &attend_tiles<kRows, 2>, grid, kTileThreads, 0, view);
    else if (own == 4) launch_early(context, &attend_tiles<kRows, 4>, grid, kTileThreads, 0, view);
    else launch_early(context, &attend_tiles<kRows, 8>, grid, kTileThreads, 0, view);
  };
  if (small) launch(std::integral_constant<int, 1>{});
  else launch(std::integral_constant<int, 4>{});
  context.launched();
}

/// Whether streams can rotate and write on their way: each key head of a sequence is one block's.
bool can_make_rows(const Context& context, const AttentionArgs& args, const AttentionView& view) {
  const std::int64_t blocks = static_cast<std::int64_t>(view.sequences) * view.kv_heads;
  const KvSegment& segment = args.segments[0];
  return view.group <= kMostFreshHeads && blocks > kBlocksOfStreams / 2 * context.multiprocessors && args.segments.size() == 1 && segment.kind == KvSegment::Kind::kCache &&
         segment.k.dtype != DType::f32 && rows_aligned(args.q, 16);
}

void launch_streams(Context& context, const AttentionArgs& args, AttentionView& view, const FreshRows& fresh) {
  const std::int64_t blocks = static_cast<std::int64_t>(view.sequences) * view.kv_heads;
  cut_keys(context, args, view, blocks, kBlocksOfStreams * context.multiprocessors, view.group > 1 ? kLeastShared : kLeastStreamed);
  FATHOM_CHECK(fresh.cosines == nullptr || view.parts == 1, "rows that several blocks would make");
  const dim3 grid(static_cast<unsigned>(view.sequences), static_cast<unsigned>(view.kv_heads), static_cast<unsigned>(view.parts));
  const auto launch = [&](auto type, auto width, auto heads) {
    using T = decltype(type);
    auto* kernel = &attend_streams<T, decltype(width)::value, decltype(heads)::value>;
    context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kRingBytes<T>)));
    launch_early(context, kernel, grid, kStreamThreads, kRingBytes<T>, view, fresh);
  };
  const auto by_heads = [&](auto type, auto width) {
    if (view.group == 1) launch(type, width, std::integral_constant<int, 1>{});
    else if (view.group == 2) launch(type, width, std::integral_constant<int, 2>{});
    else if (view.group <= 4) launch(type, width, std::integral_constant<int, 4>{});
    else launch(type, width, std::integral_constant<int, 8>{});
  };
  const auto by_width = [&](auto type) { view.dv == 64 ? by_heads(type, std::integral_constant<int, 64>{}) : by_heads(type, std::integral_constant<int, 128>{}); };
  switch (view.segments[0].dtype) {
    case DType::f32: by_width(float{}); break;
    case DType::bf16: by_width(__nv_bfloat16{}); break;
    case DType::f16: by_width(__half{}); break;
    case DType::f8e4m3: by_width(E4m3{}); break;
    default: by_width(Int8{});
  }
  context.launched();
}

/// The ways that need nothing of what waited: by latents, on tensor cores, by tiles.
void attend(Context& context, const AttentionArgs& args, AttentionView& view) {
  if (can_share_latents(context, args, view)) launch_latents(context, args, view);
  else if (can_flash(context, args, view)) launch_flash(context, args, view);
  else launch_tiles(context, args, view);
}

/// Whether the widened rows of a cache of 8 bits go a better way than the tiles', which read any.
bool better_widened(Context& context, Widening& widening) {
  if (widening.parts() == 0) return false;
  const AttentionArgs& part = widening.part(context, 0);
  const AttentionView view = view_of_args(part);
  return can_share_latents(context, part, view) || can_flash(context, part, view);
}

void attend_widened(Context& context, const AttentionArgs& args, Widening& widening) {
  for (int i = 0; i < widening.parts(); ++i) {
    const AttentionArgs& part = widening.part(context, i);
    if (part.batch->tokens == 0) continue;
    AttentionView view = view_of_args(part);
    view.fresh_rows = true;
    if (widening.parts() == 1) view.rounded_out = room_to_round(context, args.out), view.rounded_type = context.product_type;
    widening.launch(context);
    attend(context, part, view);
    join_attention(context, view);
    if (view.rounded_out != nullptr) keep_rounded(context, args.out);
  }
}

}  // namespace

/// The most keys that a token of the batch sees. Of single tokens: that one could see, since a recorded step of decoding is launched again
/// when there are more.
std::int64_t most_keys(const AttentionArgs& args) {
  using Kind = KvSegment::Kind;
  const bool recorded = one_token_each(*args.batch);
  std::int64_t most = 1;
  for (const Sequence& sequence : args.batch->sequences) {
    std::int64_t sum = 0;
    for (const KvSegment& segment : args.segments) {
      std::int64_t keys = sequence.past + sequence.tokens;
      if (segment.kind == Kind::kEntries || segment.kind == Kind::kFreshEntries) keys /= segment.ratio;
      if (segment.kind == Kind::kRingPast) keys = std::min<std::int64_t>(sequence.past, segment.rows_per_slot);
      if (segment.kind != Kind::kFresh && segment.kind != Kind::kFreshEntries && recorded) keys = segment.rows_per_slot;
      if (segment.kind == Kind::kFresh) keys = sequence.tokens;
      if (segment.selected.defined()) keys = std::min(keys, segment.selected.dim(1));
      sum += keys;
    }
    most = std::max(most, sum);
  }
  return most;
}

bool one_token_each(const Batch& batch) {
  for (const Sequence& sequence : batch.sequences)
    if (sequence.tokens != 1) return false;
  return true;
}

/// Cuts the keys so that about `wanted` blocks run, and takes the parts' room.
void cut_keys(Context& context, const AttentionArgs& args, AttentionView& view, std::int64_t blocks, std::int64_t wanted, std::int64_t least_keys) {
  const std::int64_t rows = static_cast<std::int64_t>(view.tokens) * view.heads;
  const auto room = static_cast<std::int64_t>(context.workspace.left() / 2 / (static_cast<Bytes>(rows) * static_cast<Bytes>(view.dv + 2) * sizeof(float)));
  view.parts = static_cast<int>(std::clamp<std::int64_t>(std::min({wanted / std::max<std::int64_t>(blocks, 1), most_keys(args) / least_keys, room}), 1, kMostParts));
  if (view.parts == 1) return;
  view.part_out = context.workspace.take<float>(view.parts * rows * view.dv);
  view.part_state = context.workspace.take<float>(view.parts * rows * 2);
}

int tiles_of(const Batch& batch, int tile_tokens) {
  std::int64_t tiles = 0;
  for (const Sequence& sequence : batch.sequences) tiles += divide_up(sequence.tokens, tile_tokens);
  return static_cast<int>(tiles);
}

void join_attention(Context& context, const AttentionView& view) {
  if (view.parts == 1 || view.clustered) return;
  launch_early(context, &join_parts, static_cast<unsigned>(view.tokens * view.heads), kJoinThreads, 0, view);
  context.launched();
}

void CudaOps::attention(const AttentionArgs& args) {
  check_shapes(args);
  if (args.batch->tokens == 0 || args.q.dim(1) == 0) return flush();
  AttentionView view = view_of_args(args);
  const bool streams = can_stream(args, view) && !better_on_units(context_, args, view);
  if (!streams && dtype_bytes(view.segments[0].dtype) == 1) {
    if (Widening widening(args); better_widened(context_, widening)) {
      flush();
      return attend_widened(context_, args, widening);
    }
  }
  const int clustered = streams ? cluster_parts(context_, args, view) : 0;
  const bool makes = clustered > 0 ? clusters_make_rows(view) : streams && can_make_rows(context_, args, view);
  const FreshRows fresh = makes ? waiting_->take_rotations(args) : FreshRows{};
  const FreshLatents latents = can_absorb(context_, args, view) ? waiting_->take_latents(args) : FreshLatents{};
  const bool units = on_hopper(context_, view) && !can_stream(args, view) && !can_share_latents(context_, args, view) && can_flash(context_, args, view);
  std::optional<QkvRows> rows;
  if (units) rows = waiting_->rows_of(args);
  settle();
  if (clustered > 0 && context_.stages != nullptr && context_.stages->add(context_, args, view, fresh)) return;
  close_stages(context_);
  context_.workspace.reset();
  if (rows) view.rounded_q = store_rows(context_, *rows, args);
  view.rounded_out = room_to_round(context_, args.out), view.rounded_type = context_.product_type;
  if (latents.q != nullptr) view.rounded_out = nullptr, launch_absorbed(context_, view, latents);
  else if (clustered > 0) view.parts = clustered, view.clustered = true, launch_attention_clusters(context_, args, view, fresh);
  else if (streams) launch_streams(context_, args, view, fresh);
  else attend(context_, args, view);
  if (can_leave(context_, view)) return waiting_->take(view);
  join_attention(context_, view);
  if (view.rounded_out != nullptr) keep_rounded(context_, args.out);
}

}  // namespace fathom::cuda
