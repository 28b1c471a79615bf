// What kernels of every family share: what stored bits mean, sums over warps and blocks, tensors as kernels see them, launches.
// Device code of the cuda backend only. Numbers are read exactly (an 8- or 4-bit float times its scale rounds once, to f32) and sums
// are f32. Blocks have a multiple of 32 threads, at most 1024.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "backends/cuda/context.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace fathom::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------- elements

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(double value) { return static_cast<float>(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/// Rounds to nearest even, once.
template <class T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) { return value; }
template <>
__device__ inline __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

/// OCP e4m3fn: 0x7f and 0xff are NaN.
__device__ inline float e4m3_to_float(std::uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}
/// 2^(code - 127); 0xff is NaN.
__device__ inline float e8m0_to_float(std::uint8_t code) {
  return __uint_as_float(code == 0 ? 0x00400000u : code == 0xff ? 0x7fc00000u : static_cast<unsigned>(code) << 23);
}
/// e2m1, the low four bits: sign, two bits of exponent (bias 1), one of mantissa, read as those of an f16 that is 2^14 times smaller.
__device__ inline float e2m1_to_float(unsigned code) {
  const auto bits = static_cast<unsigned short>((code & 8u) << 12 | (code & 7u) << 9);
  return __half2float(__ushort_as_half(bits)) * 16384.0f;
}

// ---------------------------------------------------------------- weights

/// A weight as a kernel sees it; passed by value.
struct WeightView {
  const std::byte* data = nullptr;
  const std::byte* scales = nullptr;
  std::int64_t rows = 0, cols = 0;
  tensor::WeightFormat format = tensor::WeightFormat::f32;
};
inline WeightView view_of(const tensor::Weight& weight) {
  return {.data = weight.data, .scales = weight.scales, .rows = weight.rows, .cols = weight.cols, .format = weight.format};
}

/// The scale of element (row, col) of a quantized weight of `cols` columns; 1 for plain formats.
__device__ inline float weight_scale(tensor::WeightFormat format, const std::byte* scales, std::int64_t row, std::int64_t col, std::int64_t cols) {
  using tensor::WeightFormat;
  switch (format) {
    case WeightFormat::fp8_block128: return reinterpret_cast<const float*>(scales)[row / 128 * divide_up(cols, 128) + col / 128];
    case WeightFormat::fp8_block128_e8m0: return e8m0_to_float(static_cast<std::uint8_t>(scales[row / 128 * divide_up(cols, 128) + col / 128]));
    case WeightFormat::fp8_block32_e8m0: return e8m0_to_float(static_cast<std::uint8_t>(scales[row / 32 * divide_up(cols, 32) + col / 32]));
    case WeightFormat::fp8_row32_e8m0:
    case WeightFormat::mxfp4: return e8m0_to_float(static_cast<std::uint8_t>(scales[row * divide_up(cols, 32) + col / 32]));
    case WeightFormat::fp8_row:
    case WeightFormat::int8_row: return reinterpret_cast<const float*>(scales)[row];
    case WeightFormat::int4_group128:
    case WeightFormat::int4_group128_zero: return to_float(reinterpret_cast<const __nv_bfloat16*>(scales)[row * divide_up(cols, 128) + col / 128]);
    case WeightFormat::int4_group128_f16:
    case WeightFormat::int4_group128_zero_f16: return to_float(reinterpret_cast<const __half*>(scales)[row * divide_up(cols, 128) + col / 128]);
    default: return 1.0f;
  }
}

__host__ __device__ inline bool is_int4(tensor::WeightFormat format) { return format >= tensor::WeightFormat::int4_group128; }
__host__ __device__ inline bool has_zeros(tensor::WeightFormat format) { return format >= tensor::WeightFormat::int4_group128_zero; }
/// Where the zero points of an int4 weight lie behind its scales (tensor::zeros_offset).
__host__ __device__ inline std::int64_t offset_of_zeros(std::int64_t rows, std::int64_t cols) { return divide_up(rows * divide_up(cols, 128) * 2, 64) * 64; }
/// The zero point of element (row, col) of an int4 weight [rows, cols].
__device__ inline int weight_zero(tensor::WeightFormat format, const std::byte* scales, std::int64_t row, std::int64_t col, std::int64_t rows, std::int64_t cols) {
  if (!has_zeros(format)) return 8;
  const auto* words = reinterpret_cast<const std::uint32_t*>(scales + offset_of_zeros(rows, cols));
  return static_cast<int>(words[row / 8 * divide_up(cols, 128) + col / 128] >> (row % 8 * 4) & 15u);
}

/// Element (row, col) of a weight [rows, cols] of any float format, scale included.
__device__ inline float load_weight(tensor::WeightFormat format, const std::byte* data, const std::byte* scales, std::int64_t row, std::int64_t col,
                                    std::int64_t rows, std::int64_t cols) {
  using tensor::WeightFormat;
  const std::int64_t at = row * cols + col;
  switch (format) {
    case WeightFormat::f64: return static_cast<float>(reinterpret_cast<const double*>(data)[at]);
    case WeightFormat::f32: return reinterpret_cast<const float*>(data)[at];
    case WeightFormat::f16: return to_float(reinterpret_cast<const __half*>(data)[at]);
    case WeightFormat::bf16: return to_float(reinterpret_cast<const __nv_bfloat16*>(data)[at]);
    case WeightFormat::mxfp4: {
      const auto pair = static_cast<unsigned>(data[at / 2]);
      return e2m1_to_float(at % 2 == 0 ? pair & 15u : pair >> 4) * weight_scale(format, scales, row, col, cols);
    }
    case WeightFormat::i64: return static_cast<float>(reinterpret_cast<const std::int64_t*>(data)[at]);
    case WeightFormat::int8_row: return static_cast<float>(static_cast<std::int8_t>(data[at])) * weight_scale(format, scales, row, col, cols);
    case WeightFormat::int4_group128:
    case WeightFormat::int4_group128_f16:
    case WeightFormat::int4_group128_zero:
    case WeightFormat::int4_group128_zero_f16: {
      const int code = static_cast<int>(data[row * divide_up(cols, 8) * 4 + col / 2]) >> (col % 2 * 4) & 15;
      return static_cast<float>(code - weight_zero(format, scales, row, col, rows, cols)) * weight_scale(format, scales, row, col, cols);
    }
    default: return e4m3_to_float(static_cast<std::uint8_t>(data[at])) * weight_scale(format, scales, row, col, cols);
  }
}
__device__ inline float load_weight(const WeightView& weight, std::int64_t row, std::int64_t col) {
  return load_weight(weight.format, weight.data, weight.scales, row, col, weight.rows, weight.cols);
}

/// 16 bytes of weights, which pass by once: memory answers by lines of 128 bytes, of which a row's lanes often ask for half at a time.
__device__ inline uint4 stream_16(const void* from) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n" : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "l"(from));
  return out;
}

