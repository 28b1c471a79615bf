#include "backends/reference/dequantize.h"

#include <cstring>

#include "backends/reference/elements.h"

namespace fathom::reference {
namespace {
using tensor::Weight;
using tensor::WeightFormat;

double f32_scale(const Weight& weight, std::int64_t index) {
  float value = 0;
  std::memcpy(&value, weight.scales + index * 4, 4);
  return value;
}

double e8m0_scale(const Weight& weight, std::int64_t index) {
  return e8m0_to_f32(static_cast<std::uint8_t>(weight.scales[index]));
}

double scale_of(const Weight& weight, std::int64_t row, std::int64_t col) {
  const auto blocks = [&](std::int64_t side) { return (weight.cols + side - 1) / side; };
  switch (weight.format) {
    case WeightFormat::fp8_block128:
      return f32_scale(weight, row / 128 * blocks(128) + col / 128);
    case WeightFormat::fp8_block128_e8m0:
      return e8m0_scale(weight, row / 128 * blocks(128) + col / 128);
    case WeightFormat::fp8_block32_e8m0:
      return e8m0_scale(weight, row / 32 * blocks(32) + col / 32);
    case WeightFormat::fp8_row32_e8m0:
    case WeightFormat::mxfp4:
      return e8m0_scale(weight, row * blocks(32) + col / 32);
    default:
      FATHOM_CHECK(false, "not a quantized format");
  }
}
}  // namespace

float f4e2m1_to_f32(std::uint8_t code) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return (code & 8u) ? -kMagnitudes[code & 7u] : kMagnitudes[code & 7u];
}

void dequantize_row(const Weight& weight, std::int64_t row, double* out) {
  FATHOM_CHECK(row >= 0 && row < weight.rows);
  switch (weight.format) {
    case WeightFormat::f64:
    case WeightFormat::f32:
    case WeightFormat::f16:
    case WeightFormat::bf16: {
      const DType dtype = tensor::weight_dtype(weight.format);
      return read_elements(weight.data + row * weight.cols * dtype_bytes(dtype), dtype, weight.cols, out);
    }
    case WeightFormat::mxfp4:
      FATHOM_CHECK(weight.cols % 2 == 0, "mxfp4 packs pairs");
      for (std::int64_t c = 0; c < weight.cols; ++c) {
        const auto pair = static_cast<std::uint8_t>(weight.data[(row * weight.cols + c) / 2]);
        const auto code = static_cast<std::uint8_t>(c % 2 == 0 ? pair & 15u : pair >> 4);
        out[c] = static_cast<double>(f4e2m1_to_f32(code)) * scale_of(weight, row, c);
      }
      return;
    case WeightFormat::fp8_block128:
    case WeightFormat::fp8_block128_e8m0:
    case WeightFormat::fp8_block32_e8m0:
    case WeightFormat::fp8_row32_e8m0:
      for (std::int64_t c = 0; c < weight.cols; ++c)
        out[c] = static_cast<double>(f8e4m3_to_f32(static_cast<std::uint8_t>(weight.data[row * weight.cols + c]))) *
                 scale_of(weight, row, c);
      return;
    case WeightFormat::i64:
      FATHOM_CHECK(false, "an integer table has no float rows");
  }
}

}  // namespace fathom::reference
