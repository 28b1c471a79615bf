// Ops over many dense rows, rounded as they are made: see many_rows.h.
#include "backends/cuda/many_rows.h"

#include "backends/cuda/any_float.cuh"
#include "backends/cuda/codes_rounding.cuh"
#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/token_program.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kManyTokens = 16, kLeastRounded = 2;  // rotations and cache rows; rounding beside
constexpr int kRowThreads = 256, kSumThreads = 512;

/// Rows of any rank as [tokens, width] where they lie dense.
std::int64_t width_of(const Tensor& x) {
  std::int64_t width = 1;
  for (int i = 1; i < x.shape.rank; ++i) width *= x.shape[i];
  return width;
}

/// Whether the elements of each outer row lie one after the other.
bool in_one_piece(const Tensor& x) {
  std::int64_t elements = x.dim(x.shape.rank - 1);
  for (int i = x.shape.rank - 2; i > 0; --i) {
    if (x.strides[static_cast<std::size_t>(i)] != elements) return false;
    elements *= x.shape[i];
  }
  return x.shape.rank >= 2;
}

/// One block a row; a thread's kEights of eight elements stay in registers between the sum and the scaling.
template <class T, int kEights>
__global__ void __launch_bounds__(kRowThreads) norm_rows(const float* x, FloatVector weight, float eps, float* out, T* rounded, int width) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * width;
  float4 kept[kEights][2];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kEights; ++k) {
    const int i = 8 * (static_cast<int>(threadIdx.x) + k * kRowThreads);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = kept[k][half] = i < width ? *reinterpret_cast<const float4*>(x + row + i + 4 * half) : make_float4(0, 0, 0, 0);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(width) + eps);
#pragma unroll
  for (int k = 0; k < kEights; ++k) {
    const int i = 8 * (static_cast<int>(threadIdx.x) + k * kRowThreads);
    if (i >= width) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4& v = kept[k][half];
      const int at = i + 4 * half;
      v = make_float4(v.x * scale * weight[at], v.y * scale * weight[at + 1], v.z * scale * weight[at + 2], v.w * scale * weight[at + 3]);
      if (out != nullptr) *reinterpret_cast<float4*>(out + row + at) = v;
    }
    *reinterpret_cast<uint4*>(rounded + row + i) = pack_eight<T>(kept[k][0], kept[k][1]);
  }
}

/// Eight outputs from column `at` of row `row` on.
__device__ void add_parts(const PartialSums& sums, std::int64_t row, int at, float4 (&out)[2]) {
  const std::int64_t from = row * sums.n + at;
#pragma unroll
  for (int half = 0; half < 2; ++half) out[half] = *reinterpret_cast<const float4*>(sums.parts + from + 4 * half);
#pragma unroll 1
  for (int part = 1; part < sums.count; ++part)
#pragma unroll
    for (int half = 0; half < 2; ++half) out[half] = sum_of(out[half], *reinterpret_cast<const float4*>(sums.parts + part * sums.tokens * sums.n + from + 4 * half));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    out[half] = sum_of(out[half], *reinterpret_cast<const float4*>(sums.added + from + 4 * half));
    *reinterpret_cast<float4*>(sums.out + from + 4 * half) = out[half];
  }
}

__global__ void __launch_bounds__(kRowThreads) add_up_kernel(const __grid_constant__ PartialSums sums) {
  after_previous();
  for_items(sums.tokens * sums.n / 8, [&](std::int64_t item) {
    float4 out[2];
    add_parts(sums, 0, static_cast<int>(item * 8), out);
  });
}

