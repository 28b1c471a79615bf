// Element types of tensors and files.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace fathom {

enum class DType : std::uint8_t { f64, f32, f16, bf16, f8e4m3, f8e5m2, e8m0, i64, i32, i16, i8, u8, boolean };
inline constexpr int kDTypeCount = 13;

/// Bits of one element (f32: 32).
constexpr int dtype_bits(DType dtype) {
  constexpr int bits[kDTypeCount] = {64, 32, 16, 16, 8, 8, 8, 64, 32, 16, 8, 8, 8};
  return bits[static_cast<int>(dtype)];
}
constexpr int dtype_bytes(DType dtype) { return dtype_bits(dtype) / 8; }
constexpr bool dtype_is_float(DType dtype) { return dtype <= DType::e8m0; }

/// "bf16", "f32", …: the names used in plans and flags.
std::string_view dtype_name(DType dtype);
/// Accepts our names, safetensors' ("BF16", "F8_E4M3") and torch's ("bfloat16", "torch.float16").
std::optional<DType> parse_dtype(std::string_view name);
/// The name safetensors headers use: "BF16".
std::string_view dtype_safetensors_name(DType dtype);

// Conversions, round to nearest even, exact for infinities, NaN stays NaN.
inline float bf16_to_f32(std::uint16_t value) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value) << 16);
}
inline std::uint16_t f32_to_bf16(float value) {
  std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // NaN, made quiet
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float f16_to_f32(std::uint16_t value);
std::uint16_t f32_to_f16(float value);
float f8e4m3_to_f32(std::uint8_t value);  // OCP e4m3fn: no infinities, 0x7f and 0xff are NaN, largest 448
std::uint8_t f32_to_f8e4m3(float value);  // saturates to ±448
float f8e5m2_to_f32(std::uint8_t value);
float e8m0_to_f32(std::uint8_t value);  // 2^(value-127); 0xff is NaN

}  // namespace fathom
