// x of products whose weights stream by (linear_stream.cuh), as operand B of tensor cores in shared memory.
#pragma once
#include "backends/cuda/linear_few.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

inline constexpr int kStreamedWarps = 16, kStreamedThreads = kStreamedWarps * kWarp, kStretch = 128;  // kStretch: bytes of a row
inline constexpr int kDigits = 3, kMostOfDigits = 8355711;  // of x beside whole numbers; 127 in each
/// The last digit of what is left of a whole number, between -128 and 127; the rest stays.
__device__ inline int take_digit(int& left) {
  const int digit = static_cast<int>(static_cast<unsigned>(left) << 24) >> 24;
  left = (left - digit) >> 8;
  return digit;
}
/// What the values of a norm are multiplied with, from the squares that each warp added up.
__device__ inline float factor_of_norm(const NormedX& norm, const float* squares) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kStreamedWarps; ++w) sum += squares[w];
  return 1.0f / sqrtf(sum / static_cast<float>(norm.n) + norm.eps);
}

template <tensor::WeightFormat F>
struct Streamed {
  static constexpr bool kInt4 = F == tensor::WeightFormat::int4_group128, kInt8 = F == tensor::WeightFormat::int8_row, kFp8 = F == tensor::WeightFormat::fp8_block128;
  static_assert(kInt4 || kInt8 || kFp8);
  static constexpr int kColumns = kInt4 ? 256 : 128;  // of a stretch
  static constexpr int kPieces = kInt4 || kFp8 ? 4 : 2;                    // of a stretch of x: 16 bytes of each of four lanes
  static constexpr int kStage = 16 * kStretch + (kInt4 ? 160 : kFp8 ? 32 : 0);  // codes of 16 rows; scales and zero points
};
inline constexpr int kStreamDepth = 3;  // stretches that a warp has on their way

struct StreamView {
  Together all;           // first_block: the first unit
  unsigned units = 0;
  int tokens = 1, parts = 1, columns = 1;  // columns of operand B: tokens · parts
  int stretches = 0;      // of a row
  int slots = 1;          // units whose sums a block keeps before it adds them up
  int team = 1;           // warps that share a unit
};

/// x of a block as operand B, and what its groups of 128 columns stand for.
template <tensor::WeightFormat F>
struct StreamedX {
  uint4* pieces;       // [stretch][piece][column][lane of four]
  float* factors;      // [group][column], padded to whole tiles
  std::int32_t* sums;  // the same: of the digits
};

__device__ inline float largest_of_16(float value) {
#pragma unroll
  for (int step = 1; step < 16; step *= 2) value = larger(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

/// Eight columns of one token, from column 8 · eight of the block's on, to columns `column` and following of B. All lanes of a warp, so that 16 have a
/// group; of those that are not `valid` nothing is stored.
struct PlaceOfEight {
  int column, eight;
  bool valid;
};

/// Two f16 halves of x times a power of two that makes the largest of the group about 2^8.
template <tensor::WeightFormat F>
__device__ inline void put_f16(const StreamedX<F>& to, const StreamView& view, int padded, const PlaceOfEight& place, float most, float (&x)[8]) {
  const int exponent = min(max(static_cast<int>(__float_as_uint(most) >> 23), 16), 254), eight = place.eight;  // biased
  const float shrink = __uint_as_float(static_cast<unsigned>(254 + 8 - exponent) << 23);
  if (!place.valid) return;
  uint4* at = to.pieces + ((eight / 16 * 4 + eight % 16 / 8 * 2 + eight % 2) * view.columns + place.column) * 4 + eight % 8 / 2;
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] *= shrink;
  for (int part = 0; part < view.parts; ++part) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = pack_two<__half>(x[2 * i], x[2 * i + 1]);
      x[2 * i] -= to_float(__ushort_as_half(static_cast<unsigned short>(words[i] & 0xffffu)));
      x[2 * i + 1] -= to_float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
    }
    at[part * 4] = make_uint4(words[0], words[1], words[2], words[3]);
    if (eight % 16 == 0) to.factors[eight / 16 * padded + place.column + part] = 1.0f / shrink;
  }
}