/// Eight consecutive elements from element `at` (a multiple of 8) of a row on, as they lie, without their scale (they share one). The
/// row's address must be a multiple of the bytes that eight elements take, or of 16 where that is more. Read once: not kept in the caches.
template <tensor::WeightFormat F>
struct EightOf;
template <>
struct EightOf<tensor::WeightFormat::f32> {
  float4 low, high;
  __device__ void read(const std::byte* data, std::int64_t at) {
    low = __ldcs(reinterpret_cast<const float4*>(data) + at / 4);
    high = __ldcs(reinterpret_cast<const float4*>(data) + at / 4 + 1);
  }
  __device__ void widen(float (&out)[8]) const {
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  }
};
template <>
struct EightOf<tensor::WeightFormat::bf16> {
  uint4 bits;
  __device__ void read(const std::byte* data, std::int64_t at) { bits = stream_16(reinterpret_cast<const uint4*>(data) + at / 8); }
  __device__ void widen(float (&out)[8]) const {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) out[2 * i] = __uint_as_float(words[i] << 16), out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
};
template <>
struct EightOf<tensor::WeightFormat::f16> {
  uint4 bits;
  __device__ void read(const std::byte* data, std::int64_t at) { bits = stream_16(reinterpret_cast<const uint4*>(data) + at / 8); }
  __device__ void widen(float (&out)[8]) const {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] & 0xffffu)));
      out[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
    }
  }
};
/// Every e4m3 format; the scales differ, the elements do not.
template <>
struct EightOf<tensor::WeightFormat::fp8_block128> {
  uint2 bits;
  __device__ void read(const std::byte* data, std::int64_t at) { bits = __ldcs(reinterpret_cast<const uint2*>(data) + at / 8); }
  __device__ void widen(float (&out)[8]) const {
    const unsigned words[2] = {bits.x, bits.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (i % 2 * 16) & 0xffffu);
      const float2 both = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
      out[2 * i] = both.x, out[2 * i + 1] = both.y;
    }
  }
};
/// A byte becomes the last of the float 2^23 + 128 + code: exact, without the slow conversion of integers.
template <>
struct EightOf<tensor::WeightFormat::int8_row> {
  uint2 bits;
  __device__ void read(const std::byte* data, std::int64_t at) { bits = __ldcs(reinterpret_cast<const uint2*>(data) + at / 8); }
  __device__ void widen(float (&out)[8]) const {
    const unsigned words[2] = {bits.x ^ 0x80808080u, bits.y ^ 0x80808080u};
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) out[i] = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7440u + i % 4)) - 8388736.0f;
  }
};
/// Code - 8: what int4 without zero points means. A half of a byte becomes the last of the float 2^23 + code.
template <>
struct EightOf<tensor::WeightFormat::int4_group128> {
  unsigned bits;
  __device__ void read(const std::byte* data, std::int64_t at) { bits = __ldcs(reinterpret_cast<const unsigned*>(data) + at / 8); }
  __device__ void widen(float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = __uint_as_float((bits >> (4 * i) & 15u) | 0x4b000000u) - 8388616.0f;
  }
};
template <>
struct EightOf<tensor::WeightFormat::mxfp4> {
  unsigned bits;
  __device__ void read(const std::byte* data, std::int64_t at) { bits = __ldcs(reinterpret_cast<const unsigned*>(data) + at / 8); }
  __device__ void widen(float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = e2m1_to_float(bits >> (4 * i) & 15u);
  }
};