/// One block a row; a thread's kEights of eight elements stay in registers.
template <class T, int kEights>
__global__ void __launch_bounds__(kSumThreads) add_up_and_norm_kernel(const __grid_constant__ PartialSums sums, FloatVector weight, float eps, float* out, T* rounded) {
  __shared__ BlockRoom room;
  after_previous();
  const std::int64_t row = blockIdx.x;
  const int width = static_cast<int>(sums.n);
  float4 kept[kEights][2];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kEights; ++k) {
    const int at = 8 * (static_cast<int>(threadIdx.x) + k * kSumThreads);
    if (at >= width) break;
    add_parts(sums, row, at, kept[k]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = kept[k][half];
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(width) + eps);
#pragma unroll
  for (int k = 0; k < kEights; ++k) {
    const int at = 8 * (static_cast<int>(threadIdx.x) + k * kSumThreads);
    if (at >= width) break;
    float factor[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) factor[i] = scale * weight[at + i];
    kept[k][0] = make_float4(kept[k][0].x * factor[0], kept[k][0].y * factor[1], kept[k][0].z * factor[2], kept[k][0].w * factor[3]);
    kept[k][1] = make_float4(kept[k][1].x * factor[4], kept[k][1].y * factor[5], kept[k][1].z * factor[6], kept[k][1].w * factor[7]);
#pragma unroll
    for (int half = 0; half < 2; ++half) *reinterpret_cast<float4*>(out + row * width + at + 4 * half) = kept[k][half];
    *reinterpret_cast<uint4*>(rounded + row * width + at) = pack_eight<T>(kept[k][0], kept[k][1]);
  }
}

template <class T>
__device__ float2 two_of(unsigned packed);
template <>
__device__ float2 two_of<__nv_bfloat16>(unsigned packed) { return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)); }
template <>
__device__ float2 two_of<__half>(unsigned packed) { return __half22float2(*reinterpret_cast<const __half2*>(&packed)); }

/// From rows that are rounded already, `stride` eights apart and `width` long.
template <class T>
__global__ void __launch_bounds__(kRowThreads) gate_rounded(const uint4* gate, const uint4* up, float limit, uint4* out, std::int64_t eights, unsigned width, unsigned stride) {
  after_previous();
  for_items(eights, [&](std::int64_t item) {
    const std::int64_t at = width == stride ? item : item / width * stride + item % width;
    const uint4 g = gate[at], u = up[at];
    const auto two = [&](unsigned of_gate, unsigned of_up) {
      const float2 a = two_of<T>(of_gate), b = two_of<T>(of_up);
      return pack_two<T>(gated(a.x, b.x, limit), gated(a.y, b.y, limit));
    };
    out[item] = {two(g.x, u.x), two(g.y, u.y), two(g.z, u.z), two(g.w, u.w)};
  });
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) gate_rows(const float* gate, const float* up, float limit, float* out, T* rounded, std::int64_t eights) {
  for_items(eights, [&](std::int64_t item) {
    float4 made[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 g = reinterpret_cast<const float4*>(gate)[2 * item + half], u = reinterpret_cast<const float4*>(up)[2 * item + half];
      made[half] = make_float4(gated(g.x, u.x, limit), gated(g.y, u.y, limit), gated(g.z, u.z, limit), gated(g.w, u.w, limit));
      reinterpret_cast<float4*>(out)[2 * item + half] = made[half];
    }
    reinterpret_cast<uint4*>(rounded)[item] = pack_eight<T>(made[0], made[1]);
  });
}

/// The two halves of a rotated pair, as every kernel rotates (device_math.cuh): the same bits.
__device__ float4 turned_first(const float4& a, const float4& b, const float4& c, const float4& s) {
  return make_float4(rotated_first(a.x, b.x, c.x, s.x), rotated_first(a.y, b.y, c.y, s.y), rotated_first(a.z, b.z, c.z, s.z), rotated_first(a.w, b.w, c.w, s.w));
}
__device__ float4 turned_second(const float4& a, const float4& b, const float4& c, const float4& s) {
  return make_float4(rotated_second(a.x, b.x, c.x, s.x), rotated_second(a.y, b.y, c.y, s.y), rotated_second(a.z, b.z, c.z, s.z), rotated_second(a.w, b.w, c.w, s.w));
}

struct ManyRotations {
  View<float> x;  // [tokens, heads, …]
  View<const float> cosines, sines;
  int fours, first_dim, sign;  // fours: of a half
};

