#include "tensor/weight.h"

namespace fathom::tensor {
namespace {
std::uint64_t ceil_div(std::int64_t a, std::int64_t b) { return static_cast<std::uint64_t>((a + b - 1) / b); }

constexpr std::string_view kNames[kWeightFormatCount] = {"f64",
                                                         "f32",
                                                         "f16",
                                                         "bf16",
                                                         "fp8_block128",
                                                         "fp8_block128_e8m0",
                                                         "fp8_block32_e8m0",
                                                         "fp8_row32_e8m0",
                                                         "mxfp4",
                                                         "i64",
                                                         "fp8_row",
                                                         "int8_row",
                                                         "int4_group128",
                                                         "int4_group128_f16",
                                                         "int4_group128_zero",
                                                         "int4_group128_zero_f16"};
constexpr std::uint64_t kZerosAlignment = 64;
}  // namespace

std::string_view weight_format_name(WeightFormat format) { return kNames[static_cast<int>(format)]; }

std::optional<WeightFormat> parse_weight_format(std::string_view name) {
  for (int i = 0; i < kWeightFormatCount; ++i)
    if (kNames[i] == name) return static_cast<WeightFormat>(i);
  return std::nullopt;
}

WeightLayout weight_layout(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8_block128:
      return {WeightCode::kE4m3, 128, 128, DType::f32, false};
    case WeightFormat::fp8_block128_e8m0:
      return {WeightCode::kE4m3, 128, 128, DType::e8m0, false};
    case WeightFormat::fp8_block32_e8m0:
      return {WeightCode::kE4m3, 32, 32, DType::e8m0, false};
    case WeightFormat::fp8_row32_e8m0:
      return {WeightCode::kE4m3, 1, 32, DType::e8m0, false};
    case WeightFormat::mxfp4:
      return {WeightCode::kE2m1, 1, 32, DType::e8m0, false};
    case WeightFormat::fp8_row:
      return {WeightCode::kE4m3, 1, kWholeRow, DType::f32, false};
    case WeightFormat::int8_row:
      return {WeightCode::kInt8, 1, kWholeRow, DType::f32, false};
    case WeightFormat::int4_group128:
      return {WeightCode::kUint4, 1, 128, DType::bf16, false};
    case WeightFormat::int4_group128_f16:
      return {WeightCode::kUint4, 1, 128, DType::f16, false};
    case WeightFormat::int4_group128_zero:
      return {WeightCode::kUint4, 1, 128, DType::bf16, true};
    case WeightFormat::int4_group128_zero_f16:
      return {WeightCode::kUint4, 1, 128, DType::f16, true};
    case WeightFormat::f64:
    case WeightFormat::f32:
    case WeightFormat::f16:
    case WeightFormat::bf16:
    case WeightFormat::i64:
      return {};
  }
  FATHOM_CHECK(false);
}

std::uint64_t weight_scale_count(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const WeightLayout layout = weight_layout(format);
  return layout.rows == 0 ? 0 : ceil_div(rows, layout.rows) * ceil_div(cols, layout.cols);
}

std::uint64_t weight_row_bytes(WeightFormat format, std::int64_t cols) {
  const auto n = static_cast<std::uint64_t>(cols);
  switch (weight_layout(format).code) {
    case WeightCode::kPlain:
      return n * static_cast<std::uint64_t>(dtype_bytes(weight_dtype(format)));
    case WeightCode::kE4m3:
    case WeightCode::kInt8:
      return n;
    case WeightCode::kE2m1:
      return n / 2;
    case WeightCode::kUint4:
      return ceil_div(cols, 8) * 4;
  }
  FATHOM_CHECK(false);
}

std::uint64_t zeros_offset(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const std::uint64_t scales =
      weight_scale_count(format, rows, cols) * static_cast<std::uint64_t>(dtype_bytes(weight_layout(format).scale));
  return (scales + kZerosAlignment - 1) / kZerosAlignment * kZerosAlignment;
}

std::uint64_t weight_scale_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const WeightLayout layout = weight_layout(format);
  if (!layout.zeros)
    return weight_scale_count(format, rows, cols) * static_cast<std::uint64_t>(dtype_bytes(layout.scale));
  return zeros_offset(format, rows, cols) + ceil_div(rows, 8) * ceil_div(cols, layout.cols) * 4;
}

std::uint64_t weight_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  return weight_row_bytes(format, cols) * static_cast<std::uint64_t>(rows) + weight_scale_bytes(format, rows, cols);
}

DType weight_dtype(WeightFormat format) {
  switch (format) {
    case WeightFormat::f64:
      return DType::f64;
    case WeightFormat::f32:
      return DType::f32;
    case WeightFormat::f16:
      return DType::f16;
    case WeightFormat::bf16:
      return DType::bf16;
    case WeightFormat::i64:
      return DType::i64;
    default:
      FATHOM_CHECK(false, "not a plain format");
  }
}

WeightFormat plain_weight_format(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return WeightFormat::f64;
    case DType::f32:
      return WeightFormat::f32;
    case DType::f16:
      return WeightFormat::f16;
    case DType::bf16:
      return WeightFormat::bf16;
    case DType::i64:
      return WeightFormat::i64;
    default:
      FATHOM_CHECK(false, "no plain weight format of this type");
  }
}

Tensor Weight::tensor() const {
  const Shape shape = rows == 1 ? Shape{cols} : Shape{rows, cols};
  return make_tensor(const_cast<std::byte*>(data), weight_dtype(format), shape);
}

Weight Weight::row_range(std::int64_t first, std::int64_t count) const {
  FATHOM_CHECK(first >= 0 && count >= 0 && first + count <= rows);
  Weight part = *this;
  part.rows = count;
  part.data += static_cast<std::int64_t>(weight_bytes(format, 1, cols)) * first;
  FATHOM_CHECK(weight_scale_count(format, 1, cols) == 0, "row ranges of quantized weights are not addressable");
  return part;
}

}  // namespace fathom::tensor