/// Eight codes less eight become codes less the zero point that they share.
__device__ inline void add_zero(const WeightView& weight, std::int64_t row, std::int64_t col, float (&eight)[8]) {
  if (!has_zeros(weight.format)) return;
  const auto shift = static_cast<float>(8 - weight_zero(weight.format, weight.scales, row, col, weight.rows, weight.cols));
#pragma unroll
  for (int i = 0; i < 8; ++i) eight[i] += shift;
}

/// Formats that are read alike.
constexpr tensor::WeightFormat read_as(tensor::WeightFormat format) {
  using tensor::WeightFormat;
  switch (format) {
    case WeightFormat::fp8_block128_e8m0:
    case WeightFormat::fp8_block32_e8m0:
    case WeightFormat::fp8_row32_e8m0:
    case WeightFormat::fp8_row: return WeightFormat::fp8_block128;
    case WeightFormat::int4_group128_f16:
    case WeightFormat::int4_group128_zero:
    case WeightFormat::int4_group128_zero_f16: return WeightFormat::int4_group128;
    default: return format;
  }
}
/// Calls use(format) with the format that elements of `format` are read as.
template <class Use>
void with_format(tensor::WeightFormat format, Use use) {
  using tensor::WeightFormat;
  switch (read_as(format)) {
    case WeightFormat::f32: return use(std::integral_constant<WeightFormat, WeightFormat::f32>{});
    case WeightFormat::f16: return use(std::integral_constant<WeightFormat, WeightFormat::f16>{});
    case WeightFormat::bf16: return use(std::integral_constant<WeightFormat, WeightFormat::bf16>{});
    case WeightFormat::fp8_block128: return use(std::integral_constant<WeightFormat, WeightFormat::fp8_block128>{});
    case WeightFormat::mxfp4: return use(std::integral_constant<WeightFormat, WeightFormat::mxfp4>{});
    case WeightFormat::int8_row: return use(std::integral_constant<WeightFormat, WeightFormat::int8_row>{});
    case WeightFormat::int4_group128: return use(std::integral_constant<WeightFormat, WeightFormat::int4_group128>{});
    default: FATHOM_CHECK(false, "not a format that the cuda backend multiplies with");
  }
}

// ---------------------------------------------------------------- sums over lanes and threads, the same in all of them

__device__ inline float4 sum_of(const float4& a, const float4& b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
/// NaN when any lane has NaN.
__device__ inline float larger(float a, float b) { return a > b || a != a ? a : b; }
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = larger(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

/// The pair (a, b) rotated by the angle of cosine c and sine s. Rounded the same wherever it is done: the compiler may choose neither which product
/// is fused nor whether.
__device__ inline float rotated_first(float a, float b, float c, float s) { return fmaf(a, c, -__fmul_rn(b, s)); }
__device__ inline float rotated_second(float a, float b, float c, float s) { return fmaf(b, c, __fmul_rn(a, s)); }

/// Room in shared memory for block_sum and block_max: `__shared__ BlockRoom room;`. May be used again at once.
struct BlockRoom { float values[kWarp]; };
template <class Combine>
__device__ inline float block_combine(float value, float neutral, BlockRoom& room, Combine combine) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = combine(value);
  if (warps == 1) return value;
  __syncthreads();  // an earlier use has been read
  if (lane == 0) room.values[warp] = value;
  __syncthreads();
  return combine(lane < warps ? room.values[lane] : neutral);
}
__device__ inline float block_sum(float value, BlockRoom& room) {
  return block_combine(value, 0.0f, room, [](float v) { return warp_sum(v); });
}
__device__ inline float block_max(float value, BlockRoom& room) {
  return block_combine(value, -INFINITY, room, [](float v) { return warp_max(v); });
}

// ---------------------------------------------------------------- equations

/// 1 / (1 + exp(-x)); right for ±infinity, NaN stays NaN.
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }
/// silu(gate) · up, cut at `limit` where that is above 0; comparisons are written so that NaN stays NaN.
__device__ inline float gated(float gate, float up, float limit) {
  if (limit > 0.0f) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  return silu(gate) * up;
}

