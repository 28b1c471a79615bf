// Family attention, caches: writing rows, and the indexer's choice of rows.
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/visible.h"
#include "tensor/int8_rows.h"
#include "tensor/topk_horizon.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kScoredKeys = 64;

/// A head's row as codes of INT8.
void write_codes(const float* x, std::int64_t n, std::byte* to, float& scale) {
  float largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < n; ++i) {
    const float size = std::fabs(x[i]);
    largest = size > largest ? size : largest;
    finite = finite && size <= std::numeric_limits<float>::max();
  }
  scale = largest / 127.0f;
  if (scale == 0.0f) scale = 1.0f;
  auto* codes = reinterpret_cast<std::int8_t*>(to);
  if (!finite) {
    scale = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(codes, n, std::int8_t{0});
    return;
  }
  constexpr float kToWhole = 0x1.8p23f;  // added and taken away again, it leaves the nearest whole number
  for (std::int64_t i = 0; i < n; ++i) {
    const float code = x[i] / scale + kToWhole - kToWhole;
    codes[i] = static_cast<std::int8_t>(code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code);
  }
}

/// Copies row `from` of src to row `to` of cache, converting; all dimensions behind the first are one row.
void write_row(const Kernels& kernels, const Tensor& src, std::int64_t from, const Tensor& cache, std::int64_t to) {
  const Tensor a = src.rows(from, 1), b = cache.rows(to, 1);
  const RowsOfTensor x(a), y(b);
  FATHOM_CHECK(x.rows() == y.rows() && x.n() == y.n());
  if (cache.dtype != DType::i8 && src.dtype != cache.dtype && a.contiguous() && b.contiguous())
    return kernels.narrow(element_of(cache.dtype), x.floats(0), a.elements(), b.data);
  for (std::int64_t i = 0; i < x.rows(); ++i) {
    if (cache.dtype == DType::i8)
      write_codes(x.floats(i), x.n(), y.at(i), *int8_scale(b, 0, i));
    else if (src.dtype == cache.dtype)
      std::memcpy(y.at(i), x.at(i), static_cast<std::size_t>(x.n() * dtype_bytes(src.dtype)));
    else
      kernels.narrow(element_of(cache.dtype), x.floats(i), x.n(), y.at(i));
  }
}

/// A row that may be chosen. NaN counts as the largest score, so that it is not hidden.
struct Candidate {
  float score = 0;
  std::int32_t name = 0;
};
bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.name < b.name);
}

/// Keeps the best `wanted` of what is offered in ascending order of names.
class Best {
 public:
  Best(Candidate* room, std::int64_t wanted) : all_(room), wanted_(wanted) {}
  static std::int64_t room_for(std::int64_t wanted) { return 2 * wanted + kScoredKeys; }
  void offer(float score, std::int64_t name) {
    if (std::isnan(score)) score = std::numeric_limits<float>::infinity();
    if (full_ && score <= least_) return;  // a tie goes to the lower name, which came before
    all_[count_++] = {score, static_cast<std::int32_t>(name)};
    if (count_ == room_for(wanted_)) shrink();
  }
  std::int64_t finish() {
    if (count_ > wanted_) shrink();
    return count_;
  }

 private:
  void shrink() {
    std::nth_element(all_, all_ + wanted_ - 1, all_ + count_, better);
    count_ = wanted_;
    least_ = all_[wanted_ - 1].score;
    full_ = true;
  }
  Candidate* all_;
  std::int64_t wanted_, count_ = 0;
  float least_ = 0;
  bool full_ = false;
};

