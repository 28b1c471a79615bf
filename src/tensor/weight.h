// Weight: a parameter matrix as it lies in memory, plain or quantized.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/tensor.h"

namespace fathom::tensor {

/// How the elements of a weight are stored. Plain formats have no scales. Blocks run along the columns (the input
/// dimension) unless they are said to be square.
enum class WeightFormat : std::uint8_t {
  f64, f32, f16, bf16,
  fp8_block128,  // e4m3, one f32 scale a 128 × 128 block (DeepSeek-V3)
  fp8_block128_e8m0,  // the same with e8m0 scales (DeepSeek-V4)
  fp8_block32_e8m0,   // e4m3, one e8m0 scale a 32 × 32 block (DeepSeek-V4.1)
  fp8_row32_e8m0,     // e4m3, one e8m0 scale per row and 32 columns (V4.1 Engram tables)
  mxfp4,         // e2m1 packed two a byte, one e8m0 scale per row and 32 columns
  i64,           // integer tables (hash routing)
};
inline constexpr int kWeightFormatCount = 10;
std::string_view weight_format_name(WeightFormat format);
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
  std::int32_t parameter = -1;  // index in the model's table of weights: the tape's name for its gradient

  bool defined() const { return rows > 0; }
  /// A plain weight as a tensor view [rows, cols], or [cols] for a vector.
  Tensor tensor() const;
  /// Rows [first, first + count); plain formats only.
  Weight row_range(std::int64_t first, std::int64_t count) const;
};

}  // namespace fathom::tensor
