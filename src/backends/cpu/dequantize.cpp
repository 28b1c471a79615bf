// Weight rows as kernels want them: pointers into plain weights, f32 copies of quantized ones.
#include <algorithm>
#include <array>
#include <cstring>

#include "backends/cpu/products.h"

namespace fathom::cpu {
namespace {
using tensor::Weight;
using tensor::WeightFormat;

using Table = std::array<float, 256>;
const Table& fp8_table() {
  static const Table table = [] {
    Table t{};
    for (int i = 0; i < 256; ++i) t[static_cast<std::size_t>(i)] = f8e4m3_to_f32(static_cast<std::uint8_t>(i));
    return t;
  }();
  return table;
}

constexpr float kFp4[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                            -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

float scale_at(const Weight& weight, DType type, std::int64_t index) {
  if (type == DType::e8m0) return e8m0_to_f32(static_cast<std::uint8_t>(weight.scales[index]));
  std::uint16_t half = 0;
  float scale = 0;
  if (type == DType::f32) return std::memcpy(&scale, weight.scales + index * 4, 4), scale;
  std::memcpy(&half, weight.scales + index * 2, 2);
  return type == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

/// The zero point of a group of a row; `groups` a row.
int zero_at(const Weight& weight, std::int64_t row, std::int64_t group, std::int64_t groups) {
  std::uint32_t word = 0;
  std::memcpy(
      &word,
      weight.scales + tensor::zeros_offset(weight.format, weight.rows, weight.cols) + (row / 8 * groups + group) * 4,
      4);
  return static_cast<int>(word >> (row % 8 * 4) & 15u);
}

/// Elements [c, end) of a row of four-bit codes, times scale.
void widen_int4(const std::uint8_t* codes, std::int64_t c, std::int64_t end, int zero, float scale, float* out) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(i - zero) * scale;
  if (c < end && c % 2 != 0) *out++ = values[codes[c++ / 2] >> 4];
  for (; c + 2 <= end; c += 2) {
    const std::uint8_t pair = codes[c / 2];
    *out++ = values[pair & 15];
    *out++ = values[pair >> 4];
  }
  if (c < end) *out = values[codes[c / 2] & 15];
}

/// Columns [column, column + width) of a quantized row.
void widen_row(const Weight& weight, std::int64_t row, std::int64_t column, std::int64_t width, float* out) {
  const tensor::WeightLayout layout = tensor::weight_layout(weight.format);
  const std::int64_t groups = (weight.cols + layout.cols - 1) / layout.cols, first_scale = row / layout.rows * groups;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(weight.data) +
                      row * static_cast<std::int64_t>(tensor::weight_row_bytes(weight.format, weight.cols));
  const float* fp8 = fp8_table().data();
  for (std::int64_t c = column; c < column + width;) {
    const std::int64_t end = std::min(column + width, (c / layout.cols + 1) * layout.cols), count = end - c;
    const float scale = scale_at(weight, layout.scale, first_scale + c / layout.cols);
    switch (layout.code) {
      case tensor::WeightCode::kE4m3:
        for (std::int64_t i = 0; i < count; ++i) out[i] = fp8[bytes[c + i]] * scale;
        break;
      case tensor::WeightCode::kE2m1:
        for (std::int64_t i = 0; i < count; ++i) out[i] = kFp4[bytes[(c + i) / 2] >> ((c + i) % 2 * 4) & 15] * scale;
        break;
      case tensor::WeightCode::kInt8:
        for (std::int64_t i = 0; i < count; ++i)
          out[i] = static_cast<float>(static_cast<std::int8_t>(bytes[c + i])) * scale;
        break;
      case tensor::WeightCode::kUint4:
        widen_int4(bytes, c, end, layout.zeros ? zero_at(weight, row, c / layout.cols, groups) : 8, scale, out);
        break;
      case tensor::WeightCode::kPlain:
        FATHOM_CHECK(false, "the cpu backend cannot multiply with this format");
    }
    out += count;
    c = end;
  }
}
}  // namespace

bool is_plain(WeightFormat format) {
  return format == WeightFormat::f32 || format == WeightFormat::f16 || format == WeightFormat::bf16;
}
bool can_multiply(WeightFormat format) { return format != WeightFormat::f64 && format != WeightFormat::i64; }

Element weight_rows(const Weight& weight, std::int64_t first, std::int64_t count, std::int64_t column,
                    std::int64_t width, float* widened, Row* rows) {
  if (is_plain(weight.format)) {
    const Element element = element_of(tensor::weight_dtype(weight.format));
    for (std::int64_t i = 0; i < count; ++i)
      rows[i] = weight.data + ((first + i) * weight.cols + column) * element_bytes(element);
    return element;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    widen_row(weight, first + i, column, width, widened + i * width);
    rows[i] = reinterpret_cast<Row>(widened + i * width);
  }
  return Element::kF32;
}

}  // namespace fathom::cpu
