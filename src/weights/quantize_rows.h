// Numbers to fewer bits: one row of a matrix at a time, each to the nearest code, ties to even.
#pragma once
#include <cstdint>
#include <span>

#include "tensor/weight.h"

namespace fathom::weights {

/// Where a row's results go. Sizes are the format's: tensor::weight_row_bytes, one scale a group
/// (weight_layout(format).scale), and one zero point a group, as a number from 0 to 15 (formats with zero points only).
struct QuantizedRow {
  std::span<std::byte> codes, scales;
  std::span<std::uint8_t> zeros;
};

/// Scales follow compressed-tensors' min-max observer. With a = max |w| of the row or group:
///   fp8_row   a / 448                 code: w / scale to e4m3, at most ±448
///   int8_row  a / 127                 code: w / scale to a whole number, at most ±127
///   int4      a / 7.5                 code: w / scale to a whole number from -8 to 7, plus 8
///   int4 with zero points, l = min(w, 0), h = max(w, 0): (h - l) / 15, zero = -l / scale; code: w / scale + zero from
///   0 to 15
/// A scale is rounded to its stored type first, and codes are made with what is stored. Where all is zero the scale is
/// 1; no scale is below its type's smallest normal number. Quotients are computed in f32. `row` is finite. Only these
/// six formats.
void quantize_row(tensor::WeightFormat format, std::span<const float> row, const QuantizedRow& out);

}  // namespace fathom::weights
