// Products of one token, whose weights come in pieces (staged_ring.cuh). Of bf16 and e4m3 by warpgroups: the tensor cores read the weights where the copy
// engine puts them, so no instruction of a warp touches them. Whole numbers of eight bits and four go through registers, warp by warp.
//
// A piece is 16 rows, eight stretches of 128 bytes of each: [stretch][row][128 bytes], swizzled. A tile is four stretches, one a warp of a group. As operand A
// of 64 rows its row 16 · s + r is row r in stretch s, and operand B is x as parts: of bf16 two bf16 halves, of e4m3 three e4m3 digits; x of the four stretches
// are its columns 0, 8, 16, 24 and following. A warp's 16 columns but for its own stretch's parts are nobody's: what they are made of is whatever lies there.
// Of whole numbers x is three digits of eight bits, the first columns of eight, and of four bits columns 4 to 6 too.
#pragma once
#include "backends/cuda/codes_mma.cuh"
#include "backends/cuda/staged_x.cuh"

namespace fathom::cuda {

#if defined(FATHOM_WGMMA_HERE)

/// Operands are named by two words, of which a step of 16 bytes adds one to the first. A: rows of a tile from `at` on. B: x of its four stretches. An address
/// has its block's rank in the cluster above 18 bits, where operands have other things.
__device__ inline std::uint64_t operand(unsigned first, unsigned second) {
  std::uint64_t both;
  asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(first), "r"(second));
  return both;
}
inline constexpr unsigned kRowsOperand = 64u | 1u << 30;
__device__ inline unsigned rows_operand(unsigned at) { return (at & 0x3ffffu) >> 4 | 1u << 16; }
template <tensor::WeightFormat F>
inline constexpr unsigned kXOperand = Staged<F>::kOfStretch >> 4;
template <tensor::WeightFormat F>
__device__ inline unsigned x_operand(unsigned at) { return (at & 0x3ffffu) >> 4 | static_cast<unsigned>(Staged<F>::kCore >> 4) << 16; }

#define FATHOM_STAGED_SUMS "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define FATHOM_STAGED_D(C) \
  C(d[0]), C(d[1]), C(d[2]), C(d[3]), C(d[4]), C(d[5]), C(d[6]), C(d[7]), C(d[8]), C(d[9]), C(d[10]), C(d[11]), C(d[12]), C(d[13]), C(d[14]), C(d[15])
/// d (+)= a · b, 64 × 32 × 32 bytes: a rows_operand, b x_operand.
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
/// Sums that products made are there: after wait_products.
__device__ inline void see_sums(float (&d)[16]) { asm volatile("" : FATHOM_STAGED_D("+f")::"memory"); }

/// Of a warp's sums those of its own stretch: rows lane / 4 and 8 more, by columns 2 · (lane % 4) and the next.
__device__ inline void own_sums(const float (&d)[16], float (&own)[4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = warp % 2 == 0 ? d[i] : d[4 + i], high = warp % 2 == 0 ? d[8 + i] : d[12 + i];
    own[i] = warp < 2 ? low : high;
  }
}
/// A whole number between -2^22 and 2^22, exactly, without the unit that converts.
__device__ inline float float_of(int x) { return __int_as_float(__float_as_int(kWholeFloat) + x) - kWholeFloat; }

