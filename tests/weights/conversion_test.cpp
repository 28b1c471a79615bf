#include "weights/conversion.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "support.h"

namespace fathom::weights {
namespace {

template <class To, class From>
std::vector<To> converted(DType from, const std::vector<From>& in, DType to) {
  std::vector<To> out(in.size());
  convert(from, std::as_bytes(std::span(in)), to, std::as_writable_bytes(std::span(out)));
  return out;
}

std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

// Every value whose top half is any pattern and whose low half sits around the places where rounding turns.
std::vector<float> telling_floats() {
  std::vector<float> out;
  for (std::uint32_t high = 0; high < 65536; ++high)
    for (const std::uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      out.push_back(std::bit_cast<float>(high << 16 | low));
  return out;
}

TEST(Convert, All16BitPatternsWidenExactly) {
  std::vector<std::uint16_t> all(65536);
  std::iota(all.begin(), all.end(), 0);
  const auto bf16 = converted<float>(DType::bf16, all, DType::f32), f16 = converted<float>(DType::f16, all, DType::f32);
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(bits(bf16[i]), bits(bf16_to_f32(all[i]))) << i;
    EXPECT_EQ(bits(f16[i]), bits(f16_to_f32(all[i]))) << i;
  }
}

TEST(Convert, NarrowsAsTheBaseDoes) {
  const std::vector<float> in = telling_floats();
  const auto bf16 = converted<std::uint16_t>(DType::f32, in, DType::bf16),
             f16 = converted<std::uint16_t>(DType::f32, in, DType::f16);
  for (std::size_t i = 0; i < in.size(); ++i) {
    ASSERT_EQ(bf16[i], f32_to_bf16(in[i])) << std::hex << bits(in[i]);
    ASSERT_EQ(f16[i], f32_to_f16(in[i])) << std::hex << bits(in[i]);
  }
}

TEST(Convert, DoublesRoundOnceOnly) {
  // 1 + 2^-8 + 2^-40 lies just above the middle of two bf16 numbers; through f32 it would land on the middle and go to
  // even.
  const std::vector<double> in = {1 + 0x1p-8 + 0x1p-40,
                                  1 + 0x1p-8 - 0x1p-40,
                                  -(1 + 0x1p-8 + 0x1p-40),
                                  1 + 0x1p-11 + 0x1p-40,
                                  3e38,
                                  1e300,
                                  -1e300,
                                  0.0,
                                  -0.0,
                                  1e-310,
                                  std::numeric_limits<double>::infinity(),
                                  std::numeric_limits<double>::quiet_NaN()};
  const auto bf16 = converted<std::uint16_t>(DType::f64, in, DType::bf16),
             f16 = converted<std::uint16_t>(DType::f64, in, DType::f16);
  EXPECT_EQ(bf16_to_f32(bf16[0]), 1 + 0x1p-7f);
  EXPECT_EQ(bf16_to_f32(bf16[1]), 1.0f);
  EXPECT_EQ(bf16_to_f32(bf16[2]), -(1 + 0x1p-7f));
  EXPECT_EQ(f16_to_f32(f16[3]), 1 + 0x1p-10f);
  EXPECT_EQ(bf16_to_f32(bf16[5]), std::numeric_limits<float>::infinity());
  EXPECT_EQ(bf16_to_f32(bf16[6]), -std::numeric_limits<float>::infinity());
  EXPECT_EQ(bf16[7], 0u);
  EXPECT_EQ(bf16[8], 0x8000u);
  EXPECT_EQ(bf16[9], 0u);
  EXPECT_TRUE(std::isinf(bf16_to_f32(bf16[10])));
  EXPECT_TRUE(std::isnan(bf16_to_f32(bf16[11])));
  EXPECT_TRUE(std::isnan(f16_to_f32(f16[11])));
}

RC_GTEST_PROP(Convert, EveryPairOfPlainTypesAgreesWithTheBase, (const std::vector<float>& values, bool via_f16)) {
  const DType middle = via_f16 ? DType::f16 : DType::bf16, other = via_f16 ? DType::bf16 : DType::f16;
  const auto narrow = converted<std::uint16_t>(DType::f32, values, middle);
  const auto crossed = converted<std::uint16_t>(middle, narrow, other);
  const auto doubles = converted<double>(middle, narrow, DType::f64);
  const auto back = converted<std::uint16_t>(DType::f64, doubles, middle);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float wide = via_f16 ? f16_to_f32(narrow[i]) : bf16_to_f32(narrow[i]);
    RC_ASSERT(crossed[i] == (via_f16 ? f32_to_bf16(wide) : f32_to_f16(wide)));
    RC_ASSERT((std::isnan(wide) ? std::isnan(doubles[i]) : doubles[i] == static_cast<double>(wide)));
    RC_ASSERT((std::isnan(wide) || back[i] == narrow[i]));
  }
}

TEST(Dequantize, EveryCodeTimesItsScale) {
  std::vector<std::uint8_t> codes(256);
  std::iota(codes.begin(), codes.end(), 0);
  const std::vector<float> scales = {0.5f, 3.0f, -1.0f};
  std::vector<float> out(256);
  dequantize_fp8(codes, scales, 100, out);
  for (std::size_t i = 0; i < 256; ++i) {
    const float expected = f8e4m3_to_f32(codes[i]) * scales[i / 100];
    EXPECT_TRUE(std::isnan(expected) ? std::isnan(out[i]) : out[i] == expected) << i;
  }
  const float table[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  std::vector<float> pairs(512);
  const std::vector<float> blocks = {1, 2, 4, 8, 0.5f, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  dequantize_fp4(codes, blocks, pairs);
  for (std::size_t i = 0; i < 512; ++i)
    EXPECT_EQ(pairs[i], table[i % 2 == 0 ? codes[i / 2] & 15 : codes[i / 2] >> 4] * blocks[i / 32]) << i;
  std::vector<float> powers(256);
  decode_e8m0(codes, powers);
  EXPECT_EQ(powers[127], 1.0f);
  EXPECT_EQ(powers[0], 0x1p-127f);
  EXPECT_TRUE(std::isnan(powers[255]));
}

TEST(FirstNotFinite, FindsTheFirst) {
  std::vector<float> f32(1000, 1.0f);
  EXPECT_FALSE(first_not_finite(DType::f32, std::as_bytes(std::span(f32))));
  f32[700] = std::numeric_limits<float>::infinity();
  f32[800] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(first_not_finite(DType::f32, std::as_bytes(std::span(f32))), 700u);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    auto narrow = converted<std::uint16_t>(DType::f32, f32, dtype);
    EXPECT_EQ(first_not_finite(dtype, std::as_bytes(std::span(narrow))), 700u);
    narrow[700] = 0;
    EXPECT_EQ(first_not_finite(dtype, std::as_bytes(std::span(narrow))), 800u);
  }
  const std::vector<std::uint8_t> codes = {0x7e, 0xfe, 0xff};
  EXPECT_EQ(first_not_finite(DType::f8e4m3, std::as_bytes(std::span(codes))), 2u);
  const std::vector<double> f64 = {1, -std::numeric_limits<double>::infinity()};
  EXPECT_EQ(first_not_finite(DType::f64, std::as_bytes(std::span(f64))), 1u);
}

}  // namespace
}  // namespace fathom::weights