/// Scores of `count` keys from `first` on: scale · sum over heads of weight · relu(q · key), to scores_[head 0].
class Indexer {
 public:
  Indexer(const Kernels& kernels, const IndexSelectArgs& args, Scratch& scratch)
      : kernels_(kernels), args_(args), heads_(args.q.dim(1)), d_(args.q.dim(2)) {
    q_ = scratch.take<const float*>(heads_);
    rows_ = scratch.take<Row>(kScoredKeys);
    panels_ = scratch.take<float>(d_ * kScoredKeys);
    matches_ = scratch.take<float>(heads_ * kScoredKeys);
    scores_ = scratch.take<float>(kScoredKeys);
  }
  const float* score(const SegmentOfSequence& seen, std::int64_t token, std::int64_t first, std::int64_t count) {
    const Tensor& k = seen.segment().k;
    for (std::int64_t h = 0; h < heads_; ++h)
      q_[h] = args_.q.as<float>() + token * args_.q.strides[0] + h * args_.q.strides[1];
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = seen.row(first + i);
      FATHOM_CHECK(row >= 0 && row < k.dim(0), "a cache is too small");
      rows_[i] = k.data + row * k.strides[0] * dtype_bytes(k.dtype);
    }
    kernels_.pack_transposed({.element = element_of(k.dtype),
                              .rows = rows_,
                              .row_count = count,
                              .count = d_,
                              .panels = panels_,
                              .panel_depth = d_});
    kernels_.panel_product({.a = q_,
                            .m_count = heads_,
                            .panels = panels_,
                            .depth = d_,
                            .columns = count,
                            .c = matches_,
                            .c_stride = kScoredKeys});
    std::fill_n(scores_, count, 0.0f);
    const float* weights = args_.weights.as<float>() + token * args_.weights.strides[0];
    if (k.dtype == DType::i8)
      for (std::int64_t i = 0; i < count; ++i) {
        const float scale = *int8_scale(k, seen.row(first + i), 0);
        for (std::int64_t h = 0; h < heads_; ++h) matches_[h * kScoredKeys + i] *= scale;
      }
    for (std::int64_t h = 0; h < heads_; ++h)
      kernels_.add_scaled_relu(weights[h], matches_ + h * kScoredKeys, scores_, count);
    kernels_.scale(static_cast<float>(args_.scale), scores_, count);
    return scores_;
  }

 private:
  const Kernels& kernels_;
  const IndexSelectArgs& args_;
  std::int64_t heads_, d_;
  const float** q_;
  Row* rows_;
  float *panels_, *matches_, *scores_;
};

std::size_t sequence_of(const Batch& batch, std::int64_t token) {
  std::size_t s = 0;
  while (token >= batch.sequences[s].first_token + batch.sequences[s].tokens) ++s;
  return s;
}

}  // namespace

void CpuOps::cache_write(const CacheWriteArgs& args) {
  const Kernels& kernels = context_.kernels;
  const std::int64_t cost = args.cache.dim(0) > 0 ? args.cache.elements() / args.cache.dim(0) : 0;
  std::int64_t first_entry_row = 0;
  for (const Sequence& sequence : args.batch->sequences) {
    const std::int64_t slot_row = sequence.slot * args.rows_per_slot, past = sequence.past,
                       end = past + sequence.tokens;
    if (args.rows == RowsOf::kEntry) {
      const std::int64_t first = past / args.ratio;
      FATHOM_CHECK(end / args.ratio <= args.rows_per_slot, "a cache is too small");
      for_ranges(context_.pool, end / args.ratio - first, cost, [&](std::int64_t from, std::int64_t to, int) {
        for (std::int64_t i = from; i < to; ++i)
          write_row(kernels, args.src, first_entry_row + i, args.cache, slot_row + first + i);
      });
      first_entry_row += max_entries(sequence.tokens, args.ratio);
      continue;
    }
    FATHOM_CHECK(args.rows == RowsOf::kRing || end <= args.rows_per_slot, "a cache is too small");
    const std::int64_t first = std::max(past, end - args.rows_per_slot);  // of a ring only the last rows survive
    for_ranges(context_.pool, end - first, cost, [&](std::int64_t from, std::int64_t to, int) {
      for (std::int64_t i = from; i < to; ++i)
        write_row(kernels, args.src, sequence.first_token + first + i - past, args.cache,
                  slot_row + (first + i) % args.rows_per_slot);
    });
  }
}

// Of verify alone: see tensor/topk_horizon.h.
void CpuOps::select_like_torch(const IndexSelectArgs& args) {
  const std::int64_t wanted = args.selected.dim(1);
  std::vector<TopkCandidate> all(static_cast<std::size_t>(args.batch->topk_horizon / args.keys.ratio));
  for (std::int64_t token = 0; token < args.q.dim(0); ++token) {
    const SegmentOfSequence seen(args.keys, *args.batch, sequence_of(*args.batch, token));
    const Names names = seen.visible(seen.sequence().past + token - seen.sequence().first_token);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = {.name = static_cast<std::int32_t>(i)};
    Indexer indexer(context_.kernels, args, fresh(0));
    for (std::int64_t at = names.first; at < names.end; at += kScoredKeys) {
      const std::int64_t block = std::min(kScoredKeys, names.end - at);
      const float* scores = indexer.score(seen, token, at, block);
      for (std::int64_t i = 0; i < block; ++i) all[static_cast<std::size_t>(at + i)].score = scores[i];
    }
    const std::int64_t count = choose_like_torch(all, wanted);
    std::sort(all.begin(), all.begin() + count,
              [](const TopkCandidate& a, const TopkCandidate& b) { return a.name < b.name; });
    auto* out = args.selected.as<std::int32_t>() + token * args.selected.strides[0];
    for (std::int64_t i = 0; i < wanted; ++i) out[i] = i < count ? all[static_cast<std::size_t>(i)].name : -1;
  }
}

