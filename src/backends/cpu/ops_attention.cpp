// Family attention: softmax attention over segments, one pass over the keys with a running maximum and sum (Dao 2022).
#include "backends/cpu/attention_tile.h"
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"
#include "base/math.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kLeastBlocks = 1;          // of a part, when the keys of a tile are shared among threads
constexpr std::int64_t kMostGroup = 8;            // query heads a key head, for tiles that span key heads
constexpr std::int64_t kLeastRunBytes = 1 << 10;  // of a cache row, that such a tile reads in one piece

struct Cut {
  TileShape shape;
  std::int64_t head_tiles = 1, tiles = 0;
  std::int64_t parts = 1;  // the keys of every tile are split so often
};

void check_shapes(const AttentionArgs& args) {
  FATHOM_CHECK(args.batch != nullptr && args.q.shape.rank == 3 && args.out.shape.rank == 3 &&
               args.q.dim(0) == args.batch->tokens);
  FATHOM_CHECK(args.out.dim(0) == args.q.dim(0) && args.out.dim(1) == args.q.dim(1) && is_f32(args.q) &&
               is_f32(args.out));
  FATHOM_CHECK(!args.segments.empty() && args.segments.size() <= 3);
  for (const KvSegment& segment : args.segments) {
    const std::int64_t dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    FATHOM_CHECK(segment.k.dim(2) + dr == args.q.dim(2) && segment.v.dim(2) == args.out.dim(2));
    FATHOM_CHECK(segment.k.dim(1) == segment.v.dim(1) && args.q.dim(1) % segment.k.dim(1) == 0);
    FATHOM_CHECK(!segment.selected.defined() || segment.selected.dtype == DType::i32);
  }
}

/// One new token a sequence and few query heads a key head: a tile spans as many key heads as keep all threads busy.
bool shape_for_decoding(const AttentionArgs& args, std::int64_t kv_heads, int threads, TileShape& shape) {
  const std::int64_t group = args.q.dim(1) / kv_heads;
  if (group > kMostGroup || kv_heads == 1) return false;
  for (const KvSegment& segment : args.segments)
    if (segment.selected.defined() || segment.k.dim(1) != kv_heads) return false;
  for (const Sequence& sequence : args.batch->sequences)
    if (sequence.tokens > 1) return false;
  const Tensor& k = args.segments[0].k;
  const std::int64_t head_bytes = k.dim(2) * dtype_bytes(k.dtype), sequences = std::ssize(args.batch->sequences);
  std::int64_t wide = kv_heads;  // key heads of a tile
  const auto halve = [&] { return wide % 2 == 0 ? wide / 2 : 0; };
  while (halve() > 0 && (wide * group > kTileRows ||
                         (sequences * (kv_heads / wide) < 2 * threads && halve() * head_bytes >= kLeastRunBytes)))
    wide = halve();
  if (wide * group > kTileRows) return false;
  shape = {.heads = wide * group, .tokens = 1, .spans_heads = true};
  return true;
}

TileShape shape_of(const AttentionArgs& args, int threads) {
  std::int64_t kv_heads = 1;
  bool selects = false;
  for (const KvSegment& segment : args.segments) {
    kv_heads = std::max(kv_heads, segment.k.dim(1));
    selects = selects || segment.selected.defined();
  }
  for (const KvSegment& segment : args.segments) FATHOM_CHECK(kv_heads % segment.k.dim(1) == 0);
  TileShape shape;
  if (shape_for_decoding(args, kv_heads, threads, shape)) return shape;
  const std::int64_t group = args.q.dim(1) / kv_heads;
  shape.heads = group;
  for (std::int64_t pieces = 2; shape.heads > kTileRows / 2; ++pieces)
    if (group % pieces == 0) shape.heads = group / pieces;
  shape.tokens = selects ? 1 : std::max<std::int64_t>(1, kTileRows / shape.heads);
  return shape;
}

