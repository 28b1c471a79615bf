// Every weight format read bit by bit, against values worked out by hand; and collectives of one rank.
#include "backends/reference/dequantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backends/held.h"
#include "backends/self/self_collectives.h"

namespace fathom::test {
namespace {
using tensor::Weight;
using tensor::WeightFormat;
using testing::ElementsAre;

std::vector<double> row_of(const Weight& weight, std::int64_t row) {
  std::vector<double> out(static_cast<std::size_t>(weight.cols));
  reference::dequantize_row(weight, row, out.data());
  return out;
}

TEST(Dequantize, E2m1HasSixteenCodes) {
  std::vector<float> codes;
  for (int code = 0; code < 16; ++code) codes.push_back(reference::f4e2m1_to_f32(static_cast<std::uint8_t>(code)));
  EXPECT_THAT(codes, ElementsAre(0, .5, 1, 1.5, 2, 3, 4, 6, -0.0f, -.5, -1, -1.5, -2, -3, -4, -6));
  EXPECT_TRUE(std::signbit(codes[8]));
}

TEST(Dequantize, Mxfp4LowHalfFirstAndAScaleAThirtySecondColumn) {
  std::vector<std::uint8_t> data(2 * 64 / 2, 0x22), scales = {127, 128, 126, 130};  // 0x2: 1.0; scales 1, 2, 1/2, 8
  data[0] = 0x71;                                                                   // columns 0, 1: 0.5, 6
  data[63] = 0xf8;                                                                  // row 1, columns 62, 63: -0, -6
  const Weight weight{.format = WeightFormat::mxfp4,
                      .rows = 2,
                      .cols = 64,
                      .data = reinterpret_cast<std::byte*>(data.data()),
                      .scales = reinterpret_cast<std::byte*>(scales.data())};
  const auto first = row_of(weight, 0), second = row_of(weight, 1);
  EXPECT_EQ(first[0], 0.5);
  EXPECT_EQ(first[1], 6.0);
  EXPECT_EQ(first[31], 1.0);
  EXPECT_EQ(first[32], 2.0);
  EXPECT_EQ(second[31], 0.5);
  EXPECT_EQ(second[61], 8.0);
  EXPECT_EQ(second[62], 0.0);
  EXPECT_EQ(second[63], -48.0);
}

TEST(Dequantize, SquareBlocksOfFp8WithTails) {
  constexpr std::int64_t kRows = 130, kCols = 257;      // 2 × 3 blocks of 128, 5 × 9 blocks of 32
  std::vector<std::uint8_t> data(kRows * kCols, 0x38);  // 1.0
  std::vector<float> f32_scales = {1, 2, 3, 4, 5, 6.5f};
  std::vector<std::uint8_t> e8m0(5 * 9, 127);
  Weight weight{.format = WeightFormat::fp8_block128,
                .rows = kRows,
                .cols = kCols,
                .data = reinterpret_cast<std::byte*>(data.data()),
                .scales = reinterpret_cast<std::byte*>(f32_scales.data())};
  ASSERT_EQ(tensor::weight_scale_count(weight.format, kRows, kCols), f32_scales.size());
  EXPECT_EQ(row_of(weight, 127)[127], 1.0);
  EXPECT_EQ(row_of(weight, 127)[128], 2.0);
  EXPECT_EQ(row_of(weight, 0)[256], 3.0);
  EXPECT_EQ(row_of(weight, 128)[0], 4.0);
  EXPECT_EQ(row_of(weight, 129)[256], 6.5);

  weight.format = WeightFormat::fp8_block128_e8m0;
  weight.scales = reinterpret_cast<std::byte*>(e8m0.data());
  e8m0[5] = 124;  // block (1, 2): 1/8
  EXPECT_EQ(row_of(weight, 129)[256], 0.125);
  EXPECT_EQ(row_of(weight, 129)[255], 1.0);

  weight.format = WeightFormat::fp8_block32_e8m0;
  ASSERT_EQ(tensor::weight_scale_count(weight.format, kRows, kCols), e8m0.size());
  e8m0[5] = 127;
  e8m0[9 * 4 + 8] = 130;
  EXPECT_EQ(row_of(weight, 128)[256], 8.0);
  EXPECT_EQ(row_of(weight, 127)[256], 1.0);

  std::vector<std::uint8_t> row_scales(kRows * 9, 127);
  weight.format = WeightFormat::fp8_row32_e8m0;
  weight.scales = reinterpret_cast<std::byte*>(row_scales.data());
  ASSERT_EQ(tensor::weight_scale_count(weight.format, kRows, kCols), row_scales.size());
  row_scales[9 * 7 + 1] = 128;
  EXPECT_EQ(row_of(weight, 7)[32], 2.0);
  EXPECT_EQ(row_of(weight, 7)[31], 1.0);
  EXPECT_EQ(row_of(weight, 8)[32], 1.0);
}

TEST(Dequantize, RowsOfEightBits) {
  const std::vector<std::uint8_t> fp8 = {0x38, 0xb8, 0x7e, 0x01}, int8 = {0x7f, 0x81, 0xff, 0x00};  // 127, -127, -1, 0
  const std::vector<float> scales = {2, 0.5f};
  Weight weight{.format = WeightFormat::fp8_row,
                .rows = 2,
                .cols = 2,
                .data = reinterpret_cast<const std::byte*>(fp8.data()),
                .scales = reinterpret_cast<const std::byte*>(scales.data())};
  EXPECT_THAT(row_of(weight, 0), ElementsAre(2, -2));
  EXPECT_THAT(row_of(weight, 1), ElementsAre(224, 0x1p-10));
  weight.format = WeightFormat::int8_row;
  weight.data = reinterpret_cast<const std::byte*>(int8.data());
  EXPECT_THAT(row_of(weight, 0), ElementsAre(254, -254));
  EXPECT_THAT(row_of(weight, 1), ElementsAre(-0.5, 0));
}

TEST(Dequantize, GroupsOfFourBitsWithAndWithoutZeroPoints) {
  constexpr std::int64_t kRows = 10, kCols = 132;  // rows of 17 words; two groups, the second of four columns
  ASSERT_EQ(tensor::weight_row_bytes(WeightFormat::int4_group128, kCols), 68u);
  std::vector<std::uint8_t> data(kRows * 68, 0x88);
  data[0] = 0xf0;            // columns 0, 1: codes 0 and 15
  data[68 * 9 + 64] = 0x19;  // row 9, columns 128, 129: 9 and 1
  for (const auto& [format, zero_format] :
       {std::pair{WeightFormat::int4_group128, WeightFormat::int4_group128_zero},
        std::pair{WeightFormat::int4_group128_f16, WeightFormat::int4_group128_zero_f16}}) {
    const std::uint16_t one = format == WeightFormat::int4_group128 ? f32_to_bf16(1) : f32_to_f16(1),
                        quarter = format == WeightFormat::int4_group128 ? f32_to_bf16(.25f) : f32_to_f16(.25f);
    std::vector<std::uint16_t> scales(64 / 2 + 8, one);  // 20 scales, zero points from byte 64 on: 2 × 2 words
    ASSERT_EQ(tensor::zeros_offset(zero_format, kRows, kCols), 64u);
    ASSERT_EQ(tensor::weight_scale_bytes(zero_format, kRows, kCols), 80u);
    scales[9 * 2 + 1] = quarter;
    const std::vector<std::uint32_t> zeros = {0x88888883, 0x88888888, 0x88888888,
                                              0x888888a8};  // row 0: 3; row 9's second: 10
    std::memcpy(scales.data() + 32, zeros.data(), 16);
    Weight weight{.format = format,
                  .rows = kRows,
                  .cols = kCols,
                  .data = reinterpret_cast<const std::byte*>(data.data()),
                  .scales = reinterpret_cast<const std::byte*>(scales.data())};
    EXPECT_EQ(row_of(weight, 0)[0], -8);
    EXPECT_EQ(row_of(weight, 0)[1], 7);
    EXPECT_EQ(row_of(weight, 9)[128], 0.25);
    EXPECT_EQ(row_of(weight, 9)[129], -1.75);
    weight.format = zero_format;
    EXPECT_EQ(row_of(weight, 0)[0], -3);
    EXPECT_EQ(row_of(weight, 0)[1], 12);
    EXPECT_EQ(row_of(weight, 0)[128], 0);
    EXPECT_EQ(row_of(weight, 9)[128], -0.25);
    EXPECT_EQ(row_of(weight, 9)[129], -2.25);
  }
}

TEST(SelfCollectives, AreCopies) {
  const auto self = self::make_self_collectives();
  const Held x(DType::f32, {2, 2}, {1, 2, 3, 4}), out(DType::f32, {2, 2});
  for (const auto group : {tensor::Group::kTensor, tensor::Group::kExpert, tensor::Group::kData,
                           tensor::Group::kContext, tensor::Group::kPipeline}) {
    EXPECT_EQ(self->size(group), 1);
    EXPECT_EQ(self->rank(group), 0);
  }
  self->all_reduce(tensor::Group::kTensor, x);
  self->all_gather(tensor::Group::kTensor, x, out);
  EXPECT_THAT(out.values(), ElementsAre(1, 2, 3, 4));
  self->reduce_scatter(tensor::Group::kTensor, out, out);
  const Held other(DType::f32, {2, 2});
  self->all_to_all(tensor::Group::kExpert, out, other);
  EXPECT_THAT(other.values(), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(x.values(), ElementsAre(1, 2, 3, 4));
}

}  // namespace
}  // namespace fathom::test
