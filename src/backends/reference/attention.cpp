// Family attention: writing caches, softmax attention over segments, and the indexer's choice.
#include "backends/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "backends/reference/reference_ops.h"
#include "backends/reference/visible.h"
#include "tensor/topk_horizon.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary

void ReferenceOps::cache_write(const CacheWriteArgs& args) {
  const auto write = [&](std::int64_t from, std::int64_t to) {
    store_row(args.cache, to, load_row(args.src, from).values.data());
  };
  for (std::size_t s = 0; s < args.batch->sequences.size(); ++s) {
    const Sequence& sequence = args.batch->sequences[s];
    const std::int64_t slot_row = sequence.slot * args.rows_per_slot, past = sequence.past,
                       end = past + sequence.tokens;
    if (args.rows == RowsOf::kEntry) {
      const std::int64_t first_row = first_entry_row(*args.batch, s, args.ratio);
      for (std::int64_t entry = past / args.ratio; entry < end / args.ratio; ++entry) {
        FATHOM_CHECK(entry < args.rows_per_slot, "a cache is too small");
        write(first_row + entry - past / args.ratio, slot_row + entry);
      }
      continue;
    }
    for (std::int64_t position = past; position < end; ++position) {
      FATHOM_CHECK(args.rows == RowsOf::kRing || position < args.rows_per_slot, "a cache is too small");
      write(sequence.first_token + position - past, slot_row + position % args.rows_per_slot);
    }
  }
}

namespace {
/// Values that are the first columns of keys in INT8 have the keys' scales.
Array load_values(const KvSegment& segment, std::int64_t row, const Array& keys) {
  if (segment.v.dtype != DType::i8 || segment.v.data != segment.k.data) return load_row(segment.v, row);
  Array values(Shape{1, segment.v.dim(1), segment.v.dim(2)});
  for (std::int64_t head = 0; head < segment.v.dim(1); ++head)
    std::copy_n(keys.at(0, head), segment.v.dim(2), values.at(0, head));
  return values;
}
}  // namespace

std::vector<SeenRow> Seen::rows_of(const AttentionArgs& args, std::size_t sequence, std::int64_t token) {
  std::vector<SeenRow> seen;
  for (std::size_t s = 0; s < args.segments.size(); ++s) {
    const KvSegment& segment = args.segments[s];
    for (const VisibleRow& visible : visible_rows(segment, *args.batch, sequence, token)) {
      auto [found, fresh] = loaded_[s].try_emplace(visible.row);
      if (fresh) {
        found->second.k = load_row(segment.k, visible.row);
        found->second.v = load_values(segment, visible.row, found->second.k);
        if (segment.k_shared.defined()) found->second.k_shared = load_row(segment.k_shared, visible.row);
      }
      seen.push_back({.segment = s, .row = visible.row, .loaded = &found->second});
    }
  }
  return seen;
}

double attention_score(const AttentionArgs& args, const double* q, const SeenRow& seen, std::int64_t kv_head) {
  const std::int64_t dk = args.segments[seen.segment].k.dim(2);
  double score = dot(q, seen.loaded->k.at(0, kv_head), dk);
  if (args.segments[seen.segment].k_shared.defined())
    score += dot(q + dk, seen.loaded->k_shared.at(0), args.segments[seen.segment].k_shared.dim(1));
  return args.scale * score;
}

void check_attention_shapes(const AttentionArgs& args) {
  FATHOM_CHECK(args.batch != nullptr && args.q.shape.rank == 3 && args.out.shape.rank == 3 &&
               args.q.dim(0) == args.batch->tokens);
  FATHOM_CHECK(args.out.dim(0) == args.q.dim(0) && args.out.dim(1) == args.q.dim(1));
  FATHOM_CHECK(!args.segments.empty() && args.segments.size() <= 3);
  for (const KvSegment& segment : args.segments) {
    const std::int64_t dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0;
    FATHOM_CHECK(segment.k.dim(2) + dr == args.q.dim(2) && segment.v.dim(2) == args.out.dim(2));
    FATHOM_CHECK(segment.k.dim(1) == segment.v.dim(1) && args.q.dim(1) % segment.k.dim(1) == 0);
  }
}

