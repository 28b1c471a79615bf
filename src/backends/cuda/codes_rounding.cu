#include "backends/cuda/codes_rounding.cuh"

#include "backends/cuda/any_float.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/rounded.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kRoundThreads = 256, kStretch = static_cast<int>(kRoundedColumns);
constexpr int kRoundFours = 4;  // a thread's, read together

/// Four neighbours; zeros behind the row's end.
__device__ inline float4 read_four(const RoundCodes& args, std::int64_t token, int column) {
  return column < args.cols ? *reinterpret_cast<const float4*>(args.x + token * args.x_stride + column) : make_float4(0, 0, 0, 0);
}
/// The same past the first cache, which may know nothing yet of what was written before a launch that runs beside.
__device__ inline float4 read_four_once(const RoundCodes& args, std::int64_t token, int column) {
  return column < args.cols ? __ldcg(reinterpret_cast<const float4*>(args.x + token * args.x_stride + column)) : make_float4(0, 0, 0, 0);
}
/// The same at any address.
__device__ inline float4 gather_four(const RoundCodes& args, std::int64_t token, int column) {
  const float* x = args.x + token * args.x_stride + column;
  const int left = args.cols - column;
  return make_float4(left > 0 ? x[0] : 0.0f, left > 1 ? x[1] : 0.0f, left > 2 ? x[2] : 0.0f, left > 3 ? x[3] : 0.0f);
}
__device__ inline float most_of(const float4& x) { return larger(larger(fabsf(x.x), fabsf(x.y)), larger(fabsf(x.z), fabsf(x.w))); }

/// The scale of some values, and x / scale as a division rounds it: twice corrected from the reciprocal, which is exact where nothing
/// under- or overflows on the way.
struct Divided {
  float scale, inverse;  // inverse: 0 where that might be
  __device__ float operator()(float x) const {
    if (inverse == 0.0f) return __fdiv_rn(x, scale);
    const float near = x * inverse;
    return __fmaf_rn(__fmaf_rn(-near, scale, x), inverse, near);
  }
};
__device__ inline Divided divided_by(float scale) { return {scale, scale >= 1e-30f && scale <= 1e30f ? __frcp_rn(scale) : 0.0f}; }
__device__ inline Divided row_of(const RoundCodes& args, float most) {
  return divided_by(args.type == DType::i8 ? rounded_of<false>(most).scale : rounded_of<true>(most, args.kind.powers).scale);
}

/// Whole numbers within ±127, nearest to a and b, ties to even: in the last bits of 1.5 · 2^23 plus them.
__device__ inline unsigned whole_two(float a, float b) {
  constexpr float kWhole = 12582912.0f;
  return __byte_perm(__float_as_uint(fminf(fmaxf(a, -127.0f), 127.0f) + kWhole), __float_as_uint(fminf(fmaxf(b, -127.0f), 127.0f) + kWhole), 0x0040);
}
__device__ inline unsigned e4m3_two(float a, float b) { return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3); }
__device__ inline void write_four(const RoundCodes& args, std::int64_t token, int column, const float4& x, const Divided& row) {
  const float a = row(x.x), b = row(x.y), c = row(x.z), d = row(x.w);
  const unsigned low = args.type == DType::i8 ? whole_two(a, b) : e4m3_two(a, b), high = args.type == DType::i8 ? whole_two(c, d) : e4m3_two(c, d);
  *reinterpret_cast<unsigned*>(args.codes + token * args.width + column) = __byte_perm(low, high, 0x5410);
}
__device__ inline float& scale_at(const RoundCodes& args, std::int64_t token, int column) { return args.scales[token * args.token_step + column / kStretch * args.stretch_step]; }

/// A block a token; rows of x begin at multiples of 16 bytes and are whole fours long, or (kAnywhere) as they may.
template <bool kAnywhere>
__global__ void __launch_bounds__(kRoundThreads) round_rows(const __grid_constant__ RoundCodes args) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t token = blockIdx.x;
  const auto read = [&](int column) { return kAnywhere ? gather_four(args, token, column) : read_four(args, token, column); };
  float most = 0.0f;
#pragma unroll 4
  for (int column = 4 * static_cast<int>(threadIdx.x); column < args.cols; column += 4 * kRoundThreads) most = larger(most, most_of(read(column)));
  const Divided row = row_of(args, block_max(most, room));
#pragma unroll 4
  for (int column = 4 * static_cast<int>(threadIdx.x); column < args.width; column += 4 * kRoundThreads) write_four(args, token, column, read(column), row);
  if (threadIdx.x == 0) scale_at(args, token, 0) = row.scale;
}

