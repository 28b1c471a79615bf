// Rounding to fewer bits, a row at a time, and whole checkpoints.
#include "weights/quantize.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>

#include "base/json.h"
#include "support.h"
#include "weights/quantize_rows.h"

namespace fathom::weights::test {
namespace {
using tensor::WeightCode;
using tensor::WeightFormat;

constexpr WeightFormat kFormats[] = {
    WeightFormat::fp8_row,           WeightFormat::int8_row,           WeightFormat::int4_group128,
    WeightFormat::int4_group128_f16, WeightFormat::int4_group128_zero, WeightFormat::int4_group128_zero_f16};

// A row quantized, with what its codes can mean: the nearest of them is what each element must have become.
struct Quantized {
  tensor::WeightLayout layout;
  std::vector<std::byte> codes, scale_bytes;
  std::vector<std::uint8_t> zeros;
  std::vector<float> scales;

  Quantized(WeightFormat format, const std::vector<float>& row) : layout(tensor::weight_layout(format)) {
    const auto cols = static_cast<std::int64_t>(row.size());
    const std::size_t groups = tensor::weight_scale_count(format, 1, cols),
                      size = static_cast<std::size_t>(dtype_bytes(layout.scale));
    codes.assign(tensor::weight_row_bytes(format, cols), std::byte{0xff});
    scale_bytes.resize(groups * size);
    zeros.assign(groups, 8);
    quantize_row(format, row, {codes, scale_bytes, zeros});
    for (std::size_t g = 0; g < groups; ++g) {
      std::uint16_t half = 0;
      float wide = 0;
      if (size == 4)
        std::memcpy(&wide, scale_bytes.data() + g * 4, 4);
      else
        std::memcpy(&half, scale_bytes.data() + g * 2, 2),
            wide = layout.scale == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
      scales.push_back(wide);
    }
  }
  float scale(std::size_t i) const { return scales[i / static_cast<std::size_t>(layout.cols)]; }
  int code(std::size_t i) const {
    const auto byte = static_cast<std::uint8_t>(codes[layout.code == WeightCode::kUint4 ? i / 2 : i]);
    return layout.code == WeightCode::kUint4 ? byte >> (i % 2 * 4) & 15 : byte;
  }
  // What a code stands for, in units of the scale.
  double meaning(int code, std::size_t i) const {
    if (layout.code == WeightCode::kE4m3) return static_cast<double>(f8e4m3_to_f32(static_cast<std::uint8_t>(code)));
    if (layout.code == WeightCode::kInt8) return static_cast<std::int8_t>(code);
    return code - static_cast<int>(zeros[i / static_cast<std::size_t>(layout.cols)]);
  }
  double value(std::size_t i) const { return meaning(code(i), i) * static_cast<double>(scale(i)); }
};

std::vector<float> some_row() {
  const auto size = *rc::gen::inRange<std::size_t>(1, 300);
  const int exponent = *rc::gen::inRange(-60, 60);
  const auto integers = *rc::gen::container<std::vector<int>>(size, rc::gen::inRange(-1'000'000, 1'000'000));
  std::vector<float> row;
  for (const int i : integers) row.push_back(std::ldexp(static_cast<float>(i) * 1e-6f, exponent));
  return row;
}

RC_GTEST_PROP(QuantizeRow, TakesTheNearestCode, ()) {
  const std::vector<float> row = some_row();
  for (const WeightFormat format : kFormats) {
    const Quantized q(format, row);
    const int codes = q.layout.code == WeightCode::kUint4 ? 16 : 256;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double wanted = static_cast<double>(row[i] / q.scale(i)), got = q.meaning(q.code(i), i);
      double nearest = std::numeric_limits<double>::infinity();
      for (int code = 0; code < codes; ++code) {
        if (q.layout.code == WeightCode::kInt8 && code == 128) continue;  // -128 is not used
        const double distance = std::fabs(q.meaning(code, i) - wanted);
        if (distance < nearest) nearest = distance;
      }
      RC_ASSERT(std::fabs(got - wanted) <= nearest * (1 + 1e-6) + 1e-6);
    }
  }
}

RC_GTEST_PROP(QuantizeRow, KeepsWhatItMade, ()) {  // what is representable stays as it is
  const std::vector<float> row = some_row();
  for (const WeightFormat format : {WeightFormat::fp8_row, WeightFormat::int8_row}) {
    const Quantized once(format, row);
    std::vector<float> values;
    for (std::size_t i = 0; i < row.size(); ++i) values.push_back(static_cast<float>(once.value(i)));
    const Quantized twice(format, values);
    for (std::size_t i = 0; i < row.size(); ++i)
      RC_ASSERT(std::fabs(twice.value(i) - once.value(i)) <= 1e-6 * std::fabs(once.value(i)));
  }
}

TEST(QuantizeRow, TiesGoToEven) {
  std::vector<float> row = {127, 0.5f, 1.5f, -0.5f, -2.5f, 126.5f};  // scale 1
  const Quantized int8(WeightFormat::int8_row, row);
  ASSERT_EQ(int8.scales[0], 1.0f);
  EXPECT_EQ(int8.value(1), 0);
  EXPECT_EQ(int8.value(2), 2);
  EXPECT_EQ(int8.value(3), 0);
  EXPECT_EQ(int8.value(4), -2);
  EXPECT_EQ(int8.value(5), 126);
  row = {448, 17, 19, 0x1p-10f, 0x1.8p-9f, -25};  // scale 1; steps of 2 from 16 on, of 2^-9 at the bottom
  const Quantized fp8(WeightFormat::fp8_row, row);
  ASSERT_EQ(fp8.scales[0], 1.0f);
  EXPECT_EQ(fp8.value(1), 16);
  EXPECT_EQ(fp8.value(2), 20);
  EXPECT_EQ(fp8.value(3), 0);
  EXPECT_EQ(fp8.value(4), 0x1p-8);
  EXPECT_EQ(fp8.value(5), -24);
  row = {7.5f, 0.5f, 1.5f, -7.5f, -2.5f, 6.5f};  // scale 1
  const Quantized int4(WeightFormat::int4_group128, row);
  ASSERT_EQ(int4.scales[0], 1.0f);
  EXPECT_EQ(int4.value(0), 7);  // saturated
  EXPECT_EQ(int4.value(1), 0);
  EXPECT_EQ(int4.value(2), 2);
  EXPECT_EQ(int4.value(3), -8);
  EXPECT_EQ(int4.value(4), -2);
  EXPECT_EQ(int4.value(5), 6);
}

TEST(QuantizeRow, EveryE4m3IsItself) {
  std::vector<float> row;
  for (int code = 0; code < 256; ++code)
    if (code % 128 != 127) row.push_back(f8e4m3_to_f32(static_cast<std::uint8_t>(code)));
  const Quantized q(WeightFormat::fp8_row, row);
  for (std::size_t i = 0; i < row.size(); ++i) {
    EXPECT_EQ(q.value(i), static_cast<double>(row[i]));
    EXPECT_EQ(std::signbit(q.meaning(q.code(i), i)), std::signbit(row[i]));
  }
}

TEST(QuantizeRow, ZeroRowsAndExtremes) {
  for (const WeightFormat format : kFormats) {
    const Quantized zeros(format, std::vector<float>(200, 0.0f));
    EXPECT_EQ(zeros.scales[0], 1.0f);
    for (std::size_t i = 0; i < 200; ++i) EXPECT_EQ(zeros.value(i), 0);
    for (const float extreme : {std::numeric_limits<float>::max(), 1e-42f, std::numeric_limits<float>::min()}) {
      const bool half = tensor::weight_layout(format).scale == DType::f16;
      if (half && extreme > 1) continue;  // beyond what an f16 scale reaches
      const Quantized q(format, {extreme, -extreme, extreme / 2});
      for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isfinite(q.value(i))) << tensor::weight_format_name(format);
      if (extreme > 1) {
        EXPECT_NEAR(q.value(1) / static_cast<double>(-extreme), 1, 0.1);
      }
    }
  }
}

TEST(QuantizeRow, ZeroPointsReachBothEnds) {
  const std::vector<float> row = {-1, 14, 3, 0};  // scale 1, zero 1
  const Quantized q(WeightFormat::int4_group128_zero, row);
  EXPECT_EQ(q.zeros[0], 1);
  for (std::size_t i = 0; i < row.size(); ++i) EXPECT_EQ(q.value(i), static_cast<double>(row[i]));
  const Quantized positive(WeightFormat::int4_group128_zero, {15, 3, 1});
  EXPECT_EQ(positive.zeros[0], 0);
  EXPECT_EQ(positive.value(0), 15);
}

}  // namespace
}  // namespace fathom::weights::test