void CpuOps::index_select(const IndexSelectArgs& args) {
  const std::int64_t heads = args.q.dim(1), width = args.q.dim(2), wanted = args.selected.dim(1),
                     tokens = args.q.dim(0);
  FATHOM_CHECK(args.weights.dim(1) == heads && args.keys.k.dim(1) == 1 && args.keys.k.dim(2) == width &&
               args.selected.dtype == DType::i32);
  FATHOM_CHECK(is_f32(args.q) && is_f32(args.weights) && args.selected.dim(0) == tokens);
  if (wanted == 0 || tokens == 0) return;
  if (args.batch->topk_horizon > 0) return select_like_torch(args);
  Scratch& shared = fresh_shared();
  const int threads = context_.pool.size();
  const std::int64_t room = Best::room_for(wanted),
                     rooms_left = static_cast<std::int64_t>(shared.left() / 2 / sizeof(Candidate)) / room;
  const std::int64_t parts =
      tokens >= threads ? 1 : std::max<std::int64_t>(1, std::min((threads + tokens - 1) / tokens, rooms_left / tokens));
  // The keys of one token are shared among threads when there are few tokens; each part keeps its own best.
  Candidate* rooms = shared.take<Candidate>((parts > 1 ? tokens : threads) * parts * room);
  std::int64_t* counts = shared.take<std::int64_t>(tokens * parts);
  const auto room_of = [&](std::int64_t token, std::int64_t part, int thread) {
    return rooms + (parts > 1 ? token * parts + part : thread) * room;
  };
  const auto store = [&](std::int64_t token, Candidate* chosen, std::int64_t count) {
    std::sort(chosen, chosen + count, [](const Candidate& a, const Candidate& b) { return a.name < b.name; });
    auto* out = args.selected.as<std::int32_t>() + token * args.selected.strides[0];
    for (std::int64_t i = 0; i < wanted; ++i) out[i] = i < count ? chosen[i].name : -1;
  };
  context_.pool.for_each(tokens * parts, [&](std::int64_t task, int thread) {
    const std::int64_t token = task / parts, part = task % parts;
    const std::size_t s = sequence_of(*args.batch, token);
    const SegmentOfSequence seen(args.keys, *args.batch, s);
    const Names names = seen.visible(seen.sequence().past + token - seen.sequence().first_token);
    const std::int64_t count = std::max<std::int64_t>(0, names.end - names.first);
    const std::int64_t first = names.first + count * part / parts, last = names.first + count * (part + 1) / parts;
    Candidate* own = room_of(token, part, thread);
    Best best(own, wanted);
    Indexer indexer(context_.kernels, args, fresh(thread));
    for (std::int64_t at = first; at < last; at += kScoredKeys) {
      const std::int64_t block = std::min(kScoredKeys, last - at);
      const float* scores = indexer.score(seen, token, at, block);
      for (std::int64_t i = 0; i < block; ++i) best.offer(scores[i], at + i);
    }
    counts[task] = best.finish();
    if (parts == 1) store(token, own, counts[task]);
  });
  if (parts == 1) return;
  for (std::int64_t token = 0; token < tokens; ++token) {
    Candidate* all = room_of(token, 0, 0);
    std::int64_t count = counts[token * parts];
    for (std::int64_t part = 1; part < parts; ++part) {  // gathered at the front, then cut again
      std::copy_n(room_of(token, part, 0), counts[token * parts + part], all + count);
      count += counts[token * parts + part];
      if (count > wanted) std::nth_element(all, all + wanted - 1, all + count, better), count = wanted;
    }
    store(token, all, count);
  }
}

}  // namespace fathom::cpu
