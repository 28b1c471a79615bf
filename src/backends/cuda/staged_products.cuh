// Products of one token by warpgroups, whose weights come in pieces (staged_ring.cuh): the tensor cores read the weights where the copy engine puts them, so no
// instruction of a warp touches them (but for codes of four bits, which are widened in registers).
//
// A piece is 16 rows, eight stretches of 128 bytes of each: [stretch][row][128 bytes], swizzled. Four stretches are one operand A of 64 rows: row 16 · s + r
// is row r in stretch s, so each warp of a group has a stretch. Operand B is x as parts: of bf16 two bf16 halves, of e4m3 three e4m3 digits, of whole numbers
// three digits of eight bits; x of the four stretches are its columns 0, 8, 16, 24 and following. A warp's 16 columns but for its own stretch's
// parts are nobody's: what they are made of is whatever lies there.
#pragma once
#include "backends/cuda/codes_mma.cuh"
#include "backends/cuda/staged_x.cuh"

namespace fathom::cuda {

#if defined(FATHOM_WGMMA_HERE)

/// Operand B: x of the four stretches from `at` on.
template <tensor::WeightFormat F>
__device__ inline std::uint64_t staged_x(unsigned at) {
  return (at & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(Staged<F>::kCore >> 4) << 16 | static_cast<std::uint64_t>(Staged<F>::kOfStretch >> 4) << 32;
}

#define FATHOM_STAGED_SUMS "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define FATHOM_STAGED_D(C) \
  C(d[0]), C(d[1]), C(d[2]), C(d[3]), C(d[4]), C(d[5]), C(d[6]), C(d[7]), C(d[8]), C(d[9]), C(d[10]), C(d[11]), C(d[12]), C(d[13]), C(d[14]), C(d[15])
/// d (+)= a · b, 64 × 32 × 32 bytes: a by_rows, b staged_x.
template <tensor::WeightFormat F>
__device__ inline void multiply_staged(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {
  if constexpr (Staged<F>::kBf16)
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 " FATHOM_STAGED_SUMS ", %16, %17, p, 1, 1, 0, 0;\n}\n"
                 : FATHOM_STAGED_D("+f")
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  else
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 " FATHOM_STAGED_SUMS ", %16, %17, p, 1, 1;\n}\n"
                 : FATHOM_STAGED_D("+f")
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
template <tensor::WeightFormat F>
__device__ inline void multiply_staged(int (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 " FATHOM_STAGED_SUMS ", %16, %17, p;\n}\n"
               : FATHOM_STAGED_D("+r")
               : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
/// The same with a of this warp's 16 rows in registers, without signs.
__device__ inline void multiply_staged(int (&d)[16], const unsigned (&a)[4], std::uint64_t b, bool add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\nwgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 " FATHOM_STAGED_SUMS ", {%16, %17, %18, %19}, %20, p;\n}\n"
               : FATHOM_STAGED_D("+r")
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}
/// Sums that products made are there: after wait_products.
__device__ inline void see_sums(float (&d)[16]) { asm volatile("" : FATHOM_STAGED_D("+f")::"memory"); }
__device__ inline void see_sums(int (&d)[16]) { asm volatile("" : FATHOM_STAGED_D("+r")::"memory"); }

/// Of a warp's sums those of its own stretch: rows lane / 4 and 8 more, by columns 2 · (lane % 4) and the next.
template <class T>
__device__ inline void own_sums(const T (&d)[16], T (&own)[4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T low = warp % 2 == 0 ? d[i] : d[4 + i], high = warp % 2 == 0 ? d[8 + i] : d[12 + i];
    own[i] = warp < 2 ? low : high;
  }
}

/// A piece that has come, and what a warpgroup multiplies it with.
template <tensor::WeightFormat F>
struct StagedPiece {
  using Shape = Staged<F>;
  const unsigned char* memory;  // of the block; x lies at its beginning
  const StagedXRoom<F>& room;
  unsigned weights, beside;     // from there on
  int first;                    // stretch
  tensor::WeightFormat format;
  int cols, odd;                // cols: of the weight. int4: bit i, whether the first scale of this lane's row i is at an odd index

  /// The weight's row in each half that this lane has as row lane / 4 of operand A: of four bits, rows whose chunks lie in other banks follow each other.
  __device__ static int row() {
    const int group = static_cast<int>(threadIdx.x) % kWarp / 4;
    return Shape::kInt4 ? group % 2 * 4 + group / 2 : group;
  }
  __device__ int tiles() const { return min(kPieceStretches / kTileStretches, (room.stretches - first) / kTileStretches); }
  __device__ unsigned x_at(int tile) const { return shared_address(memory) + static_cast<unsigned>((first + tile * kTileStretches) * Shape::kOfStretch); }
  __device__ unsigned weights_at(int tile) const { return shared_address(memory) + weights + static_cast<unsigned>(tile * kTileBytes); }
  __device__ int own_stretch(int tile) const { return tile * kTileStretches + static_cast<int>(threadIdx.x) / kWarp % 4; }

  /// Adds to sums of this lane's two rows and columns; of bf16, of all columns. Sums of whole numbers and of e4m3 are of x over its group's factor.
  __device__ void multiply(float (&acc)[16]) const {
    begin_products();
#pragma unroll 1
    for (int tile = 0; tile < tiles(); ++tile) {
#pragma unroll
      for (int step = 0; step < 4; ++step) multiply_staged<F>(acc, by_rows(weights_at(tile) + step * 32), staged_x<F>(x_at(tile) + step * 2 * Shape::kCore), true);
    }
    commit_products();
    wait_products<0>();
    see_sums(acc);
  }
  __device__ void multiply(float (&acc)[4]) const {
    if constexpr (Shape::kInt4) multiply_int4(acc);
    else multiply_codes(acc);
  }

 private:
  __device__ void multiply_codes(float (&acc)[4]) const {
    using Sum = std::conditional_t<Shape::kInt8, int, float>;
#pragma unroll 1
    for (int tile = 0; tile < tiles(); ++tile) {
      Sum d[16], own[4];
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) multiply_staged<F>(d, by_rows(weights_at(tile) + step * 32), staged_x<F>(x_at(tile) + step * 2 * Shape::kCore), step > 0);
      commit_products();
      const int stretch = first + own_stretch(tile);
      const float factor = reinterpret_cast<const float*>(memory + room.factors)[stretch];
      float2 scale = make_float2(factor, factor);
      if (Shape::kFp8 && format == tensor::WeightFormat::fp8_block128) {
        scale = *reinterpret_cast<const float2*>(memory + beside + own_stretch(tile) * 8);
        scale = stretch * 128 < cols ? make_float2(scale.x * factor, scale.y * factor) : make_float2(0.0f, 0.0f);
      }
      wait_products<0>();
      see_sums(d);
      own_sums(d, own);
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[i] += static_cast<float>(own[i]) * (i < 2 ? scale.x : scale.y);
    }
  }
  __device__ void multiply_int4(float (&acc)[4]) const {
    const int quad = static_cast<int>(threadIdx.x) % 4;
#pragma unroll 1
    for (int tile = 0; tile < tiles(); ++tile) {
      const unsigned char* const codes = memory + weights + own_stretch(tile) * (16 * kStretch) + row() * kStretch;
#pragma unroll 1
      for (int sub = 0; sub < 2; ++sub) {
        const int chunk = ((sub * 4 + quad) ^ row()) * 16;
        const uint4 top = *reinterpret_cast<const uint4*>(codes + chunk), bottom = *reinterpret_cast<const uint4*>(codes + 8 * kStretch + chunk);
        const unsigned words[2][4] = {{top.x, top.y, top.z, top.w}, {bottom.x, bottom.y, bottom.z, bottom.w}};
        unsigned a[4][4];
#pragma unroll
        for (int w = 0; w < 4; ++w)
#pragma unroll
          for (int i = 0; i < 4; ++i) a[w][i] = words[i % 2][w] >> (i / 2 * 4) & 0x0f0f0f0fu;
        int d[16], own[4];
        begin_products();
#pragma unroll
        for (int w = 0; w < 4; ++w) multiply_staged(d, a[w], staged_x<F>(x_at(tile) + (sub * 4 + w) * 2 * Shape::kCore), w > 0);
        commit_products();
        const int group = (first + own_stretch(tile)) * 2 + sub;
        const float factor = reinterpret_cast<const float*>(memory + room.factors)[group];
        const int2 digits = *reinterpret_cast<const int2*>(memory + room.sums + group * 16 + quad % 2 * 8);
        float scale[2];
        int zero[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) read_scale(memory + beside + own_stretch(tile) * 160, group, half, sub, scale[half], zero[half]);
        wait_products<0>();
        see_sums(d);
        own_sums(d, own);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          scale[half] *= factor;
          acc[2 * half] += static_cast<float>(own[2 * half] - zero[half] * digits.x) * scale[half];
          acc[2 * half + 1] += static_cast<float>(own[2 * half + 1] - zero[half] * digits.y) * scale[half];
        }
      }
    }
  }
  /// The scale and zero point of this lane's row `half` in a group.
  __device__ void read_scale(const unsigned char* own, int group, int half, int sub, float& scale, int& zero) const {
    const int shift = (odd >> half & 1) + sub;
    const bool half_precision = format == tensor::WeightFormat::int4_group128_f16 || format == tensor::WeightFormat::int4_group128_zero_f16;
    const unsigned short bits = reinterpret_cast<const unsigned short*>(own)[(half * 8 + row()) * 4 + shift];
    scale = half_precision ? to_float(__ushort_as_half(bits)) : __uint_as_float(static_cast<unsigned>(bits) << 16);
    if (group * 128 >= cols) scale = 0.0f;  // behind the last group
    zero = has_zeros(format) ? static_cast<int>(reinterpret_cast<const unsigned*>(own + 128)[half * 2 + sub] >> (row() * 4) & 15u) : 8;
  }
};

/// What a warp's sums come to for this lane's two rows; in lanes whose number is a multiple of four.
template <tensor::WeightFormat F>
__device__ inline float2 total_of(const float (&acc)[4]) {
  float sum[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (Staged<F>::kBf16) sum[half] = acc[2 * half + 1] + acc[2 * half];
    else {
      const float last = __shfl_down_sync(kAllLanes, acc[2 * half], 1);  // the third part
      sum[half] = Staged<F>::kWhole ? (last + acc[2 * half + 1] * 256.0f) + acc[2 * half] * 65536.0f : (last + acc[2 * half + 1]) + acc[2 * half];
    }
  }
  return make_float2(sum[0], sum[1]);
}

#endif  // FATHOM_WGMMA_HERE

}  // namespace fathom::cuda
