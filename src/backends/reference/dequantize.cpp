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

std::uint16_t half_scale(const Weight& weight, std::int64_t index) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, weight.scales + index * 2, 2);
  return bits;
}

int zero_of(const Weight& weight, std::int64_t row, std::int64_t col) {
  if (!tensor::weight_layout(weight.format).zeros) return 8;
  const std::int64_t groups = (weight.cols + 127) / 128;
  const std::byte* zeros = weight.scales + tensor::zeros_offset(weight.format, weight.rows, weight.cols);
  std::uint32_t word = 0;  // of eight rows
  std::memcpy(&word, zeros + (row / 8 * groups + col / 128) * 4, 4);
  return static_cast<int>(word >> (row % 8 * 4) & 15u);
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
    case WeightFormat::fp8_row:
    case WeightFormat::int8_row:
      return f32_scale(weight, row);
    case WeightFormat::int4_group128:
    case WeightFormat::int4_group128_zero:
      return bf16_to_f32(half_scale(weight, row * blocks(128) + col / 128));
    case WeightFormat::int4_group128_f16:
    case WeightFormat::int4_group128_zero_f16:
      return f16_to_f32(half_scale(weight, row * blocks(128) + col / 128));
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
    case WeightFormat::fp8_row:
      for (std::int64_t c = 0; c < weight.cols; ++c)
        out[c] = static_cast<double>(f8e4m3_to_f32(static_cast<std::uint8_t>(weight.data[row * weight.cols + c]))) *
                 scale_of(weight, row, c);
      return;
    case WeightFormat::int8_row:
      for (std::int64_t c = 0; c < weight.cols; ++c)
        out[c] = static_cast<double>(static_cast<std::int8_t>(weight.data[row * weight.cols + c])) *
                 scale_of(weight, row, c);
      return;
    case WeightFormat::int4_group128:
    case WeightFormat::int4_group128_f16:
    case WeightFormat::int4_group128_zero:
    case WeightFormat::int4_group128_zero_f16: {
      const std::byte* codes =
          weight.data + row * static_cast<std::int64_t>(tensor::weight_row_bytes(weight.format, weight.cols));
      for (std::int64_t c = 0; c < weight.cols; ++c) {
        const int code = static_cast<int>(codes[c / 2]) >> (c % 2 * 4) & 15;
        out[c] = (code - zero_of(weight, row, c)) * scale_of(weight, row, c);
      }
      return;
    }
    case WeightFormat::i64:
      FATHOM_CHECK(false, "an integer table has no float rows");
  }
}

}  // namespace fathom::reference
