#include "weights/quantize_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/dtype.h"
#include "base/result.h"

namespace fathom::weights {
using tensor::WeightCode;

namespace {

struct Range {
  float least = 0, most = 0;
};  // with zero among them

Range range_of(std::span<const float> values) {
  Range range;
  for (const float value : values) {
    range.least = std::min(range.least, value);
    range.most = std::max(range.most, value);
  }
  return range;
}

// To the nearest whole number, ties to even, for |x| < 2^22.
float whole(float x) {
  constexpr float kOne = 12582912.0f;  // 1.5 · 2^23: its last bit is 1
  return (x + kOne) - kOne;
}

float smallest_normal(DType type) { return type == DType::f16 ? 0x1p-14f : 0x1p-126f; }

// The scale as its type stores it.
float stored_scale(DType type, float wanted) {
  if (wanted == 0) return 1;
  float scale = wanted;
  if (type == DType::bf16) scale = bf16_to_f32(f32_to_bf16(wanted));
  if (type == DType::f16) scale = std::min(f16_to_f32(f32_to_f16(wanted)), 65504.0f);
  return std::max(scale, smallest_normal(type));
}

void put_scale(DType type, float scale, std::span<std::byte> scales, std::size_t index) {
  const std::uint16_t half = type == DType::bf16 ? f32_to_bf16(scale) : f32_to_f16(scale);
  if (type == DType::f32)
    std::memcpy(scales.data() + index * 4, &scale, 4);
  else
    std::memcpy(scales.data() + index * 2, &half, 2);
}

// Twin of f32_to_f8e4m3 for finite numbers, without branches: normal codes are the upper bits of the float, smaller
// ones count 2^-9.
std::uint8_t e4m3_code(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 24 & 0x80u;
  const float magnitude = std::min(std::fabs(x), 448.0f);
  const auto m = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t normal = ((m + 0x7ffffu + (m >> 20 & 1u)) >> 20) - (120u << 3);
  const auto small = static_cast<std::uint32_t>(whole(std::min(magnitude, 1.0f) * 512.0f));
  return static_cast<std::uint8_t>(sign | (magnitude < 0x1p-6f ? small : normal));
}

void quantize_eight(const tensor::WeightLayout& layout, std::span<const float> row, const QuantizedRow& out) {
  const Range range = range_of(row);
  const float largest = std::max(-range.least, range.most);
  const bool floats = layout.code == WeightCode::kE4m3;
  const float scale = stored_scale(layout.scale, largest / (floats ? 448.0f : 127.0f));
  put_scale(layout.scale, scale, out.scales, 0);
  auto* codes = reinterpret_cast<std::uint8_t*>(out.codes.data());
  if (floats)
    for (std::size_t i = 0; i < row.size(); ++i) codes[i] = e4m3_code(row[i] / scale);
  else
    for (std::size_t i = 0; i < row.size(); ++i)
      codes[i] =
          static_cast<std::uint8_t>(static_cast<std::int8_t>(std::clamp(whole(row[i] / scale), -127.0f, 127.0f)));
}

void quantize_four(const tensor::WeightLayout& layout, std::span<const float> row, const QuantizedRow& out) {
  std::ranges::fill(out.codes, std::byte{0});
  auto* codes = reinterpret_cast<std::uint8_t*>(out.codes.data());
  const auto size = static_cast<std::size_t>(layout.cols);
  for (std::size_t group = 0, first = 0; first < row.size(); ++group, first += size) {
    const std::span<const float> part = row.subspan(first, std::min(size, row.size() - first));
    const Range range = range_of(part);
    const float wanted = layout.zeros ? (range.most - range.least) / 15.0f : std::max(-range.least, range.most) / 7.5f;
    // Of values near the ends of f32 the difference may overflow: half of each is taken then.
    const float scale =
        stored_scale(layout.scale, std::isfinite(wanted) ? wanted : range.most / 15.0f - range.least / 15.0f);
    const float zero = layout.zeros ? std::clamp(whole(-range.least / scale), 0.0f, 15.0f) : 8.0f;
    put_scale(layout.scale, scale, out.scales, group);
    if (layout.zeros) out.zeros[group] = static_cast<std::uint8_t>(zero);
    for (std::size_t i = 0; i < part.size(); ++i) {
      const float quotient = std::clamp(part[i] / scale, -32.0f, 32.0f);
      const auto code = static_cast<std::uint8_t>(std::clamp(whole(quotient) + zero, 0.0f, 15.0f));
      codes[(first + i) / 2] |= static_cast<std::uint8_t>(code << ((first + i) % 2 * 4));
    }
  }
}

}  // namespace

void quantize_row(tensor::WeightFormat format, std::span<const float> row, const QuantizedRow& out) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  FATHOM_CHECK(layout.cols == tensor::kWholeRow || layout.code == WeightCode::kUint4, "not a format to quantize to");
  if (layout.code == WeightCode::kUint4)
    quantize_four(layout, row, out);
  else
    quantize_eight(layout, row, out);
}

}  // namespace fathom::weights