/// Grid: tokens, stretches of a token's heads and fours.
__global__ void __launch_bounds__(kRowThreads) rotate_rows(const __grid_constant__ ManyRotations args) {
  const std::int64_t t = blockIdx.x;
  const int item = static_cast<int>(blockIdx.y) * kRowThreads + static_cast<int>(threadIdx.x), head = item / args.fours, at = item % args.fours;
  if (head >= args.x.dims[1]) return;
  auto* row = reinterpret_cast<float4*>(args.x.at(t, head) + args.first_dim);
  const float4 c = *reinterpret_cast<const float4*>(args.cosines.at(t) + 4 * at);
  float4 s = *reinterpret_cast<const float4*>(args.sines.at(t) + 4 * at);
  const float sign = static_cast<float>(args.sign);
  s = make_float4(s.x * sign, s.y * sign, s.z * sign, s.w * sign);
  const float4 a = row[at], b = row[at + args.fours];
  row[at] = turned_first(a, b, c, s);
  row[at + args.fours] = turned_second(a, b, c, s);
}

struct ManyWrites {
  const float* src;
  std::byte* cache;
  std::int64_t src_stride, cache_stride, rows_per_slot;  // elements; rows
  const int4* sequences;                                 // slot, first_token, tokens, past
  int sequence_count, eights;
  bool ring;
};

/// Grid: tokens, stretches of a token's eights. Rows of a cache that lie in one piece on both sides.
template <class T>
__global__ void __launch_bounds__(kRowThreads) write_rows(const __grid_constant__ ManyWrites args) {
  __shared__ std::int64_t place;
  const int t = static_cast<int>(blockIdx.x), at = static_cast<int>(blockIdx.y) * kRowThreads + static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) place = -1;
  float4 low = make_float4(0, 0, 0, 0), high = low;
  if (at < args.eights) {
    const auto* from = reinterpret_cast<const float4*>(args.src + t * args.src_stride) + 2 * at;
    low = from[0], high = from[1];
  }
  __syncthreads();
  for (int s = static_cast<int>(threadIdx.x); s < args.sequence_count; s += kRowThreads) {
    const int4 sequence = args.sequences[s];
    if (t < sequence.y || t >= sequence.y + sequence.z) continue;
    const std::int64_t position = sequence.w + t - sequence.y, first = sequence.x * args.rows_per_slot;
    if (!args.ring) place = first + position;
    else if (position >= sequence.w + sequence.z - args.rows_per_slot) place = first + position % args.rows_per_slot;
  }
  __syncthreads();
  if (place < 0 || at >= args.eights) return;
  T* to = reinterpret_cast<T*>(args.cache) + place * args.cache_stride + 8 * at;
  if constexpr (std::is_same_v<T, float>) reinterpret_cast<float4*>(to)[0] = low, reinterpret_cast<float4*>(to)[1] = high;
  else if constexpr (std::is_same_v<T, E4m3>) *reinterpret_cast<uint2*>(to) = pack_eight_codes(low, high);
  else *reinterpret_cast<uint4*>(to) = pack_eight<T>(low, high);
}

/// Queries, keys and values of attention, eight pairs of a rotation or sixteen elements a thread.
struct ManyStores {
  View<const float> q, k;  // [tokens, heads, 16 · pairs]
  const float* v;
  View<const float> cosines, sines;
  std::byte *q_out, *k_cache, *v_cache;
  std::int64_t v_stride, k_row, v_row, rows_per_slot;  // elements; rows
  const int4* sequences;                               // slot, first_token, tokens, past
  int sequence_count, pairs, q_items, kv_items;        // pairs: eights of half a head
  float scale, sign;
};

__device__ float4 times(const float4& a, float by) { return make_float4(a.x * by, a.y * by, a.z * by, a.w * by); }

