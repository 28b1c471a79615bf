// Elements of caches in eight bits: e4m3 without scales, as CacheWriteArgs says (tensor/ops.h), with codes as base/dtype.h makes them, but that NaN
// has one; and codes of INT8, whose scales lie behind them (tensor/int8_rows.h).
#pragma once
#include "backends/cuda/segments.cuh"

namespace fathom::cuda {

struct E4m3 { std::uint8_t code; };
struct Int8 { std::int8_t code; };
static_assert(sizeof(E4m3) == 1 && sizeof(Int8) == 1);
template <>
inline constexpr DType kTypeOf<E4m3> = DType::f8e4m3;
template <>
inline constexpr DType kTypeOf<Int8> = DType::i8;
/// Whether rows have scales.
template <class T>
inline constexpr bool kRowScales = std::is_same_v<T, Int8>;

__device__ inline float to_float(E4m3 value) { return e4m3_to_float(value.code); }
__device__ inline float to_float(Int8 value) { return static_cast<float>(value.code); }
/// To nearest even; beyond ±448: ±448.
template <>
__device__ inline E4m3 from_float<E4m3>(float value) { return {static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3))}; }

/// Eight neighbours; of INT8 without their scale.
template <class T>
__device__ inline void widen_codes(const uint2& codes, float (&out)[8]) {
  if constexpr (kRowScales<T>) EightOf<tensor::WeightFormat::int8_row>{codes}.widen(out);
  else EightOf<tensor::WeightFormat::fp8_block128>{codes}.widen(out);
}
__device__ inline unsigned pack_four_codes(float a, float b, float c, float d) {
  const unsigned low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3), high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
__device__ inline uint2 pack_eight_codes(const float4& low, const float4& high) { return {pack_four_codes(low.x, low.y, low.z, low.w), pack_four_codes(high.x, high.y, high.z, high.w)}; }

// ---------------------------------------------------------------- rows of INT8

/// A head's scale from the largest size of its row, NaN where that is none.
__device__ inline float int8_scale_of(float largest) {
  const float scale = largest / 127.0f;
  return !(largest <= 3.402823466e38f) ? __uint_as_float(0x7fc00000u) : scale == 0.0f ? 1.0f : scale;
}
__device__ inline int int8_code(float x, float scale) { return scale == scale ? max(-127, min(127, __float2int_rn(x / scale))) : 0; }

/// The scale of head `head` of a row that begins `at` bytes behind `data`, its scales `scales` bytes further on.
__device__ inline float read_scale(const std::byte* data, std::int64_t at, std::int32_t scales, int head) { return *reinterpret_cast<const float*>(data + at + scales + 4 * head); }
template <class T>
__device__ inline float key_scale(const SegmentView& segment, std::int64_t row, int head) {
  if constexpr (kRowScales<T>) return read_scale(segment.k, row * segment.k_row, segment.k_scales, head);
  else return 1.0f;
}
template <class T>
__device__ inline float shared_scale(const SegmentView& segment, std::int64_t row) {
  if constexpr (kRowScales<T>) return read_scale(segment.k_shared, row * segment.shared_row, segment.shared_scales, 0);
  else return 1.0f;
}
template <class T>
__device__ inline float value_scale(const SegmentView& segment, std::int64_t row, int head) {
  if constexpr (kRowScales<T>) return read_scale(segment.v, row * segment.v_row, segment.v_scales, head);
  else return 1.0f;
}

/// A row of n elements as codes, and its scale, by one warp.
__device__ inline void write_int8_row(const float* x, int n, std::int8_t* to, float* scale_at) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float largest = 0.0f;
  for (int i = lane; i < n; i += kWarp) largest = larger(largest, fabsf(x[i]));
  const float scale = int8_scale_of(warp_max(largest));
  for (int i = lane; i < n; i += kWarp) to[i] = static_cast<std::int8_t>(int8_code(x[i], scale));
  if (lane == 0) *scale_at = scale;
}

}  // namespace fathom::cuda
