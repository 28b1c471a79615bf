#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace fathom::engine {

Status check_sampling(const SamplingOptions& o) {
  const auto bad = [](const char* name, const char* range) { return fail("engine.sampling_range", {{"name", name}, {"range", range}}); };
  if (!(o.temperature >= 0 && o.temperature <= 100)) return bad("temperature", "0 … 100");
  if (o.top_k < 0) return bad("top-k", "≥ 0");
  if (!(o.top_p > 0 && o.top_p <= 1)) return bad("top-p", "0 < p ≤ 1");
  if (!(o.min_p >= 0 && o.min_p <= 1)) return bad("min-p", "0 … 1");
  if (!(o.repetition_penalty > 0 && o.repetition_penalty <= 100)) return bad("repetition-penalty", "0 < r ≤ 100");
  return {};
}

Sampler::Sampler(const SamplingOptions& options, std::int64_t vocabulary)
    : options_(options), state_(options.seed), seen_(static_cast<std::size_t>(vocabulary), false), scores_(static_cast<std::size_t>(vocabulary)), order_(static_cast<std::size_t>(vocabulary)) {}

void Sampler::add_history(std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids)
    if (id >= 0 && static_cast<std::size_t>(id) < seen_.size()) seen_[static_cast<std::size_t>(id)] = true;
}

double Sampler::uniform() {  // SplitMix64 (Steele, Lea, Flood 2014)
  state_ += 0x9e3779b97f4a7c15ull;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

Result<std::int32_t> Sampler::sample(std::span<const float> logits) {
  FATHOM_CHECK(logits.size() == scores_.size());
  const auto penalty = static_cast<float>(options_.repetition_penalty);
  std::size_t best = logits.size();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    float score = logits[i];
    if (seen_[i] && penalty != 1.0f) score = score > 0 ? score / penalty : score * penalty;
    if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
    scores_[i] = score;
    if (best == logits.size() || score > scores_[best]) best = i;
  }
  if (best == logits.size() || !std::isfinite(scores_[best])) return fail("engine.no_finite_logit");
  std::size_t chosen = best;
  if (options_.temperature > 0) {
    // Candidates in descending order; only as many as top_k asks for need sorting.
    std::iota(order_.begin(), order_.end(), 0);
    const auto descending = [&](std::int32_t a, std::int32_t b) { return scores_[static_cast<std::size_t>(a)] != scores_[static_cast<std::size_t>(b)] ? scores_[static_cast<std::size_t>(a)] > scores_[static_cast<std::size_t>(b)] : a < b; };
    const std::size_t keep = options_.top_k > 0 ? std::min(order_.size(), static_cast<std::size_t>(options_.top_k)) : order_.size();
    if (keep < order_.size()) std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(keep), order_.end(), descending);
    else if (options_.top_p < 1) std::sort(order_.begin(), order_.end(), descending);
    const double top = scores_[best];
    double sum = 0;
    const auto weight = [&](std::size_t rank) { return std::exp((static_cast<double>(scores_[static_cast<std::size_t>(order_[rank])]) - top) / options_.temperature); };
    for (std::size_t r = 0; r < keep; ++r) sum += weight(r);
    std::size_t nucleus = keep;
    if (options_.top_p < 1) {
      double reached = 0;
      for (nucleus = 0; nucleus < keep && reached < options_.top_p * sum;) reached += weight(nucleus++);
    }
    double total = 0;
    const auto kept = [&](std::size_t rank) { return weight(rank) >= options_.min_p; };  // the best token's weight is 1
    for (std::size_t r = 0; r < nucleus; ++r)
      if (kept(r)) total += weight(r);
    double target = uniform() * total;
    for (std::size_t r = 0; r < nucleus; ++r) {
      if (!kept(r)) continue;
      chosen = static_cast<std::size_t>(order_[r]);
      target -= weight(r);
      if (target < 0) break;
    }
  }
  seen_[chosen] = true;
  return static_cast<std::int32_t>(chosen);
}

}  // namespace fathom::engine
