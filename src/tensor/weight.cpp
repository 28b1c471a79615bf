#include "tensor/weight.h"

namespace fathom::tensor {
namespace {
std::uint64_t ceil_div(std::int64_t a, std::int64_t b) { return static_cast<std::uint64_t>((a + b - 1) / b); }
}  // namespace

std::string_view weight_format_name(WeightFormat format) {
  static constexpr std::string_view names[kWeightFormatCount] = {"f64", "f32", "f16", "bf16", "fp8_block128", "fp8_block128_e8m0",
                                                                 "fp8_block32_e8m0", "fp8_row32_e8m0", "mxfp4", "i64"};
  return names[static_cast<int>(format)];
}

std::uint64_t weight_scale_count(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  switch (format) {
    case WeightFormat::fp8_block128:
    case WeightFormat::fp8_block128_e8m0: return ceil_div(rows, 128) * ceil_div(cols, 128);
    case WeightFormat::fp8_block32_e8m0: return ceil_div(rows, 32) * ceil_div(cols, 32);
    case WeightFormat::fp8_row32_e8m0:
    case WeightFormat::mxfp4: return static_cast<std::uint64_t>(rows) * ceil_div(cols, 32);
    default: return 0;
  }
}

std::uint64_t weight_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const std::uint64_t n = static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(cols);
  const std::uint64_t scales = weight_scale_count(format, rows, cols);
  switch (format) {
    case WeightFormat::f64:
    case WeightFormat::i64: return n * 8;
    case WeightFormat::f32: return n * 4;
    case WeightFormat::f16:
    case WeightFormat::bf16: return n * 2;
    case WeightFormat::fp8_block128: return n + scales * 4;
    case WeightFormat::fp8_block128_e8m0:
    case WeightFormat::fp8_block32_e8m0:
    case WeightFormat::fp8_row32_e8m0: return n + scales;
    case WeightFormat::mxfp4: return n / 2 + scales;
  }
  FATHOM_CHECK(false);
}

DType weight_dtype(WeightFormat format) {
  switch (format) {
    case WeightFormat::f64: return DType::f64;
    case WeightFormat::f32: return DType::f32;
    case WeightFormat::f16: return DType::f16;
    case WeightFormat::bf16: return DType::bf16;
    case WeightFormat::i64: return DType::i64;
    default: FATHOM_CHECK(false, "not a plain format");
  }
}

WeightFormat plain_weight_format(DType dtype) {
  switch (dtype) {
    case DType::f64: return WeightFormat::f64;
    case DType::f32: return WeightFormat::f32;
    case DType::f16: return WeightFormat::f16;
    case DType::bf16: return WeightFormat::bf16;
    case DType::i64: return WeightFormat::i64;
    default: FATHOM_CHECK(false, "no plain weight format of this type");
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