/// Grid: tokens, stretches of a token's items: those of q, k, v.
template <class T>
__global__ void __launch_bounds__(kRowThreads) store_qkv(const __grid_constant__ ManyStores args) {
  __shared__ std::int64_t place;
  after_previous();
  const int t = static_cast<int>(blockIdx.x), item = static_cast<int>(blockIdx.y) * kRowThreads + static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) place = -1;
  __syncthreads();
  for (int s = static_cast<int>(threadIdx.x); s < args.sequence_count; s += kRowThreads) {
    const int4 sequence = args.sequences[s];
    if (t >= sequence.y && t < sequence.y + sequence.z) place = sequence.x * args.rows_per_slot + sequence.w + t - sequence.y;
  }
  __syncthreads();
  const int of_v = item - args.q_items - args.kv_items;
  if (place < 0 || of_v >= args.kv_items) return;
  if (of_v >= 0) {
    const auto* from = reinterpret_cast<const float4*>(args.v + t * args.v_stride) + 4 * of_v;
    auto* to = reinterpret_cast<uint4*>(reinterpret_cast<T*>(args.v_cache) + place * args.v_row) + 2 * of_v;
    to[0] = pack_eight<T>(from[0], from[1]), to[1] = pack_eight<T>(from[2], from[3]);
    return;
  }
  const bool is_q = item < args.q_items;
  const int own = is_q ? item : item - args.q_items, head = own / args.pairs, at = own % args.pairs, fours = 2 * args.pairs;
  const auto* row = reinterpret_cast<const float4*>(is_q ? args.q.at(t, head) : args.k.at(t, head)) + 2 * at;
  const auto *c = reinterpret_cast<const float4*>(args.cosines.at(t)) + 2 * at, *s = reinterpret_cast<const float4*>(args.sines.at(t)) + 2 * at;
  float4 low[2], high[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 a = row[i], b = row[i + fours], sine = times(s[i], args.sign);
    low[i] = turned_first(a, b, c[i], sine), high[i] = turned_second(a, b, c[i], sine);
    if (is_q) low[i] = times(low[i], args.scale), high[i] = times(high[i], args.scale);
  }
  T* to = is_q ? reinterpret_cast<T*>(args.q_out) + (t * static_cast<std::int64_t>(args.q.dims[1]) + head) * 16 * args.pairs
               : reinterpret_cast<T*>(args.k_cache) + place * args.k_row + head * 16 * args.pairs;
  reinterpret_cast<uint4*>(to)[at] = pack_eight<T>(low[0], low[1]);
  reinterpret_cast<uint4*>(to)[at + args.pairs] = pack_eight<T>(high[0], high[1]);
}

template <class T>
void launch_norm(Context& context, const RmsNormArgs& args, float* out, std::byte* room) {
  const auto rows = static_cast<unsigned>(args.x.dim(0));
  const int width = static_cast<int>(width_of(args.x)), eights = static_cast<int>(divide_up(width, 8 * kRowThreads));
  const auto launch = [&](auto count) {
    launch_early(context, &norm_rows<T, decltype(count)::value>, rows, kRowThreads, 0, args.x.as<float>(), vector_of(args.weight), static_cast<float>(args.eps), out,
                 reinterpret_cast<T*>(room), width);
    context.launched();
  };
  if (eights == 1) launch(std::integral_constant<int, 1>{});
  else if (eights == 2) launch(std::integral_constant<int, 2>{});
  else launch(std::integral_constant<int, 4>{});
}

template <class T>
void launch_gate(Context& context, const SwigluArgs& args, std::byte* room) {
  const std::int64_t eights = args.out.elements() / 8;
  gate_rows<T><<<grid_for(context, eights, kRowThreads), kRowThreads, 0, context.stream>>>(args.gate.as<float>(), args.up.as<float>(), static_cast<float>(args.limit), args.out.as<float>(),
                                                                                    reinterpret_cast<T*>(room), eights);
  context.launched();
}

bool dense_f32(const Tensor& x) { return x.dtype == DType::f32 && x.contiguous() && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0; }
bool rounded_fits(const Tensor& x) {
  return x.shape.rank >= 2 && x.dim(0) >= kLeastRounded && width_of(x) % 8 == 0 && static_cast<Bytes>(x.elements()) * 2 <= kRoundedBytes && dense_f32(x);
}
bool norm_fits(const RmsNormArgs& args) {
  return args.out.shape.rank == 2 && args.weight.defined() && args.out.dim(1) <= 32 * kRowThreads && dense_f32(args.x) && args.x.shape == args.out.shape;
}

}  // namespace

