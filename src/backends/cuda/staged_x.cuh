// x of products of one token, which a block of stages (stages.h) makes in its shared memory: as it lies, of a norm, or of attention's parts. How it is cut
// into parts is staged_products.cuh's.
#pragma once
#include "backends/cuda/attention_clusters.cuh"
#include "backends/cuda/linear_stream.cuh"
#include "backends/cuda/staged_blocks.cuh"

namespace fathom::cuda {

inline constexpr int kPieceStretches = 8, kTileStretches = 4;  // of a row in a piece; in an operand A
inline constexpr int kTileBytes = 16 * kTileStretches * kStretch, kPieceBytes = 16 * kPieceStretches * kStretch;
inline constexpr int kZerosAt = 16 * 4, kStretchBeside = kZerosAt + 4 * 8;  // of four bits, beside a stretch: two scales a row, then words of eight rows' zero points
inline constexpr int kStagedGroups = kStreamedWarps / 4;       // warpgroups that multiply: they take pieces in turn

template <tensor::WeightFormat F>
struct Staged {
  static constexpr bool kZeros = F == tensor::WeightFormat::int4_group128_zero || F == tensor::WeightFormat::int4_group128_zero_f16;
  static constexpr bool kHalfScales = F == tensor::WeightFormat::int4_group128_f16 || F == tensor::WeightFormat::int4_group128_zero_f16;
  static constexpr bool kInt4 = kZeros || kHalfScales || F == tensor::WeightFormat::int4_group128, kInt8 = F == tensor::WeightFormat::int8_row, kFp8 = F == tensor::WeightFormat::fp8_block128;
  static constexpr bool kBf16 = F == tensor::WeightFormat::bf16, kWhole = kInt4 || kInt8;  // whole numbers
  static_assert(kInt4 || kInt8 || kFp8 || kBf16);
  static constexpr int kColumns = kInt4 ? 256 : kBf16 ? 64 : 128;  // of a stretch
  static constexpr int kParts = kBf16 ? 2 : 3;
  static constexpr int kOfGroup = kBf16 ? 512 : 32 * 12 + (kInt4 ? 16 : 4);  // bytes that put_staged writes for 128 columns
  static constexpr float kMostOfX = kInt4 ? 491000.0f : 4194300.0f;  // whole numbers that x becomes; of four bits 17 of them are within three digits
  /// Bytes of x. Of bf16 and e4m3: of 16 bytes of columns, one part after the other (the next columns of operand B are those of what follows); of whole
  /// numbers: of a part of 128 columns, of the second part their halves in turn, so that parts lie in other banks. Of a stretch.
  static constexpr int kCore = kParts * 16, kPart = 128, kGroup = kParts * kPart, kOfStretch = kInt4 ? 2 * kGroup : kInt8 ? kGroup : 8 * kCore;
  static constexpr int kBeside = kInt4 ? kPieceStretches * kStretchBeside : kFp8 ? kPieceStretches * 8 : 0;  // bytes of a piece's scales and zero points
};

/// How x and what belongs to it lie in shared memory, bytes from its beginning on.
template <tensor::WeightFormat F>
struct StagedXRoom {
  using Shape = Staged<F>;
  int stretches, factors, all;  // stretches: whole tiles. factors: of a group; of four bits twice, after the upper digits of 16 · the sum of its whole numbers and after the last
  __host__ __device__ explicit StagedXRoom(int row_stretches) {
    stretches = (row_stretches + kTileStretches - 1) / kTileStretches * kTileStretches;
    const int groups = Shape::kBf16 ? 0 : stretches * Shape::kColumns / 128;
    factors = stretches * Shape::kOfStretch + 128;  // columns of operand B that are nobody's reach behind the last
    all = factors + (Shape::kInt4 ? groups : (groups + 3) / 4) * 16;
  }
};

/// Plus a whole number between -2^22 and 2^22 it is a float whose bits are its own and that number.
inline constexpr float kWholeFloat = 12582912.0f;
/// A whole number between -2^23 and 2^23 - 2^15 - 129 as three signed digits of eight bits, the lowest first.
__device__ inline unsigned digits_of(unsigned number) { return number + 0x808080u ^ 0x808080u; }
/// The digits of four numbers by their places, the highest first.
__device__ inline void transpose_digits(unsigned a, unsigned b, unsigned c, unsigned d, unsigned (&to)[3]) {
  const unsigned low[2] = {__byte_perm(a, b, 0x5140), __byte_perm(c, d, 0x5140)}, high[2] = {__byte_perm(a, b, 0x0062), __byte_perm(c, d, 0x0062)};
  to[0] = __byte_perm(high[0], high[1], 0x5410), to[1] = __byte_perm(low[0], low[1], 0x7632), to[2] = __byte_perm(low[0], low[1], 0x5410);
}

/// Four columns of x from 4 · quad on, to the blocks' x. A warp has a group of 128 columns.
template <tensor::WeightFormat F>
__device__ inline void put_staged(const PairPlace& to, const StagedXRoom<F>& room, int quad, float (&x)[4]) {
  using Shape = Staged<F>;
  const int group = quad / kWarp, lane = quad % kWarp;
  if constexpr (Shape::kBf16) {
    unsigned high[2], low[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      high[i] = pack_two<__nv_bfloat16>(x[2 * i], x[2 * i + 1]);
      low[i] = pack_two<__nv_bfloat16>(x[2 * i] - __uint_as_float(high[i] << 16), x[2 * i + 1] - __uint_as_float(high[i] & 0xffff0000u));
    }
    const int at = quad / 2 * Shape::kCore + quad % 2 * 8;
    to.put(at, make_uint2(high[0], high[1]));
    to.put(at + 16, make_uint2(low[0], low[1]));
  } else {
    float most = larger(larger(fabsf(x[0]), fabsf(x[1])), larger(fabsf(x[2]), fabsf(x[3])));
    most = __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(most)));
    if constexpr (Shape::kFp8) {
      // Times a power of two that makes the largest about 2^7; each part is what the one before left over.
      const int exponent = min(max(static_cast<int>(__float_as_uint(most) >> 23), 16), 254);  // biased
      const float shrink = __uint_as_float(static_cast<unsigned>(254 + 7 - exponent) << 23);
#pragma unroll
      for (float& one : x) one *= shrink;
#pragma unroll
      for (int part = 0; part < Shape::kParts; ++part) {
        unsigned word = 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const __nv_fp8x2_storage_t codes = __nv_cvt_float2_to_fp8x2(make_float2(x[2 * i], x[2 * i + 1]), __NV_SATFINITE, __NV_E4M3);
          const float2 wide = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3)));
          x[2 * i] -= wide.x, x[2 * i + 1] -= wide.y;
          word |= static_cast<unsigned>(codes) << (i * 16);
        }
        to.put(quad / 4 * Shape::kCore + part * 16 + quad % 4 * 4, word);
      }
      if (lane == 0) to.put(room.factors + group * 4, __float_as_uint(1.0f / shrink));
    } else {
      // x over the largest as a whole number. Of four bits: a byte is a column's bits and 16 times the next one's, so it is multiplied with what the next one's
      // is to be, and its low bits with 16 times the first one's less that.
      most = most < 1e-30f ? 1e-30f : most;
      const float scale = __fdividef(Shape::kMostOfX, most);
      unsigned digits[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) digits[i] = __float_as_uint(fmaf(x[i], scale, kWholeFloat)) - __float_as_uint(kWholeFloat);
      unsigned sum = 0;
      if constexpr (Shape::kInt4) {
        sum = 16 * __reduce_add_sync(kAllLanes, digits[0] + digits[1] + digits[2] + digits[3]);
        digits[0] = 16 * digits[0] - digits[1], digits[2] = 16 * digits[2] - digits[3];
      }
      unsigned words[Shape::kParts];
#pragma unroll
      for (unsigned& one : digits) one = digits_of(one);
      if constexpr (Shape::kInt4) transpose_digits(digits[0], digits[2], digits[1], digits[3], words);  // low bits' first
      else transpose_digits(digits[0], digits[1], digits[2], digits[3], words);
      // What a lane of four multiplies lies together. Of eight bits: eight words, of each 16 columns one. Of four: of each 64 columns two of whole bytes and two of
      // low bits.
#pragma unroll
      for (int part = 0; part < Shape::kParts; ++part) {
        const int at = group * Shape::kGroup + part * Shape::kPart;
        if constexpr (Shape::kInt4) {
          const unsigned neighbour = __shfl_xor_sync(kAllLanes, words[part], 1);
          to.put(at + (lane / 16 ^ part & 1) * 64 + lane / 2 % 4 * 16 + (lane + 1) % 2 * 8 + lane / 8 % 2 * 4,
                 lane % 2 == 0 ? __byte_perm(words[part], neighbour, 0x5410) : __byte_perm(neighbour, words[part], 0x7632));
        } else {
          to.put((at + lane % 4 * 32 + lane / 4 * 4) ^ (part & 1) * 16, words[part]);
        }
      }
      if (lane == 0) {
        const unsigned factor = __float_as_uint(most * (1.0f / (Shape::kInt4 ? 16.0f * Shape::kMostOfX : Shape::kMostOfX)));
        if constexpr (Shape::kInt4) {
          int left = static_cast<int>(sum);
          const int last = take_digit(left);
          to.put(room.factors + group * 16, make_uint2(static_cast<unsigned>(left), factor));
          to.put(room.factors + group * 16 + 8, make_uint2(static_cast<unsigned>(last), factor));
        } else {
          to.put(room.factors + group * 4, factor);
        }
      }
    }
  }
}

