#include "backends/cpu/attention_tile.h"

#include <cmath>
#include <limits>

#include "base/math.h"
#include "tensor/int8_rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kFewRows = 16;  // with so few query rows keys and values are read where they lie
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kSlack =
    8.0f;  // a row's reference score stays until a larger one exceeds it by this: e^8 is far from f32's ends

std::int64_t row_bytes(const Tensor& x) { return x.strides[0] * dtype_bytes(x.dtype); }
std::int64_t head_bytes(const Tensor& x) { return x.strides[1] * dtype_bytes(x.dtype); }

}  // namespace

Sums take_sums(Scratch& scratch, std::int64_t rows, std::int64_t dv) {
  return {scratch.take<float>(rows * dv), scratch.take<float>(rows), scratch.take<float>(rows)};
}

void join(const Kernels& kernels, const Sums& into, const Sums& from, std::int64_t rows, std::int64_t dv) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float now = from.largest[r] > into.largest[r] ? from.largest[r] : into.largest[r];
    if (now == kNothing) {  // nothing but scores of -infinity, or NaN
      into.total[r] += from.total[r];
      continue;
    }
    const float keep = std::exp(into.largest[r] - now), share = std::exp(from.largest[r] - now);
    if (keep != 1.0f) kernels.scale(keep, into.out + r * dv, dv);
    kernels.add_scaled(share, from.out + r * dv, into.out + r * dv, dv);
    into.total[r] = into.total[r] * keep + from.total[r] * share;
    into.largest[r] = now;
  }
}

Tile::Tile(const Kernels& kernels, const AttentionArgs& args, TileShape shape, std::size_t sequence,
           std::int64_t first_token, std::int64_t tokens, std::int64_t first_head, Scratch& scratch)
    : kernels_(kernels),
      args_(args),
      sequence_(sequence),
      first_token_(first_token),
      tokens_(tokens),
      first_head_(first_head),
      heads_(shape.heads),
      rows_(tokens * shape.heads),
      dv_(args.out.dim(2)),
      spans_heads_(shape.spans_heads),
      few_rows_(rows_ <= kFewRows) {
  sums_ = take_sums(scratch, rows_, dv_);
  q_ = scratch.take<const float*>(rows_);
  scores_ = scratch.take<float>(rows_ * kBlockKeys);
  key_rows_ = scratch.take<Row>(kBlockKeys);
  shared_rows_ = scratch.take<Row>(kBlockKeys);
  value_rows_ = scratch.take<Row>(kBlockKeys);
  seen_ = scratch.take<Names>(rows_);
  if (!few_rows_ && !spans_heads_) {
    key_panels_ = scratch.take<float>(args.q.dim(2) * kBlockKeys);
    value_panels_ = scratch.take<float>((dv_ + kMaxPanelWidth) * kBlockKeys);
  }
  if (std::any_of(args.segments.begin(), args.segments.end(),
                  [](const KvSegment& segment) { return segment.k.dtype == DType::i8; })) {
    wide_keys_ = scratch.take<float>(args.q.dim(2) * kBlockKeys);
    if (spans_heads_)
      key_scales_ = scratch.take<float>(rows_ * kBlockKeys), value_scales_ = scratch.take<float>(rows_ * kBlockKeys);
    else
      wide_values_ = scratch.take<float>(dv_ * kBlockKeys);
  }
  for (std::int64_t r = 0; r < rows_; ++r)
    q_[r] = args.q.as<float>() + (first_token + r / heads_) * args.q.strides[0] +
            (first_head + r % heads_) * args.q.strides[1];
  std::fill_n(sums_.out, rows_ * dv_, 0.0f);
  std::fill_n(sums_.largest, rows_, kNothing);
  std::fill_n(sums_.total, rows_, 0.0f);
}

Names Tile::range(const SegmentOfSequence& seen) const {
  return {seen.visible(position(seen, first_token_)).first,
          seen.visible(position(seen, first_token_ + tokens_ - 1)).end};
}

std::int64_t Tile::blocks_of(const SegmentOfSequence& seen) const {
  if (seen.segment().selected.defined()) return ceil_div(seen.segment().selected.dim(1), kBlockKeys);
  const Names names = range(seen);
  return names.end > names.first ? ceil_div(names.end - names.first, kBlockKeys) : 0;
}

