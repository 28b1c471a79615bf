// Weight: a parameter matrix as it lies in memory, plain or quantized.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "tensor/tensor.h"

namespace fathom::tensor {

/// How the elements of a weight are stored; docs/formats.md has the bytes. Plain formats have no scales. Blocks run
/// along the columns (the input dimension) unless they are said to be square. Halves of bytes: the even column is the
/// low one, as in OCP MX, gpt-oss, DeepSeek-V4 and compressed-tensors.
enum class WeightFormat : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  fp8_block128,            // e4m3, one f32 scale a 128 × 128 block (DeepSeek-V3)
  fp8_block128_e8m0,       // the same with e8m0 scales (DeepSeek-V4)
  fp8_block32_e8m0,        // e4m3, one e8m0 scale a 32 × 32 block (DeepSeek-V4.1)
  fp8_row32_e8m0,          // e4m3, one e8m0 scale per row and 32 columns (V4.1 Engram tables)
  mxfp4,                   // e2m1 packed two a byte, one e8m0 scale per row and 32 columns
  i64,                     // integer tables (hash routing)
  fp8_row,                 // e4m3, one f32 scale a row (compressed-tensors "channel")
  int8_row,                // two's complement from -127 to 127, one f32 scale a row
  int4_group128,           // (code - 8) · scale, one bf16 scale per row and 128 columns; rows begin on 4 bytes
  int4_group128_f16,       // the same with f16 scales
  int4_group128_zero,      // (code - zero) · scale: four-bit zero points behind the bf16 scales, at zeros_offset()
  int4_group128_zero_f16,  // the same with f16 scales
};
inline constexpr int kWeightFormatCount = 16;
std::string_view weight_format_name(WeightFormat format);
std::optional<WeightFormat> parse_weight_format(std::string_view name);

/// What one stored code is, whatever its scale.
enum class WeightCode : std::uint8_t { kPlain, kE4m3, kE2m1, kInt8, kUint4 };
/// One scale covers `rows` × `cols` elements; {0, 0} in plain formats.
struct WeightLayout {
  WeightCode code = WeightCode::kPlain;
  std::int64_t rows = 0, cols = 0;
  DType scale = DType::f32;
  bool zeros = false;
};
inline constexpr std::int64_t kWholeRow = std::int64_t{1} << 40;  // WeightLayout::cols: more than any weight has
WeightLayout weight_layout(WeightFormat format);
/// Bytes from one row to the next, without scales.
std::uint64_t weight_row_bytes(WeightFormat format, std::int64_t cols);
/// Of the block at Weight::scales: scales, and behind them from zeros_offset() on the zero points, words of eight rows
/// of one group (row 8i + j in bits 4j … 4j + 3), [ceil(rows / 8), groups], as compressed-tensors stores them.
std::uint64_t weight_scale_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols);
std::uint64_t zeros_offset(WeightFormat format, std::int64_t rows, std::int64_t cols);

/// How a product treats its activations when the weight is fp8_row, int8_row or fp8_block128 (no other format has a
/// choice): see LinearArgs.
enum class Activations : std::uint8_t {
  kAsTheyAre,
  kPerToken,          // fp8_row, int8_row: rounded to the weight's own type, each token with its own scale
  kPerGroup,          // fp8_block128: rounded to e4m3, each token's every 128 columns with their own scale (DeepSeek's
                      // "dynamic")
  kPerGroupOfPowers,  // the same with scales that are powers of two (its scale_fmt "ue8m0")
};
/// Bytes of a [rows, cols] weight, scales included.
std::uint64_t weight_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols);
/// Number of scales (0 for plain formats).
std::uint64_t weight_scale_count(WeightFormat format, std::int64_t rows, std::int64_t cols);
/// Only for plain formats.
DType weight_dtype(WeightFormat format);
WeightFormat plain_weight_format(DType dtype);

/// [rows, cols], row-major, row stride `cols`. A vector (norm, bias) is [1, cols]. Owned by the weights' arena.
/// On meta `data` is never followed.
struct Weight {
  WeightFormat format = WeightFormat::f32;
  std::int64_t rows = 0;  // outputs
  std::int64_t cols = 0;  // inputs
  const std::byte* data = nullptr;
  const std::byte* scales = nullptr;
  Activations activations = Activations::kAsTheyAre;
  std::int32_t parameter = -1;  // index in the model's table of weights: the tape's name for its gradient

  bool defined() const { return rows > 0; }
  /// A plain weight as a tensor view [rows, cols], or [cols] for a vector.
  Tensor tensor() const;
  /// Rows [first, first + count); plain formats only.
  Weight row_range(std::int64_t first, std::int64_t count) const;
};

}  // namespace fathom::tensor