// ---------------------------------------------------------------- where it comes from

/// Four weights of a norm, as they lie.
struct NormWeights {
  const std::byte* weight = nullptr;  // null: there are none
  DType type = DType::f32;
  int n = 0;
  __device__ uint4 fetch(int at) const {
    if (weight == nullptr || at >= n) return {};
    if (type == DType::f32) return __ldg(reinterpret_cast<const uint4*>(weight + at * 4));
    const uint2 narrow = __ldg(reinterpret_cast<const uint2*>(weight + at * 2));
    return make_uint4(narrow.x, narrow.y, 0, 0);
  }
  __device__ void convert(const uint4& raw, float (&to)[4]) const {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bits = words[i / 2] >> (i % 2 * 16) & 0xffffu;
      if (weight == nullptr) to[i] = 1.0f;
      else if (type == DType::f32) to[i] = __uint_as_float(words[i]);
      else if (type == DType::bf16) to[i] = __uint_as_float(bits << 16);
      else to[i] = to_float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
  }
};
__device__ inline NormWeights norm_weights(const NormedX& norm) { return {norm.weight, norm.weight_type, static_cast<int>(norm.n)}; }

/// As relative, in fewer instructions and 2 ulp of the exponential less exact.
__device__ inline float share_of(float a, float b) { return exp_of_2((a - (b == -INFINITY ? 0.0f : b)) * kLog2E); }