void Tile::attend(std::int64_t part, std::int64_t parts) {
  std::int64_t blocks = 0;
  for (const KvSegment& segment : args_.segments)
    blocks += blocks_of(SegmentOfSequence(segment, *args_.batch, sequence_));
  const std::int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
  std::int64_t block = 0;
  for (const KvSegment& segment : args_.segments) {
    const SegmentOfSequence seen(segment, *args_.batch, sequence_);
    const std::int64_t own = blocks_of(seen), from = std::clamp<std::int64_t>(first - block, 0, own),
                       to = std::clamp<std::int64_t>(last - block, 0, own);
    for (std::int64_t i = from; i < to; ++i) {
      if (segment.selected.defined())
        attend_selected(seen, i);
      else
        attend_dense(seen, i);
    }
    block += own;
  }
}

void Tile::attend_dense(const SegmentOfSequence& seen, std::int64_t block) {
  const Names all = range(seen);
  const std::int64_t first = all.first + block * kBlockKeys, count = std::min(kBlockKeys, all.end - first);
  active_ = rows_, active_end_ = 0;
  for (std::int64_t t = 0; t < tokens_; ++t) {
    const Names names = seen.visible(position(seen, first_token_ + t));
    const std::int64_t from = std::clamp<std::int64_t>(names.first - first, 0, count),
                       to = std::clamp<std::int64_t>(names.end - first, from, count);
    for (std::int64_t r = t * heads_; r < (t + 1) * heads_; ++r) seen_[r] = {from, to};
    if (from < to) active_ = std::min(active_, t * heads_), active_end_ = (t + 1) * heads_;
  }
  if (active_ >= active_end_) return;
  for (std::int64_t i = 0; i < count; ++i) point_at(seen, i, seen.row(first + i));
  attend_block(seen.segment(), count);
}

void Tile::attend_selected(const SegmentOfSequence& seen, std::int64_t block) {  // the tile is one token
  const Tensor& selected = seen.segment().selected;
  const Names names = seen.visible(position(seen, first_token_));
  const auto* list = selected.as<std::int32_t>() + first_token_ * selected.strides[0];
  const std::int64_t end = std::min(selected.dim(1), (block + 1) * kBlockKeys);
  std::int64_t count = 0;
  for (std::int64_t i = block * kBlockKeys; i < end; ++i)
    if (list[i] >= names.first && list[i] < names.end) point_at(seen, count++, seen.row(list[i]));
  if (count == 0) return;
  std::fill_n(seen_, rows_, Names{0, count});
  active_ = 0, active_end_ = rows_;
  attend_block(seen.segment(), count);
}

/// Key number i of the block lies in row `row` of the segment.
void Tile::point_at(const SegmentOfSequence& seen, std::int64_t i, std::int64_t row) {
  const KvSegment& segment = seen.segment();
  FATHOM_CHECK(row >= 0 && row < segment.k.dim(0), "a cache is too small");
  const std::int64_t head = first_head_ / (args_.q.dim(1) / segment.k.dim(1));
  if (segment.k.dtype == DType::i8) return point_at_codes(segment, i, row, head);
  key_rows_[i] = segment.k.data + row * row_bytes(segment.k) + head * head_bytes(segment.k);
  value_rows_[i] = segment.v.data + row * row_bytes(segment.v) + head * head_bytes(segment.v);
  if (segment.k_shared.defined()) shared_rows_[i] = segment.k_shared.data + row * row_bytes(segment.k_shared);
}

/// A head's row of a cache in INT8 as f32.
const float* Tile::widened(const Tensor& x, std::int64_t row, std::int64_t head, float* to) const {
  const bool heads = x.shape.rank == 3;
  const std::int64_t n = x.dim(x.shape.rank - 1);
  kernels_.widen(Element::kI8, x.data + row * row_bytes(x) + (heads ? head * head_bytes(x) : 0), n, to);
  kernels_.scale(*int8_scale(x, row, head), to, n);
  return to;
}

