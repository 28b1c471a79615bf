// Elements of caches in eight bits. e4m3 without scales, as CacheWriteArgs says (tensor/ops.h); codes as base/dtype.h makes them, but that NaN has
// one code. Exact in f16 and bf16.
#pragma once
#include "backends/cuda/device_math.cuh"

namespace fathom::cuda {

struct E4m3 { std::uint8_t code; };
static_assert(sizeof(E4m3) == 1);
template <>
inline constexpr DType kTypeOf<E4m3> = DType::f8e4m3;

__device__ inline float to_float(E4m3 value) { return e4m3_to_float(value.code); }
/// To nearest even; beyond ±448: ±448.
template <>
__device__ inline E4m3 from_float<E4m3>(float value) { return {static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3))}; }

/// Eight neighbours.
__device__ inline void widen_codes(const uint2& codes, float (&out)[8]) {
  const unsigned words[2] = {codes.x, codes.y};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (i % 2 * 16) & 0xffffu);
    const float2 both = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
    out[2 * i] = both.x, out[2 * i + 1] = both.y;
  }
}
__device__ inline unsigned pack_four_codes(float a, float b, float c, float d) {
  const unsigned low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3), high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
__device__ inline uint2 pack_eight_codes(const float4& low, const float4& high) { return {pack_four_codes(low.x, low.y, low.z, low.w), pack_four_codes(high.x, high.y, high.z, high.w)}; }

}  // namespace fathom::cuda
