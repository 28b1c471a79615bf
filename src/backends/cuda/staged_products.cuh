// Products of one token, whose weights come in pieces (staged_ring.cuh). Of bf16 and e4m3 by warpgroups: the tensor cores read the weights where the copy
// engine puts them, so no instruction of a warp touches them. Whole numbers of eight bits and four go through registers, warp by warp.
//
// A piece is 16 rows, eight stretches of 128 bytes of each: [stretch][row][128 bytes], swizzled. A tile is four stretches, one a warp of a group. As operand A
// of 64 rows its row 16 · s + r is row r in stretch s, and operand B is x as parts: of bf16 two bf16 halves, of e4m3 three e4m3 digits; x of the four stretches
// are its columns 0, 8, 16, 24 and following. A warp's 16 columns but for its own stretch's parts are nobody's: what they are made of is whatever lies there.
// Of whole numbers x is three digits of eight bits, columns 0, 1 and 3 of eight; of four bits columns 4, 5 and 7 are those of a stretch's second group.
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
/// d += a · b of 16 rows of bytes between 0 and 255 and eight columns of signed ones.
__device__ inline void multiply_add_unsigned(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <tensor::WeightFormat F>
struct StagedWords;
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

  __device__ bool has(int tile) const { return first + tile * kTileStretches < room.stretches; }
  /// Itself, or of one that x does not reach the first, whose products are dropped.
  __device__ int there(int tile) const { return tile == 0 || has(tile) ? tile : 0; }
  __device__ int own_stretch(int tile) const { return tile * kTileStretches + static_cast<int>(threadIdx.x) / kWarp % 4; }

  /// Adds to sums of this lane's two rows and columns; of bf16, of all columns; of whole numbers, of the rows, two columns as one.
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
  /// Of e4m3: all tiles at once; what x does not reach is multiplied with another tile's and dropped.
  __device__ void multiply(float (&acc)[4]) const {
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
  __device__ void multiply(float (&acc)[2], const StagedWords<F>& x) const {
    if constexpr (Shape::kInt4) multiply_int4(acc, x);
    else multiply_int8(acc, x);
  }

 private:
  /// Of two sums, columns that follow each other: 256 times the first digit and the second, or the last digit alone.
  __device__ static int both_of(int even, int odd) { return even * (threadIdx.x % 2 == 0 ? 256 : 0) + odd; }
  /// Where 16 bytes of row `row` lie in this warp's stretch of the first tile.
  __device__ unsigned codes_at(int row, int chunk) const { return shared_address(memory) + weights + static_cast<unsigned>(own_stretch(0) * (16 * kStretch) + row * kStretch + (chunk ^ row % 8) * 16); }

  /// Both tiles in turn, so that no product waits for the one before; what x does not reach as above.
  __device__ void multiply_int8(float (&acc)[2], const StagedWords<F>& x) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const unsigned codes = codes_at(lane % 16, lane / 16);
    int d[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& b = x.words[tile][step / 2];
        unsigned a[4];
        load_matrices((codes ^ static_cast<unsigned>(step * 32)) + static_cast<unsigned>(tile * kTileBytes), a);
        multiply_add(d[tile], a, step % 2 == 0 ? b.x : b.z, step % 2 == 0 ? b.y : b.w);
      }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile > 0 && !has(tile)) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) acc[half] += static_cast<float>(both_of(d[tile][2 * half], d[tile][2 * half + 1])) * x.factor[tile];
    }
  }
  /// Of two scales in a word the one of this lane's group.
  __device__ static float scale_of(unsigned both) {
    const bool first_group = threadIdx.x % 4 < 2;
    if constexpr (Shape::kHalfScales) return to_float(__ushort_as_half(static_cast<unsigned short>(both >> (first_group ? 0 : 16))));
    else return __uint_as_float(__byte_perm(both, 0, first_group ? 0x1044 : 0x3244));
  }
  /// What put_staged says of four bits. Operand A is eight rows, first their codes of a stretch's first group and then of its second, so of the sums half are what
  /// is wanted: of the first group in columns 0 to 3, of the second in columns 4 to 7.
  __device__ void multiply_int4(float (&acc)[2], const StagedWords<F>& x) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, quad = lane % 4;
    const bool first_group = quad < 2;
    const unsigned codes = codes_at(lane % 8, lane / 8 % 2 * 4 + lane / 16);
    unsigned a[kTiles][2][2][4], scales[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half) load_matrices((codes ^ static_cast<unsigned>(step * 32)) + static_cast<unsigned>(tile * kTileBytes + half * 8 * kStretch), a[tile][half][step]);
      const uint2 both = reinterpret_cast<const uint2*>(memory + beside + own_stretch(tile) * kStretchBeside)[lane / 4];
      scales[tile][0] = both.x, scales[tile][1] = both.y;
    }
    int d[kTiles][2][4] = {};
