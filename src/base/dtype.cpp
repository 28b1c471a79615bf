#include "base/dtype.h"

#include <cmath>
#include <limits>

#include "base/strings.h"

namespace fathom {
namespace {
struct Names {
  std::string_view ours, safetensors, torch;
};
constexpr Names kNames[kDTypeCount] = {{"f64", "F64", "float64"},
                                       {"f32", "F32", "float32"},
                                       {"f16", "F16", "float16"},
                                       {"bf16", "BF16", "bfloat16"},
                                       {"f8e4m3", "F8_E4M3", "float8_e4m3fn"},
                                       {"f8e5m2", "F8_E5M2", "float8_e5m2"},
                                       {"e8m0", "F8_E8M0", "float8_e8m0fnu"},
                                       {"i64", "I64", "int64"},
                                       {"i32", "I32", "int32"},
                                       {"i16", "I16", "int16"},
                                       {"i8", "I8", "int8"},
                                       {"u8", "U8", "uint8"},
                                       {"bool", "BOOL", "bool"}};
}  // namespace

std::string_view dtype_name(DType dtype) { return kNames[static_cast<int>(dtype)].ours; }
std::string_view dtype_safetensors_name(DType dtype) { return kNames[static_cast<int>(dtype)].safetensors; }

std::optional<DType> parse_dtype(std::string_view name) {
  std::string lower = to_lower(name);
  if (lower.starts_with("torch.")) lower.erase(0, 6);
  if (lower == "fp32") lower = "f32";
  if (lower == "fp16" || lower == "half") lower = "f16";
  if (lower == "fp64" || lower == "double") lower = "f64";
  for (int i = 0; i < kDTypeCount; ++i)
    if (lower == kNames[i].ours || lower == to_lower(kNames[i].safetensors) || lower == kNames[i].torch)
      return static_cast<DType>(i);
  return std::nullopt;
}

float f16_to_f32(std::uint16_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000u) << 16;
  const std::uint32_t exponent = (value >> 10) & 0x1fu, mantissa = value & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, magnitude) | sign);
  }
  const std::uint32_t wide = exponent == 31 ? 0x7f800000u : (exponent + 112) << 23;
  return __builtin_bit_cast(float, sign | wide | (mantissa << 13));
}

std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65520 or more: infinity
  if (magnitude < 0x38800000u) {  // below the smallest normal: exact scaling, then round to nearest even
    const float scaled = __builtin_bit_cast(float, magnitude) * 0x1p24f;
    return sign | static_cast<std::uint16_t>(std::nearbyintf(scaled));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return sign | static_cast<std::uint16_t>(rounded >> 13);
}

float f8e4m3_to_f32(std::uint8_t value) {
  const float sign = (value & 0x80u) ? -1.0f : 1.0f;
  const int exponent = (value >> 3) & 15, mantissa = value & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-9f;
  return sign * std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, exponent - 7);
}

std::uint8_t f32_to_f8e4m3(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80u : 0u;
  if (std::isnan(value)) return sign | 0x7fu;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return sign | 0x7eu;
  if (magnitude < 0x1p-6f) return sign | static_cast<std::uint8_t>(std::nearbyintf(magnitude * 0x1p9f));
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);                 // [0.5, 1) · 2^exponent
  const auto steps = static_cast<int>(std::nearbyintf(fraction * 16.0f));  // 8 … 16
  const int code = ((exponent - 1 + 7) << 3) + (steps - 8);                // a carry walks into the exponent
  return sign | static_cast<std::uint8_t>(code > 0x7e ? 0x7e : code);
}

float f8e5m2_to_f32(std::uint8_t value) { return f16_to_f32(static_cast<std::uint16_t>(value << 8)); }

float e8m0_to_f32(std::uint8_t value) {
  return value == 0xff ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, static_cast<int>(value) - 127);
}

}  // namespace fathom