/// d += a · b of 16 rows of bytes between 0 and 255 and eight columns of signed ones.
__device__ inline void multiply_add_unsigned(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A piece that has come, and what a warpgroup multiplies it with.
template <tensor::WeightFormat F>
struct StagedPiece {
  using Shape = Staged<F>;
  static constexpr int kTiles = kPieceStretches / kTileStretches;
  const unsigned char* memory;  // of the block; x lies at its beginning
  const StagedXRoom<F>& room;
  unsigned weights, beside;     // from there on
  int first;                    // stretch
  tensor::WeightFormat format;
  int cols;                     // of the weight

  /// The weight's row in each half that this lane has as row lane / 4: of whole numbers, rows whose chunks lie in other banks follow each other.
  __device__ static int row() {
    const int group = static_cast<int>(threadIdx.x) % kWarp / 4;
    return Shape::kWhole ? group % 2 * 4 + group / 2 : group;
  }
  __device__ bool has(int tile) const { return first + tile * kTileStretches < room.stretches; }
  /// Itself, or of one that x does not reach the first, whose products are dropped.
  __device__ int there(int tile) const { return tile == 0 || has(tile) ? tile : 0; }
  __device__ int own_stretch(int tile) const { return tile * kTileStretches + static_cast<int>(threadIdx.x) / kWarp % 4; }

  /// Adds to sums of this lane's two rows and columns; of bf16, of all columns. Sums of whole numbers and of e4m3 are of x over its group's factor.
  __device__ void multiply(float (&acc)[16]) const {
    unsigned a = rows_operand(shared_address(memory) + weights), b = x_operand<F>(shared_address(memory) + static_cast<unsigned>(first * Shape::kOfStretch));
    begin_products();
#pragma unroll 1
    for (int tile = 0; tile < kTiles && has(tile); ++tile, a += kTileBytes >> 4, b += kTileStretches * Shape::kOfStretch >> 4) {
#pragma unroll
      for (unsigned step = 0; step < 4; ++step) multiply_staged<F>(acc, operand(a + step * 2, kRowsOperand), operand(b + step * (2 * Shape::kCore >> 4), kXOperand<F>), true);
    }
    commit_products();
    wait_products<0>();
    see_sums(acc);
  }
  __device__ void multiply(float (&acc)[4]) const {
    if constexpr (Shape::kInt4) multiply_int4(acc);
    else if constexpr (Shape::kInt8) multiply_int8(acc);
    else multiply_e4m3(acc);
  }

 private:
  /// All tiles at once; what x does not reach is multiplied with another tile's and dropped.
  __device__ void multiply_e4m3(float (&acc)[4]) const {
    const unsigned a = rows_operand(shared_address(memory) + weights), b = x_operand<F>(shared_address(memory) + static_cast<unsigned>(first * Shape::kOfStretch));
    float d[kTiles][16];
    float2 scale[kTiles];
    begin_products();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (unsigned step = 0; step < 4; ++step)
        multiply_staged<F>(d[tile], operand(a + (tile * kTileBytes >> 4) + step * 2, kRowsOperand), operand(b + static_cast<unsigned>(there(tile) * kTileStretches * Shape::kOfStretch >> 4) + step * (2 * Shape::kCore >> 4), kXOperand<F>), step > 0);
    commit_products();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int stretch = first + own_stretch(there(tile));
      const float factor = reinterpret_cast<const float*>(memory + room.factors)[stretch];
      scale[tile] = make_float2(factor, factor);
      if (format == tensor::WeightFormat::fp8_block128) {
        scale[tile] = *reinterpret_cast<const float2*>(memory + beside + own_stretch(tile) * 8);
        scale[tile] = stretch * 128 < cols ? make_float2(scale[tile].x * factor, scale[tile].y * factor) : make_float2(0.0f, 0.0f);
      }
    }
    wait_products<0>();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float own[4];
      see_sums(d[tile]);
      own_sums(d[tile], own);
      if (tile > 0 && !has(tile)) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[i] += own[i] * (i < 2 ? scale[tile].x : scale[tile].y);
    }
  }
  /// x of a group of eight bits as operand B: this lane's column and quarter, two words a step; in lanes whose columns are nobody's whatever was there.
  __device__ void read_x(int group, unsigned (&b)[8]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, part = min(lane / 4, Shape::kParts - 1);
    const auto* const from = reinterpret_cast<const uint4*>(memory + group * Shape::kGroup + part * Shape::kPart + lane % 4 * 32);
    const uint4 low = from[part & 1], high = from[part & 1 ^ 1];
    b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w, b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
  }
  /// 16 bytes of codes of this lane's two rows in a stretch.
  __device__ void read_codes(int tile, int chunk, unsigned (&top)[4], unsigned (&bottom)[4]) const {
    const unsigned char* const from = memory + weights + own_stretch(tile) * (16 * kStretch) + row() * kStretch + (chunk ^ row()) * 16;
    const uint4 t = *reinterpret_cast<const uint4*>(from), u = *reinterpret_cast<const uint4*>(from + 8 * kStretch);
    top[0] = t.x, top[1] = t.y, top[2] = t.z, top[3] = t.w, bottom[0] = u.x, bottom[1] = u.y, bottom[2] = u.z, bottom[3] = u.w;
  }
  /// Both tiles in turn, so that no product waits for the one before; as above.
  __device__ void multiply_int8(float (&acc)[4]) const {
    const int quad = static_cast<int>(threadIdx.x) % 4;
    unsigned b[kTiles][8];
    int d[kTiles][4] = {};
    float factor[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int stretch = first + own_stretch(there(tile));
      read_x(stretch, b[tile]);
      factor[tile] = reinterpret_cast<const float*>(memory + room.factors)[stretch];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned top[kTiles][4], bottom[kTiles][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) read_codes(tile, quad + 4 * half, top[tile], bottom[tile]);
#pragma unroll
      for (int w = 0; w < 4; w += 2)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const unsigned a[4] = {top[tile][w], bottom[tile][w], top[tile][w + 1], bottom[tile][w + 1]};
          multiply_add(d[tile], a, b[tile][2 * w + half], b[tile][2 * w + 2 + half]);
        }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile > 0 && !has(tile)) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[i] += float_of(d[tile][i]) * factor[tile];
    }
  }
  /// Of two scales in a word one.
  __device__ static float scale_of(unsigned both, int which) {
    if constexpr (Shape::kHalfScales) return to_float(__ushort_as_half(static_cast<unsigned short>(which == 0 ? both : both >> 16)));
    else return __uint_as_float(which == 0 ? both << 16 : both & 0xffff0000u);
  }
  /// x of a group of four bits as operand B: columns 0 to 2 are the parts of what a lane's first and third word of codes are multiplied with, 4 to 6 those of its
  /// second and fourth word. Two words for whole bytes, two for low bits.
  __device__ uint4 read_x(int group) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, part = min(lane / 4 % 4, Shape::kParts - 1);
    return *reinterpret_cast<const uint4*>(memory + group * Shape::kGroup + part * Shape::kPart + lane % 4 * 32 + (lane / 16 ^ part & 1) * 16);
  }
  /// What put_staged says of four bits, both groups of a stretch in turn. A row's four words of codes are operand A as they came: the first and third are one of
  /// its rows, the others one eight further, whose sums are other lanes'. Sums begin with what zero points take away.
  __device__ void multiply_int4(float (&acc)[4]) const {
    const int quad = static_cast<int>(threadIdx.x) % 4;
    const bool first_words = quad < 2;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile > 0 && !has(tile)) break;
      const unsigned char* const own = memory + beside + own_stretch(tile) * kStretchBeside;
      const unsigned char* const of_groups = memory + room.factors + (first + own_stretch(tile)) * 32;
      unsigned scales[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) scales[half] = reinterpret_cast<const unsigned*>(own)[half * 8 + row()];
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        unsigned codes[2][4];
        read_codes(tile, sub * 4 + quad, codes[0], codes[1]);
        const uint4 x = read_x((first + own_stretch(tile)) * 2 + sub);
        const uint2 digits = *reinterpret_cast<const uint2*>(of_groups + sub * 16 + quad % 2 * 8);  // of columns that are nobody's, any
        const float factor = *reinterpret_cast<const float*>(of_groups + sub * 16 + 12);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          unsigned zero = first_words ? 8 : 0;
          if constexpr (Shape::kZeros) zero = reinterpret_cast<const unsigned*>(own + kZerosAt)[half * 2 + sub] >> (row() * 4) & (first_words ? 15u : 0u);
          const int begin[2] = {static_cast<int>(__float_as_uint(kWholeFloat) - zero * digits.x), static_cast<int>(__float_as_uint(kWholeFloat) - zero * digits.y)};
          int d[4] = {begin[0], begin[1], begin[0], begin[1]};
          multiply_add_unsigned(d, codes[half], x.x, x.y);
          const unsigned low[4] = {codes[half][0] & 0x0f0f0f0fu, codes[half][1] & 0x0f0f0f0fu, codes[half][2] & 0x0f0f0f0fu, codes[half][3] & 0x0f0f0f0fu};
          multiply_add_unsigned(d, low, x.z, x.w);
          const float both = scale_of(scales[half], sub) * factor;
#pragma unroll
          for (int i = 0; i < 2; ++i) acc[2 * half + i] += (__int_as_float(first_words ? d[i] : d[2 + i]) - kWholeFloat) * both;
        }
      }
    }
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
      float first = acc[2 * half], second = acc[2 * half + 1];
      if constexpr (Staged<F>::kInt4) first += __shfl_down_sync(kAllLanes, first, 2), second += __shfl_down_sync(kAllLanes, second, 2);  // of the other words
      const float last = __shfl_down_sync(kAllLanes, first, 1);  // the third part
      sum[half] = Staged<F>::kWhole ? (last + second * 256.0f) + first * 65536.0f : (last + second) + first;
    }
  }
  return make_float2(sum[0], sum[1]);
}

#endif  // FATHOM_WGMMA_HERE

}  // namespace fathom::cuda
