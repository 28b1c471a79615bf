// What a loader does with each tensor: the piecework between ranges of files and places in the arena.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/weight_table.h"
#include "weights/read_engine.h"
#include "weights/resolve.h"
#include "weights/storage.h"

namespace fathom::weights {

/// A matrix of a file of which a window becomes a matrix in memory, its elements copied, converted or dequantized.
/// Packed codes and scales that are kept as they are count as matrices of bytes or of scales.
struct TransferJob {
  TensorPlace data, scales;  // scales: when dequantizing
  TensorPlace zeros;         // the same, of int4 with zero points: read when a piece is finished, they are few
  bool repeats = false;      // the file has one element, which all of the window gets
  Encoding encoding = Encoding::kPlain;
  ScaleBlock block;
  DType from = DType::f32, to = DType::f32;
  std::int64_t full_cols = 0;                                     // of the file's matrix
  std::int64_t first_row = 0, first_col = 0, rows = 0, cols = 0;  // the window
  std::byte* out = nullptr;                                       // [rows, cols] of `to`, dense

  bool dequantizes() const { return encoding != Encoding::kPlain; }
  /// The window lies in one piece in the file.
  bool contiguous() const { return cols == full_cols || rows == 1; }
  bool copies() const { return !dequantizes() && from == to; }
  Bytes row_bytes() const;  // of the file's matrix
};

/// The jobs of all sources, in the order of their files.
std::vector<TransferJob> make_jobs(const model::WeightTable& table, const StoragePolicy& policy, const WeightPlan& plan,
                                   std::span<const TensorSource> sources, const WeightBlocks& blocks);

/// Rows [first, first + count) of a window, or that many elements of a contiguous plain one.
struct TransferPiece {
  std::uint32_t job = 0;
  std::int64_t first = 0, count = 0;
};

/// All jobs cut into pieces of some megabytes, and the reads that bring them.
struct TransferPlan {
  std::vector<TransferJob> jobs;
  std::vector<TransferPiece> pieces;
  std::vector<ReadTask> tasks;  // one a piece
  std::vector<Path> files;
};
TransferPlan plan_transfer(std::vector<TransferJob> jobs);

/// Puts the bytes that were read for a piece where they belong. Pieces may be finished in any order and at once.
Status finish_piece(const TransferJob& job, const TransferPiece& piece, std::span<const std::byte> data,
                    std::span<const std::byte> scales, bool check_finite);

}  // namespace fathom::weights