/// Three digits of eight bits of x over the largest of the group: 23 bits and a sign.
template <tensor::WeightFormat F>
__device__ inline void put_digits(const StreamedX<F>& to, const StreamView& view, int padded, const PlaceOfEight& place, float most, float (&x)[8]) {
  constexpr bool kInt4 = Streamed<F>::kInt4;
  const int eight = place.eight;
  most = most < 1e-30f ? 1e-30f : most;
  const float scale = static_cast<float>(kMostOfDigits) / most;
  float stands_for = most / static_cast<float>(kMostOfDigits);
  int left[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) left[i] = max(-kMostOfDigits, min(kMostOfDigits, __float2int_rn(x[i] * scale)));
  const int piece = kInt4 ? eight / 32 * 4 + eight % 32 / 16 * 2 + eight % 4 / 2 : eight / 8, quad = kInt4 ? eight % 16 / 4 : eight % 8 / 2;
#pragma unroll
  for (int part = kDigits - 1; part >= 0; --part, stands_for *= 256.0f) {
    unsigned words[2] = {};
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int digit = take_digit(left[i]);
      sum += digit;
      const unsigned bits = static_cast<unsigned>(digit) & 255u;
      if constexpr (kInt4) words[i % 2] |= bits << (i / 2 * 8);  // even columns are low nibbles
      else words[i / 4] |= bits << (i % 4 * 8);
    }
    if constexpr (kInt4) {
#pragma unroll
      for (int step = 1; step < 16; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    }
    if (!place.valid) continue;
    reinterpret_cast<uint2*>(to.pieces + (piece * view.columns + place.column + part) * 4 + quad)[eight % 2] = make_uint2(words[0], words[1]);
    if (eight % 16 != 0) continue;
    const int at = eight / 16 * padded + place.column + part;
    if constexpr (kInt4) to.sums[at] = sum;
    to.factors[at] = stands_for;
  }
}

template <tensor::WeightFormat F>
__device__ inline void put_eight(const StreamedX<F>& to, const StreamView& view, int padded, const PlaceOfEight& place, float (&x)[8]) {
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) most = larger(most, fabsf(x[i]));
  most = largest_of_16(most);
  if constexpr (Streamed<F>::kFp8) put_f16<F>(to, view, padded, place, most, x);
  else put_digits<F>(to, view, padded, place, most, x);
}

/// Fills the block's columns of x: x as it lies, or from · weight of a norm that nobody has made. Answers this thread's
/// squares of `from`.
template <tensor::WeightFormat F>
__device__ inline float fill_x(const StreamedX<F>& to, const StreamView& view, int padded) {
  constexpr int kBatch = 3;
  const Product& p = view.all.products[0];
  const NormedX& norm = view.all.norm;
  const int cols = static_cast<int>(p.weight.cols), eights = view.stretches * (Streamed<F>::kColumns / 8), items = view.tokens * eights;
  float squares = 0.0f;
  for (int base = 0; base < items; base += kBatch * kStreamedThreads) {
    float x[kBatch][8];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int item = base + i * kStreamedThreads + static_cast<int>(threadIdx.x), token = item / eights, col = item % eights * 8;
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][j] = 0.0f;
      if (item < items && col < cols) read_eight_floats((norm.from != nullptr ? norm.from : p.x + token * p.x_stride) + col, x[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int item = base + i * kStreamedThreads + static_cast<int>(threadIdx.x), token = item / eights, eight = item % eights, col = eight * 8;
      if (base + i * kStreamedThreads >= items) break;
      if (norm.from != nullptr && item < items && col < cols) {
        float weight[8];
        read_eight_of(norm.weight, norm.weight_type, col, weight);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += x[i][j] * x[i][j], x[i][j] *= weight[j];
      }
      put_eight<F>(to, view, padded, {token * view.parts, eight, item < items}, x[i]);
    }
  }
  return squares;
}

}  // namespace fathom::cuda
