#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace fathom::engine {

Status check_sampling(const SamplingOptions& o) {
  const auto bad = [](const char* name, const char* range) {
    return fail("engine.sampling_range", {{"name", name}, {"range", range}});
  };
  if (!(o.temperature >= 0 && o.temperature <= 100)) return bad("temperature", "0 … 100");
  if (o.top_k < 0) return bad("top-k", "≥ 0");
  if (!(o.top_p > 0 && o.top_p <= 1)) return bad("top-p", "0 < p ≤ 1");
  if (!(o.min_p >= 0 && o.min_p <= 1)) return bad("min-p", "0 … 1");
  if (!(o.repetition_penalty > 0 && o.repetition_penalty <= 100)) return bad("repetition-penalty", "0 < r ≤ 100");
  return {};
}

Sampler::Sampler(const SamplingOptions& options, std::int64_t vocabulary)
    : options_(options),
      state_(options.seed),
      seen_((static_cast<std::size_t>(vocabulary) + 31) / 32, 0),
      scores_(static_cast<std::size_t>(vocabulary)) {}

void Sampler::add_history(std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids)
    if (id >= 0 && static_cast<std::size_t>(id) < scores_.size())
      seen_[static_cast<std::size_t>(id) / 32] |= 1u << (id % 32);
}

std::uint32_t Sampler::draw() {  // SplitMix64 (Steele, Lea, Flood 2014)
  state_ += 0x9e3779b97f4a7c15ull;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>((z ^ (z >> 31)) >> 32);
}

tensor::SamplingRow Sampler::next_row() {
  tensor::SamplingRow row{.penalty = static_cast<float>(options_.repetition_penalty)};
  if (options_.temperature <= 0) return row;
  row.per_octave = 1 / (options_.temperature * std::numbers::ln2);
  row.draw = draw();
  row.top_k = options_.top_k;
  if (options_.top_p < 1) row.top_p = std::max<std::uint64_t>(static_cast<std::uint64_t>(options_.top_p * 0x1p32), 1);
  row.least = static_cast<std::uint64_t>(std::ceil(options_.min_p * std::ldexp(1.0, tensor::kWeightBits)));
  return row;
}

Result<std::int32_t> Sampler::chosen(std::int32_t id) {
  if (id < 0) return fail("engine.no_finite_logit");
  add_history({&id, 1});
  return id;
}

// The first `count` in rank; their order is open.
void Sampler::keep_best(std::int64_t count) {
  if (count >= std::ssize(kept_)) return;
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = scores_[static_cast<std::size_t>(a)], y = scores_[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::nth_element(kept_.begin(), kept_.begin() + count, kept_.end(), before);
  kept_.resize(static_cast<std::size_t>(count));
}

// The shortest beginning of the ranking that has this share of the weights.
void Sampler::keep_share(std::uint64_t share) {
  std::uint64_t sum = 0;
  for (const std::int32_t id : kept_) sum += weights_[static_cast<std::size_t>(id)];
  const std::uint64_t needed = std::max<std::uint64_t>(tensor::share_of(sum, share), 1);
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = scores_[static_cast<std::size_t>(a)], y = scores_[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  // Halves: the better one is kept whole and the search goes on in the other, or the other is given up.
  auto first = kept_.begin(), last = kept_.end();
  std::uint64_t reached = 0;
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, before);
    std::uint64_t half = 0;
    for (auto at = first; at != middle; ++at) half += weights_[static_cast<std::size_t>(*at)];
    if (reached + half >= needed) {
      last = middle;
    } else {
      reached += half;
      first = middle;
    }
  }
  kept_.erase(last, kept_.end());
}

Result<std::int32_t> Sampler::sample(std::span<const float> logits) {
  FATHOM_CHECK(logits.size() == scores_.size());
  const tensor::SamplingRow row = next_row();
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    scores_[i] = tensor::sampling_score(logits[i], row.penalty, row.penalty != 1 && is_seen(i));
    if (scores_[i] > scores_[best]) best = i;
  }
  if (logits.empty() || !std::isfinite(scores_[best])) return chosen(-1);
  if (row.per_octave == 0) return chosen(static_cast<std::int32_t>(best));
  weights_.resize(logits.size());
  kept_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    weights_[i] = tensor::sampling_weight(scores_[i], scores_[best], row.per_octave);
    if (weights_[i] > 0)
      kept_.push_back(static_cast<std::int32_t>(i));  // what weighs nothing ranks behind all that does
  }
  if (row.top_k > 0) keep_best(row.top_k);
  if (row.top_p > 0) keep_share(row.top_p);
  std::sort(kept_.begin(), kept_.end());
  std::uint64_t total = 0, sum = 0;
  for (const std::int32_t id : kept_)
    if (weights_[static_cast<std::size_t>(id)] >= row.least) total += weights_[static_cast<std::size_t>(id)];
  const std::uint64_t target = tensor::share_of(total, row.draw);
  for (const std::int32_t id : kept_) {
    const std::uint64_t weight = weights_[static_cast<std::size_t>(id)];
    if (weight < row.least) continue;
    sum += weight;
    if (sum > target) return chosen(id);
  }
  return chosen(static_cast<std::int32_t>(best));
}

}  // namespace fathom::engine
