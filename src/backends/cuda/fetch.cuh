// Reading ahead, and vectors by eights.
#pragma once
#include "backends/cuda/any_float.cuh"

namespace fathom::cuda {

/// Asks the L2 cache for the 128 bytes about an address.
__device__ inline void fetch_to_l2(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

__device__ inline void read_eight_floats(const float* from, float (&out)[8]) {
  const auto* vectors = reinterpret_cast<const float4*>(from);
  const float4 low = vectors[0], high = vectors[1];
  out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w, out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}
/// Eight elements of a vector at a multiple of 16 bytes; ones where there is none.
__device__ inline void read_eight_of(const std::byte* vector, DType type, std::int64_t at, float (&out)[8]) {
  if (vector == nullptr) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = 1.0f;
  } else if (type == DType::f32) {
    read_eight_floats(reinterpret_cast<const float*>(vector) + at, out);
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(vector + 2 * at);
    if (type == DType::bf16) EightOf<tensor::WeightFormat::bf16>{bits}.widen(out);
    else EightOf<tensor::WeightFormat::f16>{bits}.widen(out);
  }
}

}  // namespace fathom::cuda
