// Tile: query rows that look at the same keys, and what they have seen of them so far. The unit of work of attention.
#pragma once
#include "backends/cpu/kernels.h"
#include "backends/cpu/visible.h"
#include "backends/cpu/workspace.h"

namespace fathom::cpu {

inline constexpr std::int64_t kTileRows = 256;  // query rows of a tile at most
inline constexpr std::int64_t kBlockKeys = 64;  // keys looked at together

/// How an attention is cut. A tile is `tokens` tokens of one sequence × `heads` query heads. Either these read one key
/// head, or
/// (`spans_heads`: one token, few query heads a key head) several, and then memory is read row by row with all heads of
/// a row.
struct TileShape {
  std::int64_t heads = 1, tokens = 1;
  bool spans_heads = false;
};

/// The running state of rows: sums over what was seen, relative to a score near the largest so far.
struct Sums {
  float* out = nullptr;      // [rows, dv]
  float* largest = nullptr;  // [rows]: that score, -infinity before there is one
  float* total = nullptr;    // [rows]
};
Sums take_sums(Scratch& scratch, std::int64_t rows, std::int64_t dv);
/// Adds one state of the same rows to another.
void join(const Kernels& kernels, const Sums& into, const Sums& from, std::int64_t rows, std::int64_t dv);

class Tile {
 public:
  /// Tokens [first_token, first_token + tokens) of the batch, all of sequence `sequence`; heads from first_head on.
  Tile(const Kernels& kernels, const tensor::AttentionArgs& args, TileShape shape, std::size_t sequence,
       std::int64_t first_token, std::int64_t tokens, std::int64_t first_head, Scratch& scratch);

  /// Looks at part `part` of `parts` of the keys.
  void attend(std::int64_t part, std::int64_t parts);
  /// The sink joins, sums are divided, results are stored.
  void finish(const Sums& sums) const;

  const Sums& sums() const { return sums_; }
  std::int64_t rows() const { return rows_; }

 private:
  std::int64_t position(const SegmentOfSequence& seen, std::int64_t token) const {
    return seen.sequence().past + token - seen.sequence().first_token;
  }
  Names range(const SegmentOfSequence& seen) const;  // what any token of the tile sees
  std::int64_t blocks_of(const SegmentOfSequence& seen) const;
  void attend_dense(const SegmentOfSequence& seen, std::int64_t block);
  void attend_selected(const SegmentOfSequence& seen, std::int64_t block);
  void point_at(const SegmentOfSequence& seen, std::int64_t i, std::int64_t row);
  HeadRows head_rows(const tensor::Tensor& x, const Row* rows, std::int64_t count) const;
  void attend_block(const tensor::KvSegment& segment, std::int64_t count);
  void score(const tensor::KvSegment& segment, std::int64_t count);
  void point_at_codes(const tensor::KvSegment& segment, std::int64_t i, std::int64_t row, std::int64_t head);
  const float* widened(const tensor::Tensor& x, std::int64_t row, std::int64_t head, float* to) const;
  Element element(const tensor::Tensor& x) const;
  void times_scales(const float* scales, std::int64_t heads, std::int64_t count);
  void soften(std::int64_t row, std::int64_t count);
  void mix(const tensor::KvSegment& segment, std::int64_t count);

  const Kernels& kernels_;
  const tensor::AttentionArgs& args_;
  const std::size_t sequence_;
  const std::int64_t first_token_, tokens_, first_head_, heads_, rows_, dv_;
  const bool spans_heads_, few_rows_;
  Sums sums_;
  const float** q_ = nullptr;  // [rows]
  float* scores_ = nullptr;    // [rows, kBlockKeys]
  float* key_panels_ = nullptr;
  float* value_panels_ = nullptr;
  Row *key_rows_ = nullptr, *shared_rows_ = nullptr, *value_rows_ = nullptr;  // [kBlockKeys]
  // Of a segment in INT8: its rows as f32, or, where the tile spans heads, the scales [heads, kBlockKeys] of its codes.
  float *wide_keys_ = nullptr, *wide_values_ = nullptr, *key_scales_ = nullptr, *value_scales_ = nullptr;
  Names* seen_ = nullptr;                     // of the block's keys, by row
  std::int64_t active_ = 0, active_end_ = 0;  // rows that see any of the block
};

}  // namespace fathom::cpu