// ---------------------------------------------------------------- tensors

/// A tensor as a kernel sees it; passed by value. Dimensions that are not there have size 1 and stride 0.
template <class T>
struct View {
  T* data = nullptr;
  std::int64_t dims[4] = {1, 1, 1, 1};
  std::int64_t strides[4] = {0, 0, 0, 0};

  __device__ T* at(std::int64_t i) const { return data + i * strides[0]; }
  __device__ T* at(std::int64_t i, std::int64_t j) const { return at(i) + j * strides[1]; }
  __device__ T* at(std::int64_t i, std::int64_t j, std::int64_t k) const { return at(i, j) + k * strides[2]; }
  __host__ __device__ bool defined() const { return data != nullptr; }
};
template <class T>
inline constexpr DType kTypeOf = DType::boolean;
template <>
inline constexpr DType kTypeOf<float> = DType::f32;
template <>
inline constexpr DType kTypeOf<__half> = DType::f16;
template <>
inline constexpr DType kTypeOf<__nv_bfloat16> = DType::bf16;
template <>
inline constexpr DType kTypeOf<std::int32_t> = DType::i32;
template <>
inline constexpr DType kTypeOf<std::int64_t> = DType::i64;

/// Undefined tensors give an undefined view. T may be const.
template <class T>
View<T> view_of(const tensor::Tensor& x) {
  View<T> view;
  if (!x.defined()) return view;
  FATHOM_CHECK(x.dtype == kTypeOf<std::remove_const_t<T>>, "a tensor of another type");
  view.data = x.as<T>();
  for (int i = 0; i < x.shape.rank; ++i) {
    view.dims[i] = x.shape[i];
    view.strides[i] = x.strides[static_cast<std::size_t>(i)];
  }
  return view;
}

/// The rows (innermost dimension) of a tensor of any rank: row i of `count`, `n` elements each. Bytes, so that types may differ.
struct RowsView {
  std::byte* data = nullptr;
  std::int64_t count = 0, n = 0;
  std::int64_t dims[3] = {1, 1, 1};     // outer dimensions, outermost first, right-aligned
  std::int64_t strides[3] = {0, 0, 0};  // bytes
  DType dtype = DType::f32;

  template <class T>
  __device__ T* row(std::int64_t i) const {
    const std::int64_t c = i % dims[2], rest = i / dims[2];
    return reinterpret_cast<T*>(data + rest / dims[1] * strides[0] + rest % dims[1] * strides[1] + c * strides[2]);
  }
};
inline RowsView rows_of(const tensor::Tensor& x) {
  RowsView view;
  view.dtype = x.dtype;
  if (!x.defined()) return view;
  view.data = x.data;
  view.n = x.shape[x.shape.rank - 1];
  view.count = 1;
  for (int i = x.shape.rank - 2, to = 2; i >= 0; --i, --to) {
    view.dims[to] = x.shape[i];
    view.strides[to] = x.strides[static_cast<std::size_t>(i)] * dtype_bytes(x.dtype);
    view.count *= x.shape[i];
  }
  return view;
}
/// Whether every row starts at a multiple of `bytes`.
inline bool rows_aligned(const tensor::Tensor& x, std::int64_t bytes) {
  bool aligned = reinterpret_cast<std::uintptr_t>(x.data) % static_cast<std::uintptr_t>(bytes) == 0;
  for (int i = 0; i + 1 < x.shape.rank; ++i)
    aligned = aligned && (x.shape[i] <= 1 || x.strides[static_cast<std::size_t>(i)] * dtype_bytes(x.dtype) % bytes == 0);
  return aligned;
}

// ---------------------------------------------------------------- launches

/// Blocks for `items` units of work at `per_block` each, where the kernel strides over the grid (for_items): enough to fill the device.
inline unsigned grid_for(const Context& context, std::int64_t items, std::int64_t per_block) {
  const std::int64_t most = static_cast<std::int64_t>(std::max(context.multiprocessors, 1)) * 32;
  return static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(items, per_block), 1, most));
}
/// Calls use(i) for every i below count, over all threads of the grid.
template <class Use>
__device__ inline void for_items(std::int64_t count, Use use) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) use(i);
}

/// Calls use(T{}) with the element type of a plain float dtype; anything else is our own bug.
template <class Use>
void with_float_type(DType dtype, Use use) {
  switch (dtype) {
    case DType::f32: return use(float{});
    case DType::f16: return use(__half{});
    case DType::bf16: return use(__nv_bfloat16{});
    default: FATHOM_CHECK(false, "not a type that the cuda backend computes with");
  }
}

}  // namespace fathom::cuda