Cut cut_of(const AttentionArgs& args, int threads, std::size_t shared_bytes) {
  Cut cut{.shape = shape_of(args, threads)};
  cut.head_tiles = args.q.dim(1) / cut.shape.heads;
  const auto count_tiles = [&] {
    cut.tiles = 0;
    for (const Sequence& sequence : args.batch->sequences)
      cut.tiles += ceil_div(sequence.tokens, cut.shape.tokens) * cut.head_tiles;
  };
  count_tiles();
  while (cut.shape.tokens > 16 && cut.tiles < 4 * threads) {
    cut.shape.tokens /= 2;
    count_tiles();
  }
  if (threads == 1 || cut.tiles == 0 || cut.tiles >= 2 * threads) return cut;
  // Few tiles, as in decoding: their keys are shared among threads, and the parts joined afterwards.
  std::int64_t visible = 0;
  for (const Sequence& sequence : args.batch->sequences)
    visible = std::max<std::int64_t>(visible, sequence.past + sequence.tokens);
  const std::size_t state = static_cast<std::size_t>(kTileRows * (args.out.dim(2) + 2) + 64) * sizeof(float);
  const auto room = static_cast<std::int64_t>(shared_bytes / state) / cut.tiles;
  cut.parts = std::clamp<std::int64_t>(
      std::min({ceil_div(2 * threads, cut.tiles), visible / (kBlockKeys * kLeastBlocks), room}), 1, 2 * threads);
  return cut;
}

/// Tile number `number`; the later tokens of a sequence, which see more, come first.
Tile tile_of(const Kernels& kernels, const AttentionArgs& args, const Cut& cut, std::int64_t number, Scratch& scratch) {
  for (std::size_t s = 0; s < args.batch->sequences.size(); ++s) {
    const Sequence& sequence = args.batch->sequences[s];
    const std::int64_t token_tiles = ceil_div(sequence.tokens, cut.shape.tokens), own = token_tiles * cut.head_tiles;
    if (number >= own) {
      number -= own;
      continue;
    }
    const std::int64_t first = (token_tiles - 1 - number / cut.head_tiles) * cut.shape.tokens;
    return Tile(kernels, args, cut.shape, s, sequence.first_token + first,
                std::min(cut.shape.tokens, sequence.tokens - first), number % cut.head_tiles * cut.shape.heads,
                scratch);
  }
  FATHOM_CHECK(false);
}

}  // namespace

void CpuOps::attention(const AttentionArgs& args) {
  check_shapes(args);
  Scratch& shared = fresh_shared();
  const Cut cut = cut_of(args, context_.pool.size(), shared.left() / 2);
  const Kernels& kernels = context_.kernels;
  if (cut.parts == 1) {
    context_.pool.for_each(cut.tiles, [&](std::int64_t number, int thread) {
      Tile tile = tile_of(kernels, args, cut, number, fresh(thread));
      tile.attend(0, 1);
      tile.finish(tile.sums());
    });
    return;
  }
  const std::int64_t dv = args.out.dim(2);
  Sums* states = shared.take<Sums>(cut.tiles * cut.parts);
  for (std::int64_t i = 0; i < cut.tiles * cut.parts; ++i) states[i] = take_sums(shared, kTileRows, dv);
  context_.pool.for_each(cut.tiles * cut.parts, [&](std::int64_t number, int thread) {
    Tile tile = tile_of(kernels, args, cut, number / cut.parts, fresh(thread));
    tile.attend(number % cut.parts, cut.parts);
    std::copy_n(tile.sums().out, tile.rows() * dv, states[number].out);
    std::copy_n(tile.sums().largest, tile.rows(), states[number].largest);
    std::copy_n(tile.sums().total, tile.rows(), states[number].total);
  });
  context_.pool.for_each(cut.tiles, [&](std::int64_t number, int thread) {
    const Tile tile = tile_of(kernels, args, cut, number, fresh(thread));
    Sums* parts = states + number * cut.parts;
    for (std::int64_t part = 1; part < cut.parts; ++part) join(kernels, parts[0], parts[part], tile.rows(), dv);
    tile.finish(parts[0]);
  });
}

}  // namespace fathom::cpu
