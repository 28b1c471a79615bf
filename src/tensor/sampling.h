// Choosing a token from a row of logits, in arithmetic whose result does not depend on who computes it: weights are
// whole numbers, so that sums are exact in any order. The host's Sampler (engine/sampler.h) and devices share it, and
// choose the same token for the same random number.
//
// A score is a logit after the repetition penalty (seen tokens: divided when positive, multiplied when not); NaN counts
// as minus infinity. Tokens rank by score, the lower id first among equals. Greedy takes the first. Else a token's
// weight is 2^40 · exp((score - best) / temperature), and those stay that are among the first top_k, then in the
// shortest beginning of these whose weights reach the share top_p, then of weight min_p · 2^40 or more. Of what stays,
// in the order of ids, the first is taken whose weight brings the sum above draw / 2^32 of all.
#pragma once
#include <bit>
#include <cstdint>
#include <limits>

namespace fathom::tensor {

/// What one row asks for, as a device reads it.
struct SamplingRow {
  double per_octave = 0;    // 1 / (temperature · ln 2); 0: greedy
  float penalty = 1;        // 1: none
  std::uint32_t draw = 0;   // random
  std::int64_t top_k = 0;   // 0: all
  std::uint64_t top_p = 0;  // share · 2^32; 0: all
  std::uint64_t least = 0;  // min_p · 2^40
  std::int64_t seen = 0;    // row of the seen tokens' bits
};
static_assert(sizeof(SamplingRow) == 48);

inline constexpr int kWeightBits = 40;  // the best token's weight is 2^40

/// The score of a logit.
constexpr float sampling_score(float logit, float penalty, bool seen) {
  const float score = !seen || penalty == 1.0f ? logit : logit > 0 ? logit / penalty : logit * penalty;
  if (score != score) return -std::numeric_limits<float>::infinity();
  return score == 0 ? 0.0f : score;  // one zero
}
/// Ascending with the score.
constexpr std::uint32_t sampling_key(float score) {
  const auto bits = std::bit_cast<std::uint32_t>(score);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
constexpr float score_of_key(std::uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/// 2^-x in 32 fractional bits, x of as many, below 1. Horner's scheme of the series of exp, its terms of either sign in
/// turns.
constexpr std::uint64_t power_of_half(std::uint64_t x) {
  constexpr std::uint64_t terms[] = {437,       5676,       65510,      661577,    5726720, 41309550,
                                     238388332, 1031764991, 2977044472, 4294967296};  // (ln 2)^k / k! · 2^32, k = 9 … 0
  std::uint64_t sum = terms[0];
  for (int i = 1; i < 10; ++i) sum = terms[i] - (x * sum >> 32);
  return sum;
}
constexpr std::uint64_t sampling_weight(float score, float best, double per_octave) {
  const double octaves = (static_cast<double>(best) - static_cast<double>(score)) * per_octave;
  if (!(octaves < kWeightBits + 1)) return 0;
  const auto fixed = static_cast<std::uint64_t>(octaves * 4294967296.0);
  return power_of_half(fixed & 0xffffffffu) << (kWeightBits - 32) >> (fixed >> 32);
}
/// share / 2^32 of a sum.
constexpr std::uint64_t share_of(std::uint64_t sum, std::uint64_t share) {
  return (sum >> 32) * share + ((sum & 0xffffffffu) * share >> 32);
}

}  // namespace fathom::tensor