std::byte* room_to_round(const Context& context, const Tensor& x) {
  const bool half = context.product_type == DType::bf16 || context.product_type == DType::f16;
  return half && rounded_fits(x) ? context.rounded_data : nullptr;
}

std::byte* room_to_round(const Context& context, const RmsNormArgs& norm) { return norm_fits(norm) ? room_to_round(context, norm.out) : nullptr; }

const std::byte* kept_rounded(const Context& context, const Tensor& x, DType type) {
  const auto is = [&](const RoundedActivations& kept) {
    return kept == RoundedActivations{.x = x.as<float>(), .tokens = x.dim(0), .groups = 1, .width = x.dim(1), .stride = x.strides[0], .step = 0, .type = type, .beside = kept.beside};
  };
  if (is(context.rounded)) return context.rounded_data + (context.rounded.beside ? kRoundedBytes / 2 : 0);
  return context.rounded.beside && !context.rounded_before.beside && is(context.rounded_before) ? context.rounded_data : nullptr;
}

bool can_only_round(const RmsNormArgs& args) {
  return args.only_products && norm_fits(args) && rounded_fits(args.out) && args.out.dim(0) > TokenProgram::kMostTokens;
}
bool can_only_round(const SwigluArgs& args, bool some) { return args.only_products && rounded_fits(args.out) && (some || args.out.dim(0) > TokenProgram::kMostTokens); }

void round_norm(Context& context, const RmsNormArgs& args, DType type) {
  if (type == DType::bf16) launch_norm<__nv_bfloat16>(context, args, nullptr, context.rounded_data);
  else launch_norm<__half>(context, args, nullptr, context.rounded_data);
}

void round_gate(Context& context, const SwigluArgs& args, DType type, bool in_one) {
  const std::int64_t eights = args.out.elements() / 8;
  const auto width = static_cast<unsigned>(width_of(args.out) / 8);
  const auto kernel = type == DType::bf16 ? &gate_rounded<__nv_bfloat16> : &gate_rounded<__half>;
  const auto *gate = reinterpret_cast<const uint4*>(args.gate.data), *up = in_one ? gate + width : reinterpret_cast<const uint4*>(args.up.data);
  launch_early(context, kernel, grid_for(context, eights, kRowThreads), kRowThreads, 0, gate, up, static_cast<float>(args.limit), reinterpret_cast<uint4*>(context.rounded_data), eights, width,
               in_one ? 2 * width : width);
  context.launched();
}

void add_up(Context& context, const PartialSums& sums) {
  launch_early(context, &add_up_kernel, grid_for(context, sums.tokens * sums.n / 8, kRowThreads), kRowThreads, 0, sums);
  context.launched();
}

bool add_up_and_norm(Context& context, const PartialSums& sums, const RmsNormArgs& norm) {
  constexpr std::int64_t kMostEights = 2;
  std::byte* room = sums.n <= kMostEights * 8 * kSumThreads ? room_to_round(context, norm) : nullptr;
  if (room == nullptr || norm.x.as<float>() != sums.out || norm.x.dim(0) != sums.tokens || norm.x.dim(1) != sums.n) return false;
  // What was added may have been released, and the norm's rows lie over it: a block reads and writes one row of each at its own pace.
  const auto* out = norm.out.as<float>();
  const std::int64_t elements = sums.tokens * sums.n;
  if (out != sums.added && out < sums.added + elements && sums.added < out + elements) return false;
  const auto launch = [&](auto* kernel, auto* rounded) {
    launch_early(context, kernel, static_cast<unsigned>(sums.tokens), kSumThreads, 0, sums, vector_of(norm.weight), static_cast<float>(norm.eps), norm.out.as<float>(), rounded);
    context.launched();
  };
  const bool one = sums.n <= 8 * kSumThreads;
  if (auto* bf16 = reinterpret_cast<__nv_bfloat16*>(room); context.product_type == DType::bf16)
    one ? launch(&add_up_and_norm_kernel<__nv_bfloat16, 1>, bf16) : launch(&add_up_and_norm_kernel<__nv_bfloat16, 2>, bf16);
  else
    one ? launch(&add_up_and_norm_kernel<__half, 1>, reinterpret_cast<__half*>(room)) : launch(&add_up_and_norm_kernel<__half, 2>, reinterpret_cast<__half*>(room));
  keep_rounded(context, norm.out);
  return true;
}