void Tile::point_at_codes(const KvSegment& segment, std::int64_t i, std::int64_t row, std::int64_t head) {
  const auto bytes = [](const float* x) { return reinterpret_cast<Row>(x); };
  const std::int64_t dk = segment.k.dim(2), dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
  const bool same = segment.v.data == segment.k.data;
  if (dr > 0) shared_rows_[i] = bytes(widened(segment.k_shared, row, 0, wide_keys_ + dk * kBlockKeys + i * dr));
  if (!spans_heads_) {
    key_rows_[i] = bytes(widened(segment.k, row, head, wide_keys_ + i * dk));
    value_rows_[i] = same ? key_rows_[i] : bytes(widened(segment.v, row, head, wide_values_ + i * dv_));
    return;
  }
  key_rows_[i] = segment.k.data + row * row_bytes(segment.k) + head * head_bytes(segment.k);
  value_rows_[i] = segment.v.data + row * row_bytes(segment.v) + head * head_bytes(segment.v);
  const std::int64_t heads = rows_ / (args_.q.dim(1) / segment.k.dim(1));
  const float *keys = int8_scale(segment.k, row, head), *values = same ? keys : int8_scale(segment.v, row, head);
  for (std::int64_t h = 0; h < heads; ++h)
    key_scales_[h * kBlockKeys + i] = keys[h], value_scales_[h * kBlockKeys + i] = values[h];
}

/// What kernels read where point_at has pointed.
Element Tile::element(const Tensor& x) const {
  return x.dtype == DType::i8 && (!spans_heads_ || x.shape.rank == 2) ? Element::kF32 : element_of(x.dtype);
}

/// Scores, or weights, of a tile that spans heads, each times its key's scale.
void Tile::times_scales(const float* scales, std::int64_t heads, std::int64_t count) {
  const std::int64_t group = rows_ / heads;
  for (std::int64_t r = 0; r < rows_; ++r)
    for (std::int64_t i = 0; i < count; ++i) scores_[r * kBlockKeys + i] *= scales[r / group * kBlockKeys + i];
}

void Tile::attend_block(const KvSegment& segment, std::int64_t count) {
  score(segment, count);
  for (std::int64_t r = active_; r < active_end_; ++r) soften(r, count);
  mix(segment, count);
}

/// Rows of a tensor [rows, kv_heads, n] as a tile that spans heads reads them.
HeadRows Tile::head_rows(const Tensor& x, const Row* rows, std::int64_t count) const {
  const std::int64_t group = args_.q.dim(1) / x.dim(1);
  return {.element = element(x),
          .rows = rows,
          .row_count = count,
          .heads = rows_ / group,
          .head_bytes = head_bytes(x),
          .group = group,
          .n = x.dim(2)};
}

/// scores_[r][i] = q · key i, unscaled.
void Tile::score(const KvSegment& segment, std::int64_t count) {
  const std::int64_t dk = segment.k.dim(2), dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
  const Element own = element(segment.k), shared = dr > 0 ? element(segment.k_shared) : own;
  float* out = scores_ + active_ * kBlockKeys;
  const std::int64_t rows = active_end_ - active_;
  if (spans_heads_) {
    const HeadRows keys = head_rows(segment.k, key_rows_, count);
    kernels_.dot_heads({.in = keys, .x = q_, .out = out, .out_stride = kBlockKeys});
    if (segment.k.dtype == DType::i8) times_scales(key_scales_, keys.heads, count);
  } else if (few_rows_) {
    kernels_.dot_rows({.element = own,
                       .rows = key_rows_,
                       .row_count = count,
                       .k = dk,
                       .x = q_ + active_,
                       .m_count = rows,
                       .out = out,
                       .out_stride = kBlockKeys});
  } else {
    kernels_.pack_transposed({.element = own,
                              .rows = key_rows_,
                              .row_count = count,
                              .count = dk,
                              .panels = key_panels_,
                              .panel_depth = dk + dr});
    if (dr > 0)
      kernels_.pack_transposed({.element = shared,
                                .rows = shared_rows_,
                                .row_count = count,
                                .count = dr,
                                .panels = key_panels_,
                                .panel_depth = dk + dr,
                                .depth_first = dk});
    kernels_.panel_product({.a = q_ + active_,
                            .m_count = rows,
                            .panels = key_panels_,
                            .depth = dk + dr,
                            .columns = count,
                            .c = out,
                            .c_stride = kBlockKeys});
    return;
  }
  if (dr > 0)
    kernels_.dot_rows({.element = shared,
                       .rows = shared_rows_,
                       .row_count = count,
                       .k = dr,
                       .x = q_ + active_,
                       .x_offset = dk,
                       .m_count = rows,
                       .out = out,
                       .out_stride = kBlockKeys,
                       .accumulate = true});
}

