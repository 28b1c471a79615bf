// Rows of caches in INT8: a tensor of codes, dtype i8, [rows, n] or [rows, heads, n], whose rows hold their scales too.
//
// A head's row of n elements has one scale: a = max |x|, scale = a / 127 in f32, 1 where that is 0; code = x / scale,
// divided in f32, to the nearest whole number, ties to even, within ±127; what is read is code · scale. A row that
// holds NaN or infinity has scale NaN: all of it is NaN then. The scales, f32, one a head, lie behind the codes of the
// row's last head, from the next multiple of four bytes on. Rows begin at multiples of four bytes, those of an engine's
// caches at multiples of sixteen. Views that keep the first column and all heads keep their scales; values that are a
// view of the first columns of keys have the keys' scales. This header alone says where scales lie.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace fathom::tensor {

/// Bytes from one row of a cache to the next: codes and scales, to a multiple of 16.
constexpr std::int64_t int8_row_bytes(std::int64_t heads, std::int64_t n) {
  return ((heads * n + 3) / 4 * 4 + 4 * heads + 15) / 16 * 16;
}

/// Bytes from a row's first code to its first scale.
inline std::int64_t int8_scales_offset(const Tensor& x) {
  FATHOM_CHECK(x.dtype == DType::i8 && (x.shape.rank == 2 || x.shape.rank == 3));
  const std::int64_t codes = x.shape.rank == 2 ? x.dim(1) : (x.dim(1) - 1) * x.strides[1] + x.dim(2);
  return (codes + 3) / 4 * 4;
}

inline float* int8_scale(const Tensor& x, std::int64_t row, std::int64_t head) {
  return reinterpret_cast<float*>(x.data + row * x.strides[0] + int8_scales_offset(x)) + head;
}

}  // namespace fathom::tensor