#pragma unroll
    for (int step = 0; step < 2; ++step)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& b = x.words[tile][step];
#pragma unroll
        for (int half = 0; half < 2; ++half) multiply_add_unsigned(d[tile][half], a[tile][half][step], b.x, b.y);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned (&whole)[4] = a[tile][half][step];
          const unsigned low[4] = {whole[0] & 0x0f0f0f0fu, whole[1] & 0x0f0f0f0fu, whole[2] & 0x0f0f0f0fu, whole[3] & 0x0f0f0f0fu};
          multiply_add_unsigned(d[tile][half], low, b.z, b.w);
        }
      }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile > 0 && !has(tile)) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int (&sum)[4] = d[tile][half];
        int taken = x.taken[tile];
        if constexpr (Shape::kZeros) taken *= static_cast<int>(reinterpret_cast<const unsigned*>(memory + beside + own_stretch(tile) * kStretchBeside + kZerosAt)[half * 2 + quad / 2] >> (lane / 4 * 4) & 15u);
        acc[half] += static_cast<float>(both_of(first_group ? sum[0] : sum[2], first_group ? sum[1] : sum[3]) - taken) * (scale_of(scales[tile][half]) * x.factor[tile]);
      }
    }
  }
};

/// x of whole numbers as operand B of a piece's tiles: this lane's column. It is there before the piece has come.
template <tensor::WeightFormat F>
struct StagedWords {
  using Shape = Staged<F>;
  uint4 words[StagedPiece<F>::kTiles][2];
  float factor[StagedPiece<F>::kTiles];
  int taken[StagedPiece<F>::kTiles];  // of four bits: from a sum by a zero point of one; or by that of eight, if all have it
  /// Of columns that are nobody's, whatever there is; what x does not reach as above.
  __device__ explicit StagedWords(const StagedPiece<F>& piece) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, quad = lane % 4, part = min(lane / 4 % 4, Shape::kParts - 1);
#pragma unroll
    for (int tile = 0; tile < StagedPiece<F>::kTiles; ++tile) {
      const int stretch = piece.first + piece.own_stretch(piece.there(tile));
      const unsigned char* const from = piece.memory + (Shape::kInt4 ? stretch * 2 + lane / 16 : stretch) * Shape::kGroup + part * Shape::kPart;
      const unsigned char* const factors = piece.memory + piece.room.factors;
#pragma unroll
      for (int step = 0; step < 2; ++step) words[tile][step] = *reinterpret_cast<const uint4*>(from + (Shape::kInt4 ? quad * 16 + (step ^ part & 1) * 64 : quad * 32 + (step ^ part & 1) * 16));
      if constexpr (Shape::kInt4) {
        const int2 both = reinterpret_cast<const int2*>(factors)[(stretch * 2 + quad / 2) * 2 + quad % 2];
        taken[tile] = (Shape::kZeros ? 1 : 8) * both.x, factor[tile] = __int_as_float(both.y);
      } else {
        factor[tile] = reinterpret_cast<const float*>(factors)[stretch];
      }
    }
  }
};

/// What a warp's sums come to for this lane's two rows; in lanes whose number is a multiple of four.
template <tensor::WeightFormat F>
__device__ inline float2 total_of(const float (&acc)[16]) {
  float own[4];
  own_sums(acc, own);
  return make_float2(own[1] + own[0], own[3] + own[2]);
}
template <tensor::WeightFormat F>
__device__ inline float2 total_of(const float (&acc)[4]) {
  const float third[2] = {__shfl_down_sync(kAllLanes, acc[0], 1), __shfl_down_sync(kAllLanes, acc[2], 1)};
  return make_float2((third[0] + acc[1]) + acc[0], (third[1] + acc[3]) + acc[2]);
}
template <tensor::WeightFormat F>
__device__ inline float2 total_of(const float (&acc)[2]) {
  float sum[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float both = acc[half];
    if constexpr (Staged<F>::kInt4) both += __shfl_down_sync(kAllLanes, both, 2);  // of the second groups
    sum[half] = both * 256.0f + __shfl_down_sync(kAllLanes, both, 1);
  }
  return make_float2(sum[0], sum[1]);
}

#endif  // FATHOM_WGMMA_HERE

}  // namespace fathom::cuda
