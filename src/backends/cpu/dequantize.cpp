// Weight rows as kernels want them: pointers into plain weights, f32 copies of quantized ones.
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

constexpr float kFp4[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

struct Blocks {
  std::int64_t rows = 1, cols = 1;  // of one scale
  bool f32 = false;                 // scales are f32, else e8m0
};
Blocks blocks_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8_block128: return {128, 128, true};
    case WeightFormat::fp8_block128_e8m0: return {128, 128, false};
    case WeightFormat::fp8_block32_e8m0: return {32, 32, false};
    case WeightFormat::fp8_row32_e8m0:
    case WeightFormat::mxfp4: return {1, 32, false};
    default: FATHOM_CHECK(false, "the cpu backend cannot multiply with this format");
  }
}

float scale_at(const Weight& weight, const Blocks& blocks, std::int64_t index) {
  if (!blocks.f32) return e8m0_to_f32(static_cast<std::uint8_t>(weight.scales[index]));
  float scale = 0;
  std::memcpy(&scale, weight.scales + index * 4, 4);
  return scale;
}

/// Columns [column, column + width) of a quantized row.
void widen_row(const Weight& weight, std::int64_t row, std::int64_t column, std::int64_t width, float* out) {
  const Blocks blocks = blocks_of(weight.format);
  const std::int64_t first_scale = row / blocks.rows * ((weight.cols + blocks.cols - 1) / blocks.cols);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(weight.data);
  const float* fp8 = fp8_table().data();
  for (std::int64_t c = column; c < column + width;) {
    const std::int64_t end = std::min(column + width, (c / blocks.cols + 1) * blocks.cols);
    const float scale = scale_at(weight, blocks, first_scale + c / blocks.cols);
    if (weight.format == WeightFormat::mxfp4) {
      for (; c < end; ++c) {
        const std::int64_t element = row * weight.cols + c;
        *out++ = kFp4[bytes[element / 2] >> (element % 2 * 4) & 15] * scale;
      }
    } else {
      for (; c < end; ++c) *out++ = fp8[bytes[row * weight.cols + c]] * scale;
    }
  }
}
}  // namespace

bool is_plain(WeightFormat format) {
  return format == WeightFormat::f32 || format == WeightFormat::f16 || format == WeightFormat::bf16;
}
bool can_multiply(WeightFormat format) { return format != WeightFormat::f64 && format != WeightFormat::i64; }

Element weight_rows(const Weight& weight, std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t width, float* widened, Row* rows) {
  if (is_plain(weight.format)) {
    const Element element = element_of(tensor::weight_dtype(weight.format));
    for (std::int64_t i = 0; i < count; ++i) rows[i] = weight.data + ((first + i) * weight.cols + column) * element_bytes(element);
    return element;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    widen_row(weight, first + i, column, width, widened + i * width);
    rows[i] = reinterpret_cast<Row>(widened + i * width);
  }
  return Element::kF32;
}

}  // namespace fathom::cpu
