// Choosing the next token from logits.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "tensor/sampling.h"

namespace fathom::engine {

struct SamplingOptions {
  double temperature = 0;         // 0: greedy
  std::int64_t top_k = 0;         // 0: all
  double top_p = 1, min_p = 0;    // nucleus; least share of the best token's probability
  double repetition_penalty = 1;  // Keskar et al. 2019: of tokens in prompt and answer
  std::uint64_t seed = 0;
};
Status check_sampling(const SamplingOptions& options);

/// Deterministic for a seed and a sequence of logits, wherever they are: tensor/sampling.h says how a token is chosen.
/// Not thread-safe.
class Sampler {
 public:
  Sampler(const SamplingOptions& options, std::int64_t vocabulary);
  /// Tokens that repetition_penalty looks at: the prompt, then every sampled token (added by sample itself).
  void add_history(std::span<const std::int32_t> ids);
  /// The filters apply in this order: repetition penalty, temperature, top_k, top_p, min_p. Greedy takes the lowest id
  /// among equals. NaN logits are never chosen; when nothing is left, the error says that the model computes NaN.
  Result<std::int32_t> sample(std::span<const float> logits);

  /// What the next token is chosen by, for a device that holds the logits and the bits of seen(): one draw goes by.
  tensor::SamplingRow next_row();
  /// What the device chose (negative: nothing finite); the error as above.
  Result<std::int32_t> chosen(std::int32_t id);
  bool uses_history() const { return options_.repetition_penalty != 1; }
  /// One bit a token, 32 a word.
  std::span<const std::uint32_t> seen() const { return seen_; }

 private:
  std::uint32_t draw();
  bool is_seen(std::size_t id) const { return (seen_[id / 32] >> (id % 32) & 1u) != 0; }
  void keep_best(std::int64_t count);
  void keep_share(std::uint64_t share);
  SamplingOptions options_;
  std::uint64_t state_;
  std::vector<std::uint32_t> seen_;
  std::vector<float> scores_;
  std::vector<std::uint64_t> weights_;
  std::vector<std::int32_t> kept_;  // ids that are still in question
};

}  // namespace fathom::engine
