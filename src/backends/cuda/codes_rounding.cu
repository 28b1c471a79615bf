#include "backends/cuda/codes_rounding.cuh"

#include "backends/cuda/any_float.cuh"
#include "backends/cuda/codes.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/rounded.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kRoundThreads = 256;

/// Four neighbours; zeros behind the row's end.
__device__ inline float4 read_four(const RoundCodes& args, std::int64_t token, int column) {
  return column < args.cols ? *reinterpret_cast<const float4*>(args.x + token * args.x_stride + column) : make_float4(0, 0, 0, 0);
}
__device__ inline float most_of(const float4& x) { return larger(larger(fabsf(x.x), fabsf(x.y)), larger(fabsf(x.z), fabsf(x.w))); }

/// A block a token, a warp a stretch of 128 columns.
__global__ void __launch_bounds__(kRoundThreads) round_stretches(const __grid_constant__ RoundCodes args) {
  after_previous();
  const std::int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 2
  for (int depth = static_cast<int>(threadIdx.x) / kWarp; depth < args.depths; depth += kRoundThreads / kWarp) {
    const float4 x = read_four(args, token, depth * kCodeDepth + 4 * lane);
    const RoundedRow row = rounded_of<true>(warp_max(most_of(x)), args.powers);
    *reinterpret_cast<unsigned*>(args.codes + args.byte_of(token, depth, 4 * lane)) = rounded_four(x, row);
    if (lane == 0) args.scales[args.scale_of(token, depth)] = row.scale;
  }
}

/// A block a token, whose row has one scale; scales [tokens].
__global__ void __launch_bounds__(kRoundThreads) round_rows(const __grid_constant__ RoundCodes args) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t token = blockIdx.x;
  float most = 0.0f;
  for (int column = 4 * static_cast<int>(threadIdx.x); column < args.cols; column += 4 * kRoundThreads) most = larger(most, most_of(read_four(args, token, column)));
  const RoundedRow row = rounded_of<true>(block_max(most, room));
  for (int column = 4 * static_cast<int>(threadIdx.x); column < args.depths * kCodeDepth; column += 4 * kRoundThreads)
    *reinterpret_cast<unsigned*>(args.codes + args.byte_of(token, column / kCodeDepth, column % kCodeDepth)) = rounded_four(read_four(args, token, column), row);
  if (threadIdx.x == 0) args.scales[token] = row.scale;
}

/// Makes a row's four neighbours (256 threads, kFours of four each), which a block then writes as they are and as codes.
template <int kFours, class Four>
__device__ inline void write_row(const RoundCodes& args, bool stretches, float* out, BlockRoom& room, const Four& four) {
  const std::int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float4 kept[kFours];
  float most = 0.0f;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int column = 4 * (static_cast<int>(threadIdx.x) + k * kRoundThreads);
    kept[k] = column < args.cols ? four(k, column) : make_float4(0, 0, 0, 0);
    most = larger(most, most_of(kept[k]));
    if (column < args.cols) *reinterpret_cast<float4*>(out + token * args.cols + column) = kept[k];
  }
  RoundedRow row{1.0f};
  if (!stretches) {
    row = rounded_of<true>(block_max(most, room));
    if (threadIdx.x == 0) args.scales[token] = row.scale;
  }
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int column = 4 * (static_cast<int>(threadIdx.x) + k * kRoundThreads), depth = column / kCodeDepth;  // one stretch a warp
    if (depth >= args.depths) break;
    if (stretches) {
      row = rounded_of<true>(warp_max(most_of(kept[k])), args.powers);
      if (lane == 0) args.scales[args.scale_of(token, depth)] = row.scale;
    }
    *reinterpret_cast<unsigned*>(args.codes + args.byte_of(token, depth, column % kCodeDepth)) = rounded_four(kept[k], row);
  }
}

template <int kFours>
__global__ void __launch_bounds__(kRoundThreads) norm_to_codes(const __grid_constant__ RoundCodes args, bool stretches, FloatVector weight, float eps, float* out) {
  __shared__ BlockRoom room;
  after_previous();
  float4 x[kFours];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const float4 v = x[k] = read_four(args, blockIdx.x, 4 * (static_cast<int>(threadIdx.x) + k * kRoundThreads));
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(args.cols) + eps);
  write_row<kFours>(args, stretches, out, room, [&](int k, int at) {
    return make_float4(x[k].x * scale * weight[at], x[k].y * scale * weight[at + 1], x[k].z * scale * weight[at + 2], x[k].w * scale * weight[at + 3]);
  });
}

/// args.x: the gate, dense, as up.
template <int kFours>
__global__ void __launch_bounds__(kRoundThreads) gate_to_codes(const __grid_constant__ RoundCodes args, bool stretches, const float* up, float limit, float* out) {
  __shared__ BlockRoom room;
  after_previous();
  write_row<kFours>(args, stretches, out, room, [&](int, int at) {
    const float4 g = read_four(args, blockIdx.x, at), u = *reinterpret_cast<const float4*>(up + blockIdx.x * static_cast<std::int64_t>(args.cols) + at);
    return make_float4(gated(g.x, u.x, limit), gated(g.y, u.y, limit), gated(g.z, u.z, limit), gated(g.w, u.w, limit));
  });
}