/// Scores of what a row sees become exponentials against its reference score, the others zero. When the reference
/// changes, what was summed so far is brought to the new one.
void Tile::soften(std::int64_t r, std::int64_t count) {
  float* s = scores_ + r * kBlockKeys;
  const auto [from, to] = seen_[r];
  std::fill(s, s + from, 0.0f);
  std::fill(s + to, s + count, 0.0f);
  if (from >= to) return;
  const auto scale = static_cast<float>(args_.scale);
  const float before = sums_.largest[r], here = scale * kernels_.largest(s + from, to - from),
              now = here <= before + kSlack ? before : here;
  if (now == kNothing) {  // scores of -infinity have no weight; NaN is not hidden
    for (std::int64_t i = from; i < to; ++i) sums_.total[r] += s[i] = s[i] != s[i] ? s[i] : 0.0f;
    return;
  }
  const float sum = kernels_.exponentials(s + from, scale, now, s + from, to - from);
  const float keep = before == now ? 1.0f : std::exp(before - now);
  sums_.total[r] = sums_.total[r] * keep + sum;
  sums_.largest[r] = now;
  if (keep != 1.0f && before != kNothing) kernels_.scale(keep, sums_.out + r * dv_, dv_);
}

/// out += scores · values. A row that sees only some of the keys must not meet the values of the others when these are
/// not finite: zero times infinity is not zero.
void Tile::mix(const KvSegment& segment, std::int64_t count) {
  const Element own = element(segment.v);
  if (spans_heads_) {  // one token: all its rows see the same
    const HeadRows values = head_rows(segment.v, value_rows_, count);
    if (segment.v.dtype == DType::i8) times_scales(value_scales_, values.heads, count);
    kernels_.combine_heads({.in = values, .p = scores_, .p_stride = kBlockKeys, .y = sums_.out, .y_stride = dv_});
    return;
  }
  bool all_seen = true;
  for (std::int64_t r = active_; r < active_end_; ++r)
    all_seen = all_seen && seen_[r].first == 0 && seen_[r].end == count;
  if (!few_rows_)
    kernels_.pack_straight({.element = own,
                            .rows = value_rows_,
                            .row_count = count,
                            .count = dv_,
                            .panels = value_panels_,
                            .panel_depth = count});
  const std::int64_t panel_elements = ceil_div(dv_, kernels_.panel_width) * kernels_.panel_width * count;
  if (few_rows_ || (!all_seen && !kernels_.finite(value_panels_, panel_elements))) {
    const bool together = all_seen && few_rows_;
    for (std::int64_t r = active_; r < active_end_; r += together ? active_end_ - active_ : 1)
      kernels_.combine_rows({.element = own,
                             .rows = value_rows_ + seen_[r].first,
                             .row_count = seen_[r].end - seen_[r].first,
                             .n = dv_,
                             .p = scores_ + r * kBlockKeys + seen_[r].first,
                             .p_stride = kBlockKeys,
                             .m_count = together ? active_end_ - active_ : 1,
                             .y = sums_.out + r * dv_,
                             .y_stride = dv_,
                             .accumulate = true});
    return;
  }
  const float* p[kTileRows];
  for (std::int64_t r = active_; r < active_end_; ++r) p[r - active_] = scores_ + r * kBlockKeys;
  kernels_.panel_product({.a = p,
                          .m_count = active_end_ - active_,
                          .panels = value_panels_,
                          .depth = count,
                          .columns = dv_,
                          .c = sums_.out + active_ * dv_,
                          .c_stride = dv_,
                          .accumulate = true});
}

void Tile::finish(const Sums& sums) const {
  for (std::int64_t r = 0; r < rows_; ++r) {
    const std::int64_t t = first_token_ + r / heads_, h = first_head_ + r % heads_;
    float largest = sums.largest[r], total = sums.total[r], share = 1.0f;
    if (args_.sink.defined()) {
      float sink = 0;
      kernels_.widen(element_of(args_.sink.dtype), args_.sink.data + h * dtype_bytes(args_.sink.dtype), 1, &sink);
      const float before = largest;
      largest = before > sink ? before : sink;
      share = std::exp(before - largest);
      total = total * share + std::exp(sink - largest);
    }
    float* out = args_.out.as<float>() + t * args_.out.strides[0] + h * args_.out.strides[1];
    std::copy_n(sums.out + r * dv_, dv_, out);
    kernels_.scale(share / total, out, dv_);
    if (args_.lse.defined())
      args_.lse.as<float>()[t * args_.lse.strides[0] + h * args_.lse.strides[1]] = largest + std::log(total);
  }
}

}  // namespace fathom::cpu
