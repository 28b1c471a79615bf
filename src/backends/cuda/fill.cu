// Twin: weights/random.cpp, whose constants these are.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "backends/cuda/fill.h"

namespace fathom::cuda {
namespace {

constexpr std::uint64_t kRun = 65536;  // elements under one key

__device__ __forceinline__ std::uint64_t mix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

__device__ __forceinline__ std::uint32_t scramble(std::uint32_t x, std::uint64_t key) {
  x *= 0x9e3779b1u;
  x ^= x >> 15;
  x = (x + static_cast<std::uint32_t>(key)) * 0x85ebca77u;
  x ^= x >> 13;
  x = (x ^ static_cast<std::uint32_t>(key >> 32)) * 0xc2b2ae3du;
  return x ^ (x >> 16);
}

__device__ __forceinline__ float number(std::uint32_t inside, std::uint64_t key, float mean, float factor) {
  const std::uint32_t a = scramble(inside, key);
  std::uint32_t b = (a ^ 0x5bf03635u) * 0x27d4eb2fu;
  b = (b ^ (b >> 15)) * 0x165667b1u;
  b ^= b >> 16;
  const std::uint32_t sum = (a & 0xffffu) + (a >> 16) + (b & 0xffffu) + (b >> 16);
  const float z = __fmul_rn(static_cast<float>(static_cast<std::int32_t>(sum) - 131070), factor);
  return mean == 0 ? z : __fadd_rn(z, mean);
}

__device__ __forceinline__ void store(float* out, float x) { *out = x; }
__device__ __forceinline__ void store(__half* out, float x) { *out = __float2half_rn(x); }
__device__ __forceinline__ void store(__nv_bfloat16* out, float x) { *out = __float2bfloat16_rn(x); }

struct Shape { std::int64_t rows, cols; std::uint64_t key, first, pitch; };

// Each block takes stretches of a row that lie within one run mostly; the key is worked out anew where it changes.
template <class Draw>
__device__ __forceinline__ void each_element(const Shape& s, const Draw& draw) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x, n = s.rows * s.cols;
  std::uint64_t run = ~std::uint64_t{0}, key = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const std::int64_t row = i / s.cols;
    const std::uint64_t element = s.first + static_cast<std::uint64_t>(row) * s.pitch + static_cast<std::uint64_t>(i - row * s.cols);
    if (element / kRun != run) {
      run = element / kRun;
      key = mix64(s.key + run);
    }
    draw(i, static_cast<std::uint32_t>(element % kRun), key);
  }
}

template <class T>
__global__ void fill_numbers(Shape shape, float mean, float factor, T* out) {
  each_element(shape, [&](std::int64_t i, std::uint32_t inside, std::uint64_t key) { store(out + i, number(inside, key, mean, factor)); });
}

__global__ void fill_codes(Shape shape, const std::uint8_t* codes, std::uint8_t* out) {
  each_element(shape, [&](std::int64_t i, std::uint32_t inside, std::uint64_t key) { out[i] = codes[scramble(inside / 2, key) >> (inside % 2 * 16) & 0xffffu]; });
}

}  // namespace

bool launch_fill(Context& context, const tensor::RandomFill& fill, const std::uint8_t* codes) {
  const Shape shape{fill.rows, fill.cols, fill.key, fill.first, fill.pitch};
  const std::int64_t n = fill.rows * fill.cols;
  if (n == 0) return true;
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>((n + 1023) / 1024, 1, 16 * context.multiprocessors));
  if (codes != nullptr) {
    if (fill.dtype != DType::u8) return false;
    fill_codes<<<blocks, 256, 0, context.stream>>>(shape, codes, reinterpret_cast<std::uint8_t*>(fill.out));
  } else if (fill.dtype == DType::f32) {
    fill_numbers<<<blocks, 256, 0, context.stream>>>(shape, fill.mean, fill.factor, reinterpret_cast<float*>(fill.out));
  } else if (fill.dtype == DType::f16) {
    fill_numbers<<<blocks, 256, 0, context.stream>>>(shape, fill.mean, fill.factor, reinterpret_cast<__half*>(fill.out));
  } else if (fill.dtype == DType::bf16) {
    fill_numbers<<<blocks, 256, 0, context.stream>>>(shape, fill.mean, fill.factor, reinterpret_cast<__nv_bfloat16*>(fill.out));
  } else {
    return false;
  }
  context.launched();
  return true;
}

}  // namespace fathom::cuda