constexpr std::int64_t kLeastTokens = kWeightOnlyTokens + 1;

/// Whether x [tokens, width] is dense and codes of it are what the next product will want.
bool wants_codes(const Context& context, const Tensor& x, std::int64_t widest) {
  const bool dense = x.dtype == DType::f32 && x.shape.rank == 2 && x.contiguous() && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  return context.product_type == DType::f8e4m3 && dense && x.dim(0) >= kLeastTokens && x.dim(1) % 16 == 0 && x.dim(1) <= widest && codes_fit(x.dim(0), x.dim(1));
}

template <class Launch>
void with_fours(std::int64_t width, Launch launch) {
  const std::int64_t fours = divide_up(width, 4 * kRoundThreads);
  if (fours <= 2) launch(std::integral_constant<int, 2>{});
  else if (fours <= 4) launch(std::integral_constant<int, 4>{});
  else if (fours <= 8) launch(std::integral_constant<int, 8>{});
  else launch(std::integral_constant<int, 18>{});
}

}  // namespace

bool codes_fit(std::int64_t tokens, std::int64_t cols) {
  const std::int64_t depths = divide_up(cols, kCodeDepth), slots = slots_of(tokens, divide_up(tokens, kCodeHits));
  return slots * depths * (kCodeDepth + 4) + tokens * 4 + 512 <= static_cast<std::int64_t>(kRoundedBytes);
}

void round_codes(Context& context, const RoundCodes& args, bool stretches) {
  launch_early(context, stretches ? &round_stretches : &round_rows, dim3(static_cast<unsigned>(args.tokens)), dim3(kRoundThreads), 0, args);
}

RoundCodes codes_at_rounded_data(const Context& context, const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t cols, const CodesKind& kind) {
  RoundCodes codes{.x = x, .x_stride = x_stride, .tokens = tokens, .cols = static_cast<int>(cols), .depths = static_cast<int>(divide_up(cols, kCodeDepth)), .powers = kind.powers, .tiles = true};
  codes.codes = reinterpret_cast<std::uint8_t*>(context.rounded_data);
  codes.scales = reinterpret_cast<float*>(context.rounded_data + divide_up(slots_of(tokens, divide_up(tokens, kCodeHits)) * codes.depths * kCodeDepth, 256) * 256);
  return codes;
}

RoundedActivations codes_of(const RoundCodes& codes, const CodesKind& kind) {
  return {.x = codes.x, .tokens = codes.tokens, .groups = 1, .width = codes.cols, .stride = codes.x_stride, .step = 0, .type = DType::f8e4m3, .kind = kind};
}

bool norm_and_code(Context& context, const RmsNormArgs& args) {
  const bool dense = args.x.dtype == DType::f32 && args.x.contiguous() && args.x.shape == args.out.shape && rows_aligned(args.x, 16);
  if (!dense || !args.weight.defined() || !wants_codes(context, args.out, 8192)) return false;
  const std::int64_t width = args.out.dim(1);
  const CodesKind kind = context.codes_kind;
  RoundCodes codes = codes_at_rounded_data(context, args.x.as<float>(), width, args.out.dim(0), width, kind);
  with_fours(width, [&](auto fours) {
    if constexpr (decltype(fours)::value <= 8)
      launch_early(context, &norm_to_codes<decltype(fours)::value>, dim3(static_cast<unsigned>(codes.tokens)), dim3(kRoundThreads), 0, codes, kind.stretches, vector_of(args.weight),
                   static_cast<float>(args.eps), args.out.as<float>());
  });
  codes.x = args.out.as<float>();
  context.rounded = codes_of(codes, kind);
  return true;
}

bool gate_and_code(Context& context, const SwigluArgs& args) {
  const auto dense = [&](const Tensor& x) { return x.dtype == DType::f32 && x.shape == args.out.shape && x.contiguous() && rows_aligned(x, 16); };
  if (!dense(args.gate) || !dense(args.up) || !wants_codes(context, args.out, 18432)) return false;
  const std::int64_t width = args.out.dim(1);
  const CodesKind kind = context.codes_kind;
  RoundCodes codes = codes_at_rounded_data(context, args.gate.as<float>(), width, args.out.dim(0), width, kind);
  with_fours(width, [&](auto fours) {
    launch_early(context, &gate_to_codes<decltype(fours)::value>, dim3(static_cast<unsigned>(codes.tokens)), dim3(kRoundThreads), 0, codes, kind.stretches, args.up.as<float>(),
                 static_cast<float>(args.limit), args.out.as<float>());
  });
  codes.x = args.out.as<float>();
  context.rounded = codes_of(codes, kind);
  return true;
}

}  // namespace fathom::cuda