void keep_rounded(Context& context, const Tensor& x, DType type) {
  const std::int64_t width = width_of(x);
  context.rounded = {.x = x.as<float>(), .tokens = x.dim(0), .groups = 1, .width = width, .stride = width, .step = 0, .type = type};
}
void keep_rounded(Context& context, const Tensor& x) { keep_rounded(context, x, context.product_type); }

bool norm_and_round(Context& context, const RmsNormArgs& args) {
  if (norm_and_code(context, args)) return true;
  std::byte* room = norm_fits(args) ? room_to_round(context, args.out) : nullptr;
  if (room == nullptr) return false;
  if (context.product_type == DType::bf16) launch_norm<__nv_bfloat16>(context, args, args.out.as<float>(), room);
  else launch_norm<__half>(context, args, args.out.as<float>(), room);
  keep_rounded(context, args.out);
  return true;
}

bool can_rotate_many(const RopeArgs& args) {
  const bool aligned = rows_aligned(args.x, 16) && rows_aligned(args.cos, 16) && rows_aligned(args.sin, 16) && args.first_dim % 4 == 0 && args.cos.dim(1) % 4 == 0;
  return !args.interleaved && args.x.dim(0) >= kManyTokens && aligned && args.x.dtype == DType::f32;
}

bool rotate_many(Context& context, const RopeArgs& args) {
  if (!can_rotate_many(args)) return false;
  const ManyRotations view{view_of<float>(args.x), view_of<const float>(args.cos), view_of<const float>(args.sin), static_cast<int>(args.cos.dim(1) / 4), static_cast<int>(args.first_dim),
                           args.inverse ? -1 : 1};
  rotate_rows<<<dim3(static_cast<unsigned>(args.x.dim(0)), static_cast<unsigned>(divide_up(args.x.dim(1) * view.fours, kRowThreads))), kRowThreads, 0, context.stream>>>(view);
  context.launched();
  return true;
}

bool can_write_many(const CacheWriteArgs& args) {
  const std::int64_t width = width_of(args.src);
  const auto fits = [&](const Tensor& x) { return in_one_piece(x) && rows_aligned(x, 16); };
  return args.rows != RowsOf::kEntry && args.cache.dtype != DType::i8 && args.src.dim(0) >= kManyTokens && width % 8 == 0 && width_of(args.cache) == width && fits(args.src) && fits(args.cache);
}

bool write_many(Context& context, const CacheWriteArgs& args) {
  if (!can_write_many(args)) return false;
  const std::int64_t tokens = args.src.dim(0), width = width_of(args.src);
  const ManyWrites view{.src = args.src.as<float>(), .cache = args.cache.data, .src_stride = args.src.strides[0], .cache_stride = args.cache.strides[0],
                        .rows_per_slot = args.rows_per_slot, .sequences = reinterpret_cast<const int4*>(args.batch->sequence_table.data),
                        .sequence_count = static_cast<int>(args.batch->sequences.size()), .eights = static_cast<int>(width / 8), .ring = args.rows == RowsOf::kRing};
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(divide_up(width / 8, kRowThreads)));
  if (args.cache.dtype == DType::f32) write_rows<float><<<grid, kRowThreads, 0, context.stream>>>(view);
  else if (args.cache.dtype == DType::f16) write_rows<__half><<<grid, kRowThreads, 0, context.stream>>>(view);
  else if (args.cache.dtype == DType::f8e4m3) write_rows<E4m3><<<grid, kRowThreads, 0, context.stream>>>(view);
  else write_rows<__nv_bfloat16><<<grid, kRowThreads, 0, context.stream>>>(view);
  context.launched();
  return true;
}