void ReferenceOps::attention(const AttentionArgs& args) {
  check_attention_shapes(args);
  const std::int64_t heads = args.q.dim(1), dv = args.out.dim(2);
  const Array q = load(args.q);
  const Array sink = args.sink.defined() ? load(args.sink) : Array();
  Array out(args.out.shape), lse(Shape{args.q.dim(0), heads});
  for (std::size_t s = 0; s < args.batch->sequences.size(); ++s) {
    const Sequence& sequence = args.batch->sequences[s];
    Seen cache(args.segments.size());
    for (std::int64_t t = sequence.first_token; t < sequence.first_token + sequence.tokens; ++t) {
      const std::vector<SeenRow> seen = cache.rows_of(args, s, t);
      std::vector<double> weight(seen.size());
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto kv_head = [&](std::size_t i) { return h / (heads / args.segments[seen[i].segment].k.dim(1)); };
        double largest = args.sink.defined() ? *sink.at(h) : -std::numeric_limits<double>::infinity();
        for (std::size_t i = 0; i < seen.size(); ++i) {
          weight[i] = attention_score(args, q.at(t, h), seen[i], kv_head(i));
          largest = std::max(largest, weight[i]);
        }
        double sum = args.sink.defined() ? std::exp(*sink.at(h) - largest) : 0.0;
        for (double& w : weight) sum += w = std::exp(w - largest);
        for (std::size_t i = 0; i < seen.size(); ++i)
          add_scaled(weight[i] / sum, seen[i].loaded->v.at(0, kv_head(i)), out.at(t, h), dv);
        lse.at(t)[h] = largest + std::log(sum);
      }
    }
  }
  store(args.out, out);
  store(args.lse, lse);
}

// Dao 2023: with p the softmax, D = dout · out = sum of p · (dout · v): ds = p · (dout · v - D), dq = scale · ds k, dk
// = scale · ds q, dv = p · dout; the sink, which has no value, gets -p · D.
void ReferenceGradOps::attention_backward(const AttentionGrad& args) {
  const AttentionArgs& f = args.f;
  check_attention_shapes(f);
  FATHOM_CHECK(args.segments.size() == f.segments.size());
  const std::int64_t heads = f.q.dim(1), dv = f.out.dim(2);
  const Array q = load(f.q), dout = load(args.dout);
  const Array sink = f.sink.defined() ? load(f.sink) : Array();
  struct SegmentSums {
    Array k, k_shared, v;
  };
  std::vector<SegmentSums> sums;
  for (const KvSegment& segment : f.segments) {
    FATHOM_CHECK(segment.kind == KvSegment::Kind::kFresh || segment.kind == KvSegment::Kind::kFreshEntries,
                 "caches are not differentiated");
    sums.push_back({Array(segment.k.shape), segment.k_shared.defined() ? Array(segment.k_shared.shape) : Array(),
                    Array(segment.v.shape)});
  }
  Array dq(f.q.shape), dsink(Shape{heads});
  for (std::size_t s = 0; s < f.batch->sequences.size(); ++s) {
    const Sequence& sequence = f.batch->sequences[s];
    Seen cache(f.segments.size());
    for (std::int64_t t = sequence.first_token; t < sequence.first_token + sequence.tokens; ++t) {
      const std::vector<SeenRow> seen = cache.rows_of(f, s, t);
      std::vector<double> p(seen.size()), dp(seen.size());
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto kv_head = [&](std::size_t i) { return h / (heads / f.segments[seen[i].segment].k.dim(1)); };
        double largest = f.sink.defined() ? *sink.at(h) : -std::numeric_limits<double>::infinity(), d = 0;
        for (std::size_t i = 0; i < seen.size(); ++i)
          largest = std::max(largest, p[i] = attention_score(f, q.at(t, h), seen[i], kv_head(i)));
        const double sink_share = f.sink.defined() ? std::exp(*sink.at(h) - largest) : 0.0;
        double sum = sink_share;
        for (double& w : p) sum += w = std::exp(w - largest);
        for (std::size_t i = 0; i < seen.size(); ++i) {
          p[i] /= sum;
          dp[i] = dot(dout.at(t, h), seen[i].loaded->v.at(0, kv_head(i)), dv);
          d += p[i] * dp[i];
        }
        if (f.sink.defined()) *dsink.at(h) -= sink_share / sum * d;
        for (std::size_t i = 0; i < seen.size(); ++i) {
          SegmentSums& into = sums[seen[i].segment];
          const std::int64_t dk = f.segments[seen[i].segment].k.dim(2), dr = f.q.dim(2) - dk, g = kv_head(i);
          const double ds = f.scale * p[i] * (dp[i] - d);
          add_scaled(ds, seen[i].loaded->k.at(0, g), dq.at(t, h), dk);
          add_scaled(ds, q.at(t, h), into.k.at(seen[i].row, g), dk);
          if (dr > 0) {
            add_scaled(ds, seen[i].loaded->k_shared.at(0), dq.at(t, h) + dk, dr);
            add_scaled(ds, q.at(t, h) + dk, into.k_shared.at(seen[i].row), dr);
          }
          add_scaled(p[i], dout.at(t, h), into.v.at(seen[i].row, g), dv);
        }
      }
    }
  }
  add_to(args.dq, dq);
  add_to(args.dsink, dsink);
  for (std::size_t s = 0; s < sums.size(); ++s) {
    add_to(args.segments[s].dk, sums[s].k);
    add_to(args.segments[s].dk_shared, sums[s].k_shared);
    add_to(args.segments[s].dv, sums[s].v);
  }
}