/// The same by stretches, each a warp's. Nothing is written before kRoundFours are read: the compiler cannot know that they lie apart.
template <bool kAnywhere>
__global__ void __launch_bounds__(kRoundThreads) round_stretches(const __grid_constant__ RoundCodes args) {
  let_next_start();
  if (!args.beside || blockIdx.x == gridDim.x - 1) wait_for_previous();
  const std::int64_t token = blockIdx.x;
  const int columns = static_cast<int>(divide_up(args.width, kStretch)) * kStretch;
  for (int base = 4 * static_cast<int>(threadIdx.x); base < columns; base += kRoundFours * 4 * kRoundThreads) {
    float4 x[kRoundFours];
#pragma unroll
    for (int k = 0; k < kRoundFours; ++k) {
      const int column = base + k * 4 * kRoundThreads;
      x[k] = kAnywhere ? gather_four(args, token, column) : read_four_once(args, token, column);
    }
#pragma unroll
    for (int k = 0; k < kRoundFours; ++k) {
      const int column = base + k * 4 * kRoundThreads;
      if (column >= columns) break;
      const Divided row = row_of(args, warp_max(most_of(x[k])));
      if (column < args.width) write_four(args, token, column, x[k], row);
      if (column % kStretch == 0) scale_at(args, token, column) = row.scale;
    }
  }
}

constexpr int kMostThreads = 512;  // of a block that makes a row, kFours of four neighbours a thread

/// Makes a row's four neighbours and writes them as they are and as codes. Nothing is written before all is read: the
/// compiler cannot know that they lie apart.
template <int kFours, class Four>
__device__ inline void write_row(const RoundCodes& args, float* out, BlockRoom& room, const Four& four) {
  const std::int64_t token = blockIdx.x;
  const int threads = static_cast<int>(blockDim.x);
  float4 kept[kFours];
  float most = 0.0f;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int column = 4 * (static_cast<int>(threadIdx.x) + k * threads);
    kept[k] = column < args.cols ? four(k, column) : make_float4(0, 0, 0, 0);
    most = larger(most, most_of(kept[k]));
  }
  Divided row{1.0f, 1.0f};
  if (!args.kind.stretches) {
    row = row_of(args, block_max(most, room));
    if (threadIdx.x == 0) scale_at(args, token, 0) = row.scale;
  }
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int column = 4 * (static_cast<int>(threadIdx.x) + k * threads);  // a stretch a warp
    if (column / kStretch * kStretch >= args.width) break;
    if (args.kind.stretches) {
      row = row_of(args, warp_max(most_of(kept[k])));
      if (column % kStretch == 0) scale_at(args, token, column) = row.scale;
    }
    if (column < args.cols) *reinterpret_cast<float4*>(out + token * args.cols + column) = kept[k];
    if (column < args.width) write_four(args, token, column, kept[k], row);
  }
}

template <int kFours>
__global__ void __launch_bounds__(kMostThreads) norm_to_codes(const __grid_constant__ RoundCodes args, FloatVector weight, float eps, float* out) {
  __shared__ BlockRoom room;
  after_previous();
  float4 x[kFours];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const float4 v = x[k] = read_four(args, blockIdx.x, 4 * static_cast<int>(threadIdx.x + static_cast<unsigned>(k) * blockDim.x));
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(args.cols) + eps);
  write_row<kFours>(args, out, room, [&](int k, int at) {
    return make_float4(x[k].x * scale * weight[at], x[k].y * scale * weight[at + 1], x[k].z * scale * weight[at + 2], x[k].w * scale * weight[at + 3]);
  });
}

/// args.x: the gate, dense, as up.
template <int kFours>
__global__ void __launch_bounds__(kMostThreads) gate_to_codes(const __grid_constant__ RoundCodes args, const float* up, float limit, float* out) {
  __shared__ BlockRoom room;
  after_previous();
  write_row<kFours>(args, out, room, [&](int, int at) {
    const float4 g = read_four(args, blockIdx.x, at), u = *reinterpret_cast<const float4*>(up + blockIdx.x * static_cast<std::int64_t>(args.cols) + at);
    return make_float4(gated(g.x, u.x, limit), gated(g.y, u.y, limit), gated(g.z, u.z, limit), gated(g.w, u.w, limit));
  });
}

constexpr std::int64_t kLeastTokens = kWeightOnlyTokens + 1, kWidest = 4 * 8 * kMostThreads;

