// Family attention: softmax attention over segments, one pass over the keys with a running maximum and sum (Dao 2022). The
// unit of work is a tile of query rows that share their keys: some tokens × the query heads of one key head.
#include <cmath>
#include <limits>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/visible.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kTileRows = 64;    // query rows of a tile
constexpr std::int64_t kBlockKeys = 64;   // keys looked at together
constexpr std::int64_t kFewRows = 4;      // with so few query rows keys and values are read where they lie
constexpr std::int64_t kLeastBlocks = 4;  // of a part, when the keys of a tile are shared among threads

/// A tile, or one part of its keys.
struct Item {
  std::size_t sequence = 0;
  std::int64_t first_token = 0, tokens = 0;  // over the batch
  std::int64_t first_head = 0;               // heads_per_tile of them
};

/// How the whole op is cut.
struct Cut {
  std::int64_t heads_per_tile = 1, tokens_per_tile = 1;
  std::int64_t head_tiles = 1, tiles = 0;
  std::int64_t parts = 1;  // the keys of every tile are split so often
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

void check_shapes(const AttentionArgs& args) {
  FATHOM_CHECK(args.batch != nullptr && args.q.shape.rank == 3 && args.out.shape.rank == 3 && args.q.dim(0) == args.batch->tokens);
  FATHOM_CHECK(args.out.dim(0) == args.q.dim(0) && args.out.dim(1) == args.q.dim(1) && is_f32(args.q) && is_f32(args.out));
  FATHOM_CHECK(!args.segments.empty() && args.segments.size() <= 3);
  for (const KvSegment& segment : args.segments) {
    const std::int64_t dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    FATHOM_CHECK(segment.k.dim(2) + dr == args.q.dim(2) && segment.v.dim(2) == args.out.dim(2));
    FATHOM_CHECK(segment.k.dim(1) == segment.v.dim(1) && args.q.dim(1) % segment.k.dim(1) == 0);
    FATHOM_CHECK(!segment.selected.defined() || segment.selected.dtype == DType::i32);
  }
}

/// The running state of a tile's rows: what was seen so far, relative to its largest score.
struct Sums {
  float* out = nullptr;      // [rows, dv]
  float* largest = nullptr;  // [rows]
  float* total = nullptr;    // [rows]
};

Sums take_sums(Scratch& scratch, std::int64_t rows, std::int64_t dv) {
  return {scratch.take<float>(rows * dv), scratch.take<float>(rows), scratch.take<float>(rows)};
}

class Tile {
 public:
  Tile(const Kernels& kernels, const AttentionArgs& args, const Item& item, const Cut& cut, Scratch& scratch)
      : kernels_(kernels), args_(args), item_(item), heads_(cut.heads_per_tile), rows_(item.tokens * cut.heads_per_tile), dv_(args.out.dim(2)) {
    const std::int64_t dq = args.q.dim(2);
    sums_ = take_sums(scratch, rows_, dv_);
    q_ = scratch.take<const float*>(rows_);
    scores_ = scratch.take<float>(rows_ * kBlockKeys);
    key_rows_ = scratch.take<Row>(kBlockKeys);
    shared_rows_ = scratch.take<Row>(kBlockKeys);
    value_rows_ = scratch.take<Row>(kBlockKeys);
    seen_ = scratch.take<Names>(rows_);
    if (rows_ > kFewRows) {
      key_panels_ = scratch.take<float>(dq * kBlockKeys);
      value_panels_ = scratch.take<float>((dv_ + kMaxPanelWidth) * kBlockKeys);
    }
    for (std::int64_t r = 0; r < rows_; ++r)
      q_[r] = args.q.as<float>() + (item.first_token + r / heads_) * args.q.strides[0] + (item.first_head + r % heads_) * args.q.strides[1];
    std::fill_n(sums_.out, rows_ * dv_, 0.0f);
    std::fill_n(sums_.largest, rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(sums_.total, rows_, 0.0f);
  }

  /// Looks at part `part` of `parts` of the keys.
  void attend(std::int64_t part, std::int64_t parts) {
    std::int64_t blocks = 0;
    for (const KvSegment& segment : args_.segments) blocks += blocks_of(SegmentOfSequence(segment, *args_.batch, item_.sequence));
    const std::int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
    std::int64_t block = 0;
    for (const KvSegment& segment : args_.segments) {
      const SegmentOfSequence seen(segment, *args_.batch, item_.sequence);
      const std::int64_t own = blocks_of(seen), from = std::clamp<std::int64_t>(first - block, 0, own), to = std::clamp<std::int64_t>(last - block, 0, own);
      for (std::int64_t i = from; i < to; ++i) {
        if (segment.selected.defined()) attend_selected(seen, i);
        else attend_dense(seen, i);
      }
      block += own;
    }
  }

  const Sums& sums() const { return sums_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t token(std::int64_t row) const { return item_.first_token + row / heads_; }
  std::int64_t head(std::int64_t row) const { return item_.first_head + row % heads_; }

 private:
  std::int64_t position(const SegmentOfSequence& seen, std::int64_t token) const { return seen.sequence().past + token - seen.sequence().first_token; }
  /// What any token of the tile sees.
  Names range(const SegmentOfSequence& seen) const {
    return {seen.visible(position(seen, item_.first_token)).first, seen.visible(position(seen, item_.first_token + item_.tokens - 1)).end};
  }
  std::int64_t blocks_of(const SegmentOfSequence& seen) const {
    if (seen.segment().selected.defined()) return ceil_div(seen.segment().selected.dim(1), kBlockKeys);
    const Names names = range(seen);
    return names.end > names.first ? ceil_div(names.end - names.first, kBlockKeys) : 0;
  }

  void attend_dense(const SegmentOfSequence& seen, std::int64_t block) {
    const Names all = range(seen);
    const std::int64_t first = all.first + block * kBlockKeys, count = std::min(kBlockKeys, all.end - first);
    for (std::int64_t i = 0; i < count; ++i) point_at(seen, i, seen.row(first + i));
    score(seen.segment(), count);
    for (std::int64_t t = 0; t < item_.tokens; ++t) {
      const Names names = seen.visible(position(seen, item_.first_token + t));
      const std::int64_t from = std::clamp<std::int64_t>(names.first - first, 0, count), to = std::clamp<std::int64_t>(names.end - first, from, count);
      for (std::int64_t r = t * heads_; r < (t + 1) * heads_; ++r) soften(r, from, to, count);
    }
    mix(seen.segment(), count);
  }

  void attend_selected(const SegmentOfSequence& seen, std::int64_t block) {  // the tile is one token
    const Tensor& selected = seen.segment().selected;
    const Names names = seen.visible(position(seen, item_.first_token));
    const auto* list = selected.as<std::int32_t>() + item_.first_token * selected.strides[0];
    const std::int64_t end = std::min(selected.dim(1), (block + 1) * kBlockKeys);
    std::int64_t count = 0;
    for (std::int64_t i = block * kBlockKeys; i < end; ++i)
      if (list[i] >= names.first && list[i] < names.end) point_at(seen, count++, seen.row(list[i]));
    if (count == 0) return;
    score(seen.segment(), count);
    for (std::int64_t r = 0; r < rows_; ++r) soften(r, 0, count, count);
    mix(seen.segment(), count);
  }

  /// Key number i of the block lies in row `row` of the segment.
  void point_at(const SegmentOfSequence& seen, std::int64_t i, std::int64_t row) {
    const KvSegment& segment = seen.segment();
    FATHOM_CHECK(row >= 0 && row < segment.k.dim(0), "a cache is too small");
    const std::int64_t head = item_.first_head / (args_.q.dim(1) / segment.k.dim(1));
    key_rows_[i] = segment.k.data + (row * segment.k.strides[0] + head * segment.k.strides[1]) * dtype_bytes(segment.k.dtype);
    value_rows_[i] = segment.v.data + (row * segment.v.strides[0] + head * segment.v.strides[1]) * dtype_bytes(segment.v.dtype);
    if (segment.k_shared.defined()) shared_rows_[i] = segment.k_shared.data + row * segment.k_shared.strides[0] * dtype_bytes(segment.k_shared.dtype);
  }

  /// scores_[r][i] = q · key i, unscaled.
  void score(const KvSegment& segment, std::int64_t count) {
    const std::int64_t dk = segment.k.dim(2), dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    const Element element = element_of(segment.k.dtype);
    if (rows_ <= kFewRows) {
      kernels_.dot_rows({.element = element, .rows = key_rows_, .row_count = count, .k = dk, .x = q_, .m_count = rows_, .out = scores_, .out_stride = kBlockKeys});
      if (dr > 0)
        kernels_.dot_rows({.element = element_of(segment.k_shared.dtype), .rows = shared_rows_, .row_count = count, .k = dr, .x = q_, .x_offset = dk,
                           .m_count = rows_, .out = scores_, .out_stride = kBlockKeys, .accumulate = true});
      return;
    }
    kernels_.pack_transposed({.element = element, .rows = key_rows_, .row_count = count, .count = dk, .panels = key_panels_, .panel_depth = dk + dr});
    if (dr > 0)
      kernels_.pack_transposed({.element = element_of(segment.k_shared.dtype), .rows = shared_rows_, .row_count = count, .count = dr, .panels = key_panels_,
                                .panel_depth = dk + dr, .depth_first = dk});
    kernels_.panel_product({.a = q_, .m_count = rows_, .panels = key_panels_, .depth = dk + dr, .columns = count, .c = scores_, .c_stride = kBlockKeys});
  }

  /// Scores [from, to) of a row become exponentials against its running maximum, the others zero; what was summed so far is
  /// brought to the new maximum.
  void soften(std::int64_t r, std::int64_t from, std::int64_t to, std::int64_t count) {
    float* s = scores_ + r * kBlockKeys;
    seen_[r] = {from, to};
    std::fill(s, s + from, 0.0f);
    std::fill(s + to, s + count, 0.0f);
    if (from >= to) return;
    const auto scale = static_cast<float>(args_.scale);
    const float before = sums_.largest[r], here = scale * kernels_.largest(s + from, to - from), now = before > here ? before : here;
    if (now == -std::numeric_limits<float>::infinity()) {  // scores of -infinity have no weight; NaN is not hidden
      for (std::int64_t i = from; i < to; ++i) sums_.total[r] += s[i] = s[i] != s[i] ? s[i] : 0.0f;
      return;
    }
    const float sum = kernels_.exponentials(s + from, scale, now, s + from, to - from);
    const float keep = before == now ? 1.0f : std::exp(before - now);
    sums_.total[r] = sums_.total[r] * keep + sum;
    sums_.largest[r] = now;
    if (keep != 1.0f) kernels_.scale(keep, sums_.out + r * dv_, dv_);
  }

  /// out += scores · values. A row that sees only some of the keys must not meet the values of the others when these are not
  /// finite: zero times infinity is not zero.
  void mix(const KvSegment& segment, std::int64_t count) {
    const Element element = element_of(segment.v.dtype);
    bool all_seen = true;
    for (std::int64_t r = 0; r < rows_; ++r) all_seen = all_seen && seen_[r].first == 0 && seen_[r].end == count;
    if (rows_ <= kFewRows && all_seen) {
      kernels_.combine_rows({.element = element, .rows = value_rows_, .row_count = count, .n = dv_, .p = scores_, .p_stride = kBlockKeys, .m_count = rows_,
                             .y = sums_.out, .y_stride = dv_, .accumulate = true});
      return;
    }
    if (rows_ > kFewRows)
      kernels_.pack_straight({.element = element, .rows = value_rows_, .row_count = count, .count = dv_, .panels = value_panels_, .panel_depth = count});
    if (rows_ <= kFewRows || (!all_seen && !kernels_.finite(value_panels_, ceil_div(dv_, kernels_.panel_width) * kernels_.panel_width * count))) {
      for (std::int64_t r = 0; r < rows_; ++r)
        kernels_.combine_rows({.element = element, .rows = value_rows_ + seen_[r].first, .row_count = seen_[r].end - seen_[r].first, .n = dv_,
                               .p = scores_ + r * kBlockKeys + seen_[r].first, .p_stride = kBlockKeys, .m_count = 1, .y = sums_.out + r * dv_,
                               .y_stride = dv_, .accumulate = true});
      return;
    }
    const float* p[kTileRows];
    for (std::int64_t r = 0; r < rows_; ++r) p[r] = scores_ + r * kBlockKeys;
    kernels_.panel_product({.a = p, .m_count = rows_, .panels = value_panels_, .depth = count, .columns = dv_, .c = sums_.out, .c_stride = dv_, .accumulate = true});
  }

  const Kernels& kernels_;
  const AttentionArgs& args_;
  const Item item_;
  const std::int64_t heads_, rows_, dv_;
  Sums sums_;
  const float** q_ = nullptr;
  float *scores_ = nullptr, *key_panels_ = nullptr, *value_panels_ = nullptr;
  Row *key_rows_ = nullptr, *shared_rows_ = nullptr, *value_rows_ = nullptr;
  Names* seen_ = nullptr;  // of the block's keys, by row
};

/// The last step: the sink joins, sums are divided, results are stored.
void finish(const Kernels& kernels, const AttentionArgs& args, const Tile& tile, const Sums& sums) {
  const std::int64_t dv = args.out.dim(2);
  for (std::int64_t r = 0; r < tile.rows(); ++r) {
    const std::int64_t t = tile.token(r), h = tile.head(r);
    float largest = sums.largest[r], total = sums.total[r], share = 1.0f;
    if (args.sink.defined()) {
      float sink = 0;
      kernels.widen(element_of(args.sink.dtype), args.sink.data + h * dtype_bytes(args.sink.dtype), 1, &sink);
      const float before = largest;
      largest = before > sink ? before : sink;
      share = std::exp(before - largest);
      total = total * share + std::exp(sink - largest);
    }
    float* out = args.out.as<float>() + t * args.out.strides[0] + h * args.out.strides[1];
    std::copy_n(sums.out + r * dv, dv, out);
    kernels.scale(share / total, out, dv);
    if (args.lse.defined()) args.lse.as<float>()[t * args.lse.strides[0] + h * args.lse.strides[1]] = largest + std::log(total);
  }
}

/// Adds one part's state to another's.
void join(const Kernels& kernels, const Sums& into, const Sums& from, std::int64_t rows, std::int64_t dv) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float now = from.largest[r] > into.largest[r] ? from.largest[r] : into.largest[r];
    if (now == -std::numeric_limits<float>::infinity()) continue;
    const float keep = std::exp(into.largest[r] - now), share = std::exp(from.largest[r] - now);
    if (keep != 1.0f) kernels.scale(keep, into.out + r * dv, dv);
    kernels.add_scaled(share, from.out + r * dv, into.out + r * dv, dv);
    into.total[r] = into.total[r] * keep + from.total[r] * share;
    into.largest[r] = now;
  }
}

Cut cut_of(const AttentionArgs& args, int threads, std::size_t shared_bytes) {
  const std::int64_t heads = args.q.dim(1), dv = args.out.dim(2);
  std::int64_t kv_heads = 1;
  bool selects = false;
  for (const KvSegment& segment : args.segments) {
    kv_heads = std::max(kv_heads, segment.k.dim(1));
    selects = selects || segment.selected.defined();
  }
  for (const KvSegment& segment : args.segments) FATHOM_CHECK(kv_heads % segment.k.dim(1) == 0);
  Cut cut;
  cut.heads_per_tile = heads / kv_heads;
  for (std::int64_t pieces = 2; cut.heads_per_tile > kTileRows; ++pieces)
    if (heads / kv_heads % pieces == 0) cut.heads_per_tile = heads / kv_heads / pieces;
  cut.tokens_per_tile = selects ? 1 : std::max<std::int64_t>(1, kTileRows / cut.heads_per_tile);
  cut.head_tiles = heads / cut.heads_per_tile;
  std::int64_t visible = 0;
  for (const Sequence& sequence : args.batch->sequences) {
    cut.tiles += ceil_div(sequence.tokens, cut.tokens_per_tile) * cut.head_tiles;
    visible = std::max<std::int64_t>(visible, sequence.past + sequence.tokens);
  }
  if (threads == 1 || cut.tiles == 0 || cut.tiles >= 2 * threads) return cut;
  // Few tiles, as in decoding: their keys are shared among threads, and the parts joined afterwards.
  const std::size_t state = static_cast<std::size_t>(kTileRows * (dv + 2) + 64) * sizeof(float);
  const auto room = static_cast<std::int64_t>(shared_bytes / state) / cut.tiles;
  cut.parts = std::clamp<std::int64_t>(std::min({ceil_div(2 * threads, cut.tiles), visible / (kBlockKeys * kLeastBlocks), room}), 1, 2 * threads);
  return cut;
}

/// Tile number `number`; the later tokens of a sequence, which see more, come first.
Item item_of(const AttentionArgs& args, const Cut& cut, std::int64_t number) {
  for (std::size_t s = 0; s < args.batch->sequences.size(); ++s) {
    const Sequence& sequence = args.batch->sequences[s];
    const std::int64_t token_tiles = ceil_div(sequence.tokens, cut.tokens_per_tile), own = token_tiles * cut.head_tiles;
    if (number >= own) {
      number -= own;
      continue;
    }
    const std::int64_t first = (token_tiles - 1 - number / cut.head_tiles) * cut.tokens_per_tile;
    return {.sequence = s, .first_token = sequence.first_token + first, .tokens = std::min(cut.tokens_per_tile, sequence.tokens - first),
            .first_head = number % cut.head_tiles * cut.heads_per_tile};
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
      Tile tile(kernels, args, item_of(args, cut, number), cut, fresh(thread));
      tile.attend(0, 1);
      finish(kernels, args, tile, tile.sums());
    });
    return;
  }
  const std::int64_t dv = args.out.dim(2);
  Sums* states = shared.take<Sums>(cut.tiles * cut.parts);
  for (std::int64_t i = 0; i < cut.tiles * cut.parts; ++i) states[i] = take_sums(shared, kTileRows, dv);
  context_.pool.for_each(cut.tiles * cut.parts, [&](std::int64_t number, int thread) {
    Tile tile(kernels, args, item_of(args, cut, number / cut.parts), cut, fresh(thread));
    tile.attend(number % cut.parts, cut.parts);
    std::copy_n(tile.sums().out, tile.rows() * dv, states[number].out);
    std::copy_n(tile.sums().largest, tile.rows(), states[number].largest);
    std::copy_n(tile.sums().total, tile.rows(), states[number].total);
  });
  context_.pool.for_each(cut.tiles, [&](std::int64_t number, int thread) {
    const Tile tile(kernels, args, item_of(args, cut, number), cut, fresh(thread));
    Sums* parts = states + number * cut.parts;
    for (std::int64_t part = 1; part < cut.parts; ++part) join(kernels, parts[0], parts[part], tile.rows(), dv);
    finish(kernels, args, tile, parts[0]);
  });
}

}  // namespace fathom::cpu
