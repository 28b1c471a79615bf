// Exact ties in top-k, as transformers settles them. ReLU makes indexer scores that are exactly zero common, and any
// choice among equals is right; but torch.topk's choice on a CPU follows from how std::nth_element leaves the whole
// row, rows that the token may not see (-inf) included. To be compared number by number with such a reference, both
// must choose alike: `verify` sets Batch::topk_horizon to the number of tokens that the reference's pass had. Nothing
// else does; then ties go to the lower row.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace fathom::tensor {

struct TopkCandidate {
  float score = -std::numeric_limits<float>::infinity();
  std::int32_t name = 0;
};

/// Puts the k best of `all` (by name 0 … n - 1, unseen ones at -inf) in front, in no order; answers how many of them
/// are seen.
inline std::int64_t choose_like_torch(std::vector<TopkCandidate>& all, std::int64_t k) {
  const auto n = static_cast<std::int64_t>(all.size());
  k = std::min(k, n);
  if (k == 0) return 0;
  const auto larger = [](const TopkCandidate& a, const TopkCandidate& b) {
    return (std::isnan(a.score) && !std::isnan(b.score)) || a.score > b.score;
  };
  if (k * 64 <= n)
    std::partial_sort(all.begin(), all.begin() + k, all.end(), larger);
  else
    std::nth_element(all.begin(), all.begin() + k - 1, all.end(), larger);
  const auto unseen = [](const TopkCandidate& c) { return c.score == -std::numeric_limits<float>::infinity(); };
  return std::stable_partition(all.begin(), all.begin() + k, [&](const TopkCandidate& c) { return !unseen(c); }) -
         all.begin();
}

}  // namespace fathom::tensor