bool fit(const QkvRows& rows, const AttentionArgs& args) {
  if (rows.rotation_count != 2 || rows.write_count != 2 || args.segments.size() != 1 || args.lse.defined()) return false;
  const auto& [q, k] = rows.rotations;
  const auto& [keys, values] = rows.writes;
  const KvSegment& segment = args.segments[0];
  const std::int64_t tokens = args.q.dim(0), d = args.q.dim(2), kv_heads = segment.k.dim(1);
  const auto whole = [&](const RopeArgs& rope, const Tensor& x) {
    return rope.x.data == x.data && rope.x.dim(0) == tokens && rope.x.dim(2) == d && 2 * rope.cos.dim(1) == d && rope.cos.data == q.cos.data && rope.sin.data == q.sin.data &&
           rope.inverse == q.inverse && in_one_piece(rope.x);
  };
  const auto into = [&](const CacheWriteArgs& write, const Tensor& cache) {
    return write.cache.data == cache.data && write.cache.dtype == cache.dtype && write.cache.strides[0] == cache.strides[0] && write.rows == RowsOf::kPosition &&
           write.rows_per_slot == segment.rows_per_slot && write.batch == args.batch && write.src.dim(0) == tokens && width_of(write.src) == kv_heads * d && cache.strides[1] == d;
  };
  const bool types = segment.k.dtype == segment.v.dtype && (segment.k.dtype == DType::bf16 || segment.k.dtype == DType::f16) && args.q.dtype == DType::f32 && args.q.data == q.x.data;
  return segment.kind == KvSegment::Kind::kCache && types && d % 16 == 0 && segment.v.dim(2) == d && whole(q, args.q) && whole(k, keys.src) && k.x.dim(1) == kv_heads &&
         into(keys, segment.k) && into(values, segment.v) && !segment.k_shared.defined() && !segment.selected.defined();
}

std::byte* store_rows(Context& context, const QkvRows& rows, const AttentionArgs& args) {
  const auto& [q, k] = rows.rotations;
  const auto& [keys, values] = rows.writes;
  const std::int64_t tokens = args.q.dim(0), d = args.q.dim(2), heads = args.q.dim(1), kv_heads = args.segments[0].k.dim(1);
  std::byte* room = context.workspace.take<std::byte>(2 * tokens * heads * d);
  ManyStores view{.q = view_of<const float>(q.x), .k = view_of<const float>(k.x), .v = values.src.as<float>(), .cosines = view_of<const float>(q.cos), .sines = view_of<const float>(q.sin),
                  .q_out = room, .k_cache = keys.cache.data, .v_cache = values.cache.data, .v_stride = values.src.strides[0], .k_row = keys.cache.strides[0],
                  .v_row = values.cache.strides[0], .rows_per_slot = keys.rows_per_slot, .sequences = reinterpret_cast<const int4*>(args.batch->sequence_table.data),
                  .sequence_count = static_cast<int>(args.batch->sequences.size()), .pairs = static_cast<int>(d / 16), .q_items = static_cast<int>(heads * d / 16),
                  .kv_items = static_cast<int>(kv_heads * d / 16), .scale = static_cast<float>(args.scale) * kLog2E, .sign = q.inverse ? -1.0f : 1.0f};
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(divide_up(view.q_items + 2 * view.kv_items, kRowThreads)));
  launch_early(context, args.segments[0].k.dtype == DType::bf16 ? &store_qkv<__nv_bfloat16> : &store_qkv<__half>, grid, kRowThreads, 0, view);
  context.launched();
  return room;
}

bool gate_and_round(Context& context, const SwigluArgs& args) {
  if (gate_and_code(context, args)) return true;
  std::byte* room = dense_f32(args.gate) && dense_f32(args.up) && args.gate.shape == args.out.shape && args.up.shape == args.out.shape ? room_to_round(context, args.out) : nullptr;
  if (room == nullptr) return false;
  if (context.product_type == DType::bf16) launch_gate<__nv_bfloat16>(context, args, room);
  else launch_gate<__half>(context, args, room);
  keep_rounded(context, args.out);
  return true;
}

}  // namespace fathom::cuda
