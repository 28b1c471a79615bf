// Numbers from one stored form to another, fast. Every result is that of base/dtype.h, rounded once, to nearest even.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/dtype.h"

namespace fathom::weights {

/// Between f64, f32, f16 and bf16, or i64 to i64. Both spans hold the same number of elements and do not overlap.
void convert(DType from, std::span<const std::byte> in, DType to, std::span<std::byte> out);

/// out[i] = e4m3(codes[i]) · scales[i / block], in f32.
void dequantize_fp8(std::span<const std::uint8_t> codes, std::span<const float> scales, std::size_t block,
                    std::span<float> out);
/// out[2i], out[2i + 1] = e2m1 of the low and the high half of packed[i], · scales[i / 16]: blocks of 32 elements.
void dequantize_fp4(std::span<const std::uint8_t> packed, std::span<const float> scales, std::span<float> out);
/// out[i] = 2^(codes[i] - 127), NaN for 255.
void decode_e8m0(std::span<const std::uint8_t> codes, std::span<float> out);

/// The first element that is NaN or infinite. Plain floats, f8e4m3 (NaN) and e8m0 (NaN); integers never are.
std::optional<std::size_t> first_not_finite(DType dtype, std::span<const std::byte> values);

}  // namespace fathom::weights
