// What stands in a synthetic weight: numbers with the statistics of a trained model's, so that neither logits nor
// routing degenerate.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/weight_table.h"
#include "tensor/backend.h"
#include "weights/random.h"
#include "weights/resolve.h"

namespace fathom::weights {

/// Norms are 1 + 0.1 z; biases 0.1 z, router biases 0.2 z, other vectors 0.3 z; the embedding z; matrices 1.2 z /
/// √(inputs), the head 2 z / √(inputs); hash tables different experts, all alike likely. z as RandomStream::normals.
/// Quantized formats draw codes as a bell would be quantized, and scales around the one that gives the same deviation.
class WeightGenerator {
 public:
  /// Tensor number `expert` of an entry, as stored in `format`. `experts`: how many a hash table may choose from.
  WeightGenerator(const model::WeightEntry& entry, std::int64_t expert, tensor::WeightFormat format, std::uint64_t seed,
                  std::int64_t experts);

  /// Bytes of one row of the whole tensor's data (packed for formats of four bits) and of its scales.
  Bytes row_bytes() const;
  Bytes scale_row_bytes() const;
  std::int64_t scale_rows() const;
  std::int64_t scale_cols() const;

  /// Elements [first, first + n) of the whole tensor, row after row, for n that fills `out`. For formats of four bits
  /// `first` is a multiple of what one byte (mxfp4) or one word (int4) holds.
  void data(std::uint64_t first, std::span<std::byte> out) const;
  /// The same for rows [first_row, first_row + rows) and columns [first_col, first_col + cols) of the whole tensor, as
  /// a device may draw them where they lie; `out` is left open. Nothing for what only the host can make.
  std::optional<tensor::RandomFill> fill(std::int64_t first_row, std::int64_t first_col, std::int64_t rows,
                                         std::int64_t cols) const;
  /// Scales [first, first + n) of the whole, row after row.
  void scales(std::uint64_t first, std::span<std::byte> out) const;
  /// Words of zero points [first, first + n) of the whole, row of words after row.
  void zeros(std::uint64_t first, std::span<std::byte> out) const;

 private:
  void codes(std::uint64_t first, std::span<std::byte> out) const;
  void choices(std::uint64_t first, std::span<std::int64_t> out) const;

  tensor::WeightFormat format_;
  tensor::WeightLayout layout_;
  ScaleBlock block_;
  std::int64_t rows_, cols_, experts_;
  float mean_ = 0, deviation_ = 1;
  RandomStream values_, scale_stream_;
};

/// The experts that the hash table of `entry`'s layer may choose from: the rows of the router beside it.
std::int64_t experts_beside(const model::WeightTable& table, const model::WeightEntry& entry);

}  // namespace fathom::weights