/// What attention's parts make, which is read where x is wanted.
struct JoinedParts {
  const float *states, *values;
  FloatVector sinks;
  float* out;
  std::int64_t out_step;
  int parts, heads, shift;  // shift: a head has 1 << shift columns
  int first_written;        // of the quads, those that this pair of blocks writes
  unsigned written;
  __device__ JoinedParts(const AttentionView& view, unsigned blocks)
      : states(view.part_state), values(view.part_out), sinks(view.sink), out(view.out.at(0, 0)), out_step(view.out.strides[1]), parts(view.parts), heads(view.heads), shift(view.dv == 64 ? 6 : 7) {
    const unsigned pairs = gridDim.x / blocks;
    written = (static_cast<unsigned>(heads << shift) / 4 + pairs - 1) / pairs, first_written = static_cast<int>(blockIdx.x / blocks * written);
  }
  static constexpr int kAtOnce = 4;
  struct Raw { float2 states[kAtOnce]; float values[kAtOnce][4]; };
  /// Asks for four columns of parts from `first` on.
  __device__ void read(int col, int first, Raw& raw) const {
    const int head = col >> shift;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = min(first + i, parts - 1) * heads + head;
      raw.states[i] = read_two_of_others(states + 2 * row);
      read_four_of_others(values + (static_cast<std::int64_t>(row) << shift) + (col & ((1 << shift) - 1)), raw.values[i]);
    }
  }
  /// The four columns; `raw` is of the first parts.
  __device__ void join(int col, Raw& raw, float (&x)[4]) const {
    float most = -INFINITY, total = 0.0f;
#pragma unroll
    for (float& one : x) one = 0.0f;
#pragma unroll 1
    for (int first = 0;;) {
      const float before = most;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= parts) raw.states[i].x = -INFINITY;  // a part again, without share
        most = fmaxf(most, raw.states[i].x);
      }
      if (first > 0) {
        const float shrink = share_of(before, most);
        total *= shrink;
#pragma unroll
        for (float& one : x) one *= shrink;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float share = share_of(raw.states[i].x, most);
        total += raw.states[i].y * share;
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] += raw.values[i][j] * share;
      }
      if ((first += kAtOnce) >= parts) break;
      read(col, first, raw);
    }
    float factor = 1.0f;
    if (sinks.data != nullptr) {
      const float sink = sinks[col >> shift], both = fmaxf(most, sink);
      factor = share_of(most, both);
      total = total * factor + share_of(sink, both);
    }
    factor = total == 0.0f ? 0.0f : __fdividef(factor, total);