void ReferenceOps::index_select(const IndexSelectArgs& args) {
  const std::int64_t heads = args.q.dim(1), width = args.q.dim(2), count = args.selected.dim(1);
  FATHOM_CHECK(args.weights.dim(1) == heads && args.keys.k.dim(1) == 1 && args.keys.k.dim(2) == width);
  const Array q = load(args.q), weights = load(args.weights);
  std::vector<std::int64_t> selected(static_cast<std::size_t>(args.selected.elements()), -1);
  for (std::size_t s = 0; s < args.batch->sequences.size(); ++s) {
    const Sequence& sequence = args.batch->sequences[s];
    std::unordered_map<std::int64_t, Array> keys;
    for (std::int64_t t = sequence.first_token; t < sequence.first_token + sequence.tokens; ++t) {
      struct Scored {
        double score;
        std::int64_t name;
      };
      std::vector<Scored> scored;
      for (const VisibleRow& visible : visible_rows(args.keys, *args.batch, s, t)) {
        auto [key, fresh] = keys.try_emplace(visible.row);
        if (fresh) key->second = load_row(args.keys.k, visible.row);
        double score = 0;
        for (std::int64_t h = 0; h < heads; ++h) {
          const double match = dot(q.at(t, h), key->second.at(0), width);
          score += weights.at(t)[h] * (match < 0 ? 0.0 : match);
        }
        scored.push_back({args.scale * score, visible.name});
      }
      if (args.batch->topk_horizon > 0) {
        std::vector<TopkCandidate> all(static_cast<std::size_t>(args.batch->topk_horizon / args.keys.ratio));
        for (std::size_t i = 0; i < all.size(); ++i) all[i].name = static_cast<std::int32_t>(i);
        for (const Scored& one : scored) all[static_cast<std::size_t>(one.name)].score = static_cast<float>(one.score);
        const std::int64_t seen = choose_like_torch(all, count);
        scored.clear();
        for (std::int64_t i = 0; i < seen; ++i)
          scored.push_back({all[static_cast<std::size_t>(i)].score, all[static_cast<std::size_t>(i)].name});
      }
      // Largest scores first, ties to the lower row; NaN ranks above everything, so that it is not hidden.
      std::stable_sort(scored.begin(), scored.end(), [](const Scored& a, const Scored& b) {
        return std::isnan(b.score) ? false : std::isnan(a.score) || a.score > b.score;
      });
      if (static_cast<std::int64_t>(scored.size()) > count) scored.resize(static_cast<std::size_t>(count));
      std::sort(scored.begin(), scored.end(), [](const Scored& a, const Scored& b) { return a.name < b.name; });
      for (std::size_t i = 0; i < scored.size(); ++i)
        selected[static_cast<std::size_t>(t * count) + i] = scored[i].name;
    }
  }
  store_ints(args.selected, selected);
}

}  // namespace fathom::reference
