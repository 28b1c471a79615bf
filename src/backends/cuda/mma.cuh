// Tensor cores and asynchronous copies, sm_80 and newer: fragments of mma.sync m16n8k16 (16-bit operands, f32 sums), tiles in shared memory
// whose 16-byte chunks are swizzled so that ldmatrix meets no bank conflict, and cp.async.
//
// Fragments, for lane l: A (16 × 16) a[0]: row l/4, columns 2·(l%4) + {0, 1}; a[1]: row + 8; a[2], a[3]: the same, columns + 8.
// B (16 × 8) b[0]: rows 2·(l%4) + {0, 1}, column l/4; b[1]: rows + 8. C (16 × 8) c[0], c[1]: row l/4, columns 2·(l%4) + {0, 1}; c[2], c[3]: row + 8.
#pragma once
#include "backends/cuda/device_math.cuh"

namespace fathom::cuda {

__device__ inline unsigned shared_address(const void* at) { return static_cast<unsigned>(__cvta_generic_to_shared(at)); }

// ---------------------------------------------------------------- copies

/// 16 bytes from global to shared memory; zeros where `here` is false (nothing is read then).
__device__ inline void copy_16(unsigned to, const void* from, bool here) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(here ? 16 : 0) : "memory");
}
/// The same where others ask for the rest of a line of 128 bytes soon.
__device__ inline void copy_16_of_line(unsigned to, const void* from, bool here) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(here ? 16 : 0) : "memory");
}
/// The same of four bytes.
__device__ inline void copy_4(unsigned to, const void* from, bool here) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(here ? 4 : 0) : "memory");
}
/// 16 bytes within shared memory.
__device__ inline void move_16(unsigned to, unsigned from) {
  uint4 bits;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "r"(from) : "memory");
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Waits until at most kLeft of the groups that this thread committed are under way.
template <int kLeft>
__device__ inline void wait_copies() { asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory"); }

// ---------------------------------------------------------------- tiles

/// Byte offset of chunk `chunk` (of 16 bytes) of row `row`; rows have kChunks chunks, a multiple of 8.
template <int kChunks>
__device__ inline unsigned swizzled(int row, int chunk) {
  static_assert(kChunks % 8 == 0);
  return static_cast<unsigned>((row * kChunks + (chunk ^ (row & 7))) * 16);
}

__device__ inline void load_matrices(unsigned at, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}
/// Two of them: the addresses of lanes 0 to 15.
__device__ inline void load_matrices(unsigned at, unsigned (&out)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n" : "=r"(out[0]), "=r"(out[1]) : "r"(at) : "memory");
}
__device__ inline void load_matrices_transposed(unsigned at, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}

/// A of rows [row, row + 16), columns [16 · step, + 16) of a tile that lies row by row.
template <int kChunks>
__device__ inline void load_a(unsigned tile, int row, int step, unsigned (&a)[4]) {
  const int lane = threadIdx.x % kWarp;
  load_matrices(tile + swizzled<kChunks>(row + lane % 16, 2 * step + lane / 16), a);
}
/// B of two neighbouring fragments, whose columns are rows [row, + 8) and [row + 8, + 8) of the tile and whose rows are its columns
/// [16 · step, + 16): b[0], b[1] of the first, b[2], b[3] of the second.
template <int kChunks>
__device__ inline void load_b(unsigned tile, int row, int step, unsigned (&b)[4]) {
  const int lane = threadIdx.x % kWarp;
  load_matrices(tile + swizzled<kChunks>(row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2), b);
}
/// B of two neighbouring fragments, whose rows are rows [row, + 16) of the tile and whose columns are its chunks `chunk` and `chunk` + 1.
template <int kChunks>
__device__ inline void load_b_transposed(unsigned tile, int row, int chunk, unsigned (&b)[4]) {
  const int lane = threadIdx.x % kWarp;
  load_matrices_transposed(tile + swizzled<kChunks>(row + lane % 16, chunk + lane / 16), b);
}

// ---------------------------------------------------------------- products

/// c += a · b.
template <class T>
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ inline void multiply_add<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_add<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats rounded to 16 bits each, the first in the low half.
template <class T>
__device__ inline unsigned pack_two(float low, float high);
template <>
__device__ inline unsigned pack_two<__nv_bfloat16>(float low, float high) {
  unsigned out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <>
__device__ inline unsigned pack_two<__half>(float low, float high) {
  unsigned out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <class T>
__device__ inline uint4 pack_eight(const float4& low, const float4& high) {
  return {pack_two<T>(low.x, low.y), pack_two<T>(low.z, low.w), pack_two<T>(high.x, high.y), pack_two<T>(high.z, high.w)};
}

/// c += a · b, whole numbers of eight bits, a 16 × 32 and b 32 × 8: as above with four columns (of b: rows) where there are two, sums exact.
__device__ inline void multiply_add(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
/// 2^x in one instruction: 2 ulp, 0 for -infinity.
__device__ inline float exp_of_2(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(x));
  return out;
}

}  // namespace fathom::cuda
