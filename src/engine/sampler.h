// Choosing the next token from logits.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace fathom::engine {

struct SamplingOptions {
  double temperature = 0;          // 0: greedy
  std::int64_t top_k = 0;          // 0: all
  double top_p = 1, min_p = 0;     // nucleus; least share of the best token's probability
  double repetition_penalty = 1;   // Keskar et al. 2019: of tokens in prompt and answer
  std::uint64_t seed = 0;
};
Status check_sampling(const SamplingOptions& options);

/// Deterministic for a seed and a sequence of logits. Not thread-safe.
class Sampler {
 public:
  Sampler(const SamplingOptions& options, std::int64_t vocabulary);
  /// Tokens that repetition_penalty looks at: the prompt, then every sampled token (added by sample itself).
  void add_history(std::span<const std::int32_t> ids);
  /// The filters apply in this order: repetition penalty, temperature, top_k, top_p, min_p. Greedy takes the lowest id among equals. NaN logits are
  /// never chosen; when nothing is left, the error says that the model computes NaN.
  Result<std::int32_t> sample(std::span<const float> logits);

 private:
  double uniform();  // [0, 1)
  SamplingOptions options_;
  std::uint64_t state_;
  std::vector<bool> seen_;
  std::vector<float> scores_;
  std::vector<std::int32_t> order_;
};

}  // namespace fathom::engine
