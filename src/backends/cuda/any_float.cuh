// One element of a small vector (bias, sink, base) whose float type only the host knows beforehand.
#pragma once
#include "backends/cuda/device_math.cuh"

namespace fathom::cuda {

struct FloatVector {
  const std::byte* data = nullptr;  // null: undefined
  DType dtype = DType::f32;
  __device__ float operator[](std::int64_t at) const {
    if (dtype == DType::f32) return reinterpret_cast<const float*>(data)[at];
    if (dtype == DType::bf16) return to_float(reinterpret_cast<const __nv_bfloat16*>(data)[at]);
    return to_float(reinterpret_cast<const __half*>(data)[at]);
  }
};
inline FloatVector vector_of(const tensor::Tensor& x) {
  if (!x.defined()) return {};
  FATHOM_CHECK(x.contiguous() && (x.dtype == DType::f32 || x.dtype == DType::f16 || x.dtype == DType::bf16));
  return {x.data, x.dtype};
}

}  // namespace fathom::cuda