/// Whether x [tokens, width] is dense and codes of it are what the next product will want.
bool wants_codes(const Context& context, const Tensor& x) {
  const bool dense = x.dtype == DType::f32 && x.shape.rank == 2 && x.contiguous() && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  const bool codes = context.product_type == DType::f8e4m3 || context.product_type == DType::i8;
  const bool whole = !context.codes_kind.stretches || x.dim(0) % kTokensOfBlocks == 0;
  return codes && dense && whole && x.dim(0) >= kLeastTokens && x.dim(1) % 16 == 0 && x.dim(1) <= kWidest && x.dim(0) <= codes_that_fit(x.dim(1));
}

/// launch(fours a thread, threads), as few fours as make do.
template <class Launch>
void with_fours(std::int64_t width, Launch launch) {
  const auto threads = [&](std::int64_t fours) { return static_cast<unsigned>(divide_up(divide_up(width, 4 * fours), kWarp) * kWarp); };
  if (threads(4) <= kMostThreads) launch(std::integral_constant<int, 4>{}, threads(4));
  else launch(std::integral_constant<int, 8>{}, threads(8));
}

}  // namespace

std::int64_t codes_that_fit(std::int64_t cols) {
  const std::int64_t a_token = divide_up(cols, 16) * 16 + divide_up(cols, kStretch) * 4, few = kTokensOfBlocks * divide_up(cols, 16) * 64;
  return (static_cast<std::int64_t>(kRoundedBytes) - few - 256) / a_token;
}

void round_codes(Context& context, const RoundCodes& args) {
  const bool fours = reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 && args.x_stride % 4 == 0 && args.cols % 4 == 0;
  FATHOM_CHECK(!args.beside || (fours && args.kind.stretches));
  auto* const kernel = args.kind.stretches ? fours ? &round_stretches<false> : &round_stretches<true> : fours ? &round_rows<false> : &round_rows<true>;
  launch_early(context, kernel, dim3(static_cast<unsigned>(args.tokens)), dim3(kRoundThreads), 0, args);
}

RoundCodes codes_at_rounded_data(const Context& context, const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t cols, DType type, const CodesKind& kind) {
  RoundCodes codes{.x = x, .x_stride = x_stride, .tokens = tokens, .cols = static_cast<int>(cols), .width = static_cast<int>(divide_up(cols, 16) * 16), .type = type, .kind = kind};
  codes.codes = reinterpret_cast<std::uint8_t*>(context.rounded_data);
  codes.scales = reinterpret_cast<float*>(context.rounded_data + divide_up(tokens * codes.width, 256) * 256);
  if (kind.stretches) codes.stretch_step = tokens;
  return codes;
}

RoundedActivations codes_of(const RoundCodes& codes) {
  return {.x = codes.x, .tokens = codes.tokens, .groups = 1, .width = codes.cols, .stride = codes.x_stride, .step = 0, .type = codes.type, .kind = codes.kind};
}

bool norm_and_code(Context& context, const RmsNormArgs& args) {
  const bool dense = args.x.dtype == DType::f32 && args.x.contiguous() && args.x.shape == args.out.shape && rows_aligned(args.x, 16);
  if (!dense || !args.weight.defined() || !wants_codes(context, args.out)) return false;
  const std::int64_t width = args.out.dim(1);
  RoundCodes codes = codes_at_rounded_data(context, args.x.as<float>(), width, args.out.dim(0), width, context.product_type, context.codes_kind);
  with_fours(width, [&](auto fours, unsigned threads) {
    launch_early(context, &norm_to_codes<decltype(fours)::value>, dim3(static_cast<unsigned>(codes.tokens)), dim3(threads), 0, codes, vector_of(args.weight), static_cast<float>(args.eps),
                 args.out.as<float>());
  });
  codes.x = args.out.as<float>();
  context.rounded = codes_of(codes);
  return true;
}

bool gate_and_code(Context& context, const SwigluArgs& args) {
  const auto dense = [&](const Tensor& x) { return x.dtype == DType::f32 && x.shape == args.out.shape && x.contiguous() && rows_aligned(x, 16); };
  if (!dense(args.gate) || !dense(args.up) || !wants_codes(context, args.out)) return false;
  const std::int64_t width = args.out.dim(1);
  RoundCodes codes = codes_at_rounded_data(context, args.gate.as<float>(), width, args.out.dim(0), width, context.product_type, context.codes_kind);
  with_fours(width, [&](auto fours, unsigned threads) {
    launch_early(context, &gate_to_codes<decltype(fours)::value>, dim3(static_cast<unsigned>(codes.tokens)), dim3(threads), 0, codes, args.up.as<float>(),
                 static_cast<float>(args.limit), args.out.as<float>());
  });
  codes.x = args.out.as<float>();
  context.rounded = codes_of(codes);
  return true;
}

}  // namespace fathom::cuda
