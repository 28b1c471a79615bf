// Activations rounded to eight bits a token, or a token and 128 columns (tensor/ops.h, rounds_activations).
#pragma once
#include "backends/cuda/device_math.cuh"

namespace fathom::cuda {

struct RoundedRow { float scale; };

/// The scale of values whose largest is `most`; NaN where NaN or infinity is among them. powers: a power of two, not below.
template <bool kFp8>
__device__ inline RoundedRow rounded_of(float most, bool powers = false) {
  if (!(most <= 3.4028235e38f)) return {__uint_as_float(0x7fc00000u)};
  const float scale = most == 0.0f ? 1.0f : __fdiv_rn(most, kFp8 ? 448.0f : 127.0f);
  if (!powers) return {scale};
  return {__uint_as_float((max(__float_as_uint(scale), 0x00800000u) + 0x7fffffu) & 0xff800000u)};
}
/// The scale of a row, by all threads of a block; NaN where the row holds NaN or infinity.
template <bool kFp8>
__device__ inline RoundedRow rounded_row(const float* x, std::int64_t n, BlockRoom& room) {
  float most = 0.0f;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) most = larger(most, fabsf(x[i]));
  return rounded_of<kFp8>(block_max(most, room));
}
/// The code of an element, as bits.
template <bool kFp8>
__device__ inline std::uint8_t rounded_code(float x, RoundedRow row) {
  const float quotient = __fdiv_rn(x, row.scale);
  if constexpr (kFp8) return static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(quotient, __NV_SATFINITE, __NV_E4M3));
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(max(-127, min(127, __float2int_rn(quotient)))));
}
/// What the code means, scale included.
template <bool kFp8>
__device__ inline float rounded_value(float x, RoundedRow row) {
  const std::uint8_t code = rounded_code<kFp8>(x, row);
  if constexpr (kFp8) return e4m3_to_float(code) * row.scale;
  return static_cast<float>(static_cast<std::int8_t>(code)) * row.scale;
}

}  // namespace fathom::cuda