#pragma unroll
    for (float& one : x) one *= factor;
  }
  __device__ void write(int col, const float (&x)[4]) const {
    *reinterpret_cast<float4*>(out + (col >> shift) * out_step + (col & ((1 << shift) - 1))) = make_float4(x[0], x[1], x[2], x[3]);
  }
};

/// x of products, every second 128 columns if there is a pair. What it is made of is looked up before its turn has come.
template <tensor::WeightFormat F>
struct StagedSource {
  const float* from;
  bool normed;
  int cols, quads, first, step;  // columns by four: the thread's first
  NormWeights norm;
  uint4 weights;  // of a norm, the thread's first
  __device__ StagedSource(const StreamView& view, const StagedXRoom<F>& room, const StagedPair& pair)
      : from(view.all.norm.from != nullptr ? view.all.norm.from : view.all.products[0].x), normed(view.all.norm.from != nullptr), cols(static_cast<int>(view.all.products[0].weight.cols)),
        quads(room.stretches * (Staged<F>::kColumns / 4)), first(static_cast<int>((threadIdx.x / kWarp * pair.blocks + pair.rank) * kWarp + threadIdx.x % kWarp)), step(static_cast<int>(pair.blocks) * kStreamedThreads),
        norm(norm_weights(view.all.norm)), weights(normed ? norm.fetch(first * 4) : uint4{}) {}

  /// Bytes that the other block of a pair sends of its half.
  __device__ unsigned sent(const StagedPair& pair) const {
    return pair.blocks == 1 ? 0 : (static_cast<unsigned>(quads / kWarp) + pair.rank) / 2 * Staged<F>::kOfGroup;
  }
  /// Answers this thread's squares of what is normed. The code is there once and its loop stays a loop: it runs once a stage, and each line of it has to
  /// come first.
  __device__ float fill(const PairPlace& to, const StagedXRoom<F>& room) {
    float squares = 0.0f, next[4], factors[4];
    const auto read = [&](int quad) {
#pragma unroll
      for (float& x : next) x = 0.0f;
      if (quad * 4 < cols) read_four_of_others(from + quad * 4, next);
    };
    int quad = first;
    read(quad);
    if (normed) norm.convert(weights, factors);
#pragma unroll 1
    for (; quad < quads; quad += step) {
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = next[j];
      const bool goes_on = quad + step < quads;
      if (goes_on) {
        read(quad + step);
        if (normed) weights = norm.fetch((quad + step) * 4);
      }
      if (normed) {
#pragma unroll
        for (int j = 0; j < 4; ++j) squares += x[j] * x[j], x[j] *= factors[j];
      }
      put_staged<F>(to, room, quad, x);
      if (normed && goes_on) norm.convert(weights, factors);
    }
    return squares;
  }
  /// The same of attention's parts.
  __device__ void fill_joined(const PairPlace& to, const StagedXRoom<F>& room, const JoinedParts& joined) const {
    JoinedParts::Raw raw;
    int quad = first;
    joined.read(min(quad * 4, cols - 4), 0, raw);
#pragma unroll 1
    for (; quad < quads; quad += step) {
      float x[4] = {};
      if (quad * 4 < cols) {
        joined.join(quad * 4, raw, x);
        if (static_cast<unsigned>(quad - joined.first_written) < joined.written) joined.write(quad * 4, x);
      }
      if ((quad + step) * 4 < cols) joined.read((quad + step) * 4, 0, raw);
      put_staged<F>(to, room, quad, x);
    }
  }
};
/// The norm that products were made of, by all blocks together.
__device__ inline void write_staged_norm(const NormedX& norm, float factor) {
  for (int at = static_cast<int>(threadIdx.x * gridDim.x + blockIdx.x) * 4; at < norm.n; at += kStreamedThreads * static_cast<int>(gridDim.x) * 4) {
    float x[4];
    float weights[4];
    read_four_of_others(norm.from + at, x);
    norm_weights(norm).convert(norm_weights(norm).fetch(at), weights);
#pragma unroll
    for (int i = 0; i < 4; ++i) norm.x[at + i] = x[i] * weights[i] * factor;
  }
}

}  // namespace fathom::cuda
