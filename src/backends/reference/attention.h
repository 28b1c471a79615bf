// What attention and its backward share: the rows that a token sees, loaded, and their scores.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "backends/reference/elements.h"
#include "tensor/ops.h"

namespace fathom::reference {

struct LoadedRow {
  Array k, k_shared, v;  // [1, kv_heads, dk], [1, dr], [1, kv_heads, dv]
};
struct SeenRow {
  std::size_t segment = 0;
  std::int64_t row = 0;
  const LoadedRow* loaded = nullptr;
};

/// Rows of one sequence, each turned into doubles the first time that a token sees it.
class Seen {
 public:
  explicit Seen(std::size_t segments) : loaded_(segments) {}
  /// The rows of all segments that token `token` of sequence `sequence` sees.
  std::vector<SeenRow> rows_of(const tensor::AttentionArgs& args, std::size_t sequence, std::int64_t token);

 private:
  std::vector<std::unordered_map<std::int64_t, LoadedRow>> loaded_;  // node-based: addresses stay
};

/// scale · (q[0:dk] · k + q[dk:dk+dr] · k_shared).
double attention_score(const tensor::AttentionArgs& args, const double* q, const SeenRow& seen, std::int64_t kv_head);
void check_attention_shapes(const tensor::AttentionArgs& args);

}  // namespace fathom::reference
