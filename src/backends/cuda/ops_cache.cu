// Families rope and attention (caches): rotary tables, rotations in place, rows written to caches. Which sequence a token belongs to is
// read from the batch's table on the device, so that the same launch serves any batch of the same shape.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kCacheThreads = 256;

__global__ void rotary_kernel(const std::int32_t* positions, const float* frequency, float scale, View<float> cosines, View<float> sines) {
  after_previous();
  const std::int64_t half = cosines.dims[1];
  for_items(cosines.dims[0] * half, [&](std::int64_t item) {
    const std::int64_t t = item / half, i = item % half;
    const float angle = __fmul_rn(static_cast<float>(max(positions[t], 0)), frequency[i]);  // f32, as transformers has it; -1: angle 0
    cosines.at(t)[i] = cosf(angle) * scale;
    sines.at(t)[i] = sinf(angle) * scale;
  });
}

struct RopeView {
  View<float> x;
  View<const float> cosines, sines;
  int half, first_dim;
  bool interleaved, inverse;
};

__global__ void __launch_bounds__(kCacheThreads) rope_kernel(RopeView args) {
  after_previous();
  const int pairs = static_cast<int>(args.x.dims[1]) * args.half;
  for (std::int64_t t = blockIdx.y; t < args.x.dims[0]; t += gridDim.y)
    for (int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); item < pairs; item += static_cast<int>(gridDim.x * blockDim.x)) {
      const int head = item / args.half, i = item % args.half;
      float* row = args.x.at(t, head) + args.first_dim;
      float& first = row[args.interleaved ? 2 * i : i];
      float& second = row[args.interleaved ? 2 * i + 1 : i + args.half];
      const float a = first, b = second, c = args.cosines.at(t)[i], s = args.inverse ? -args.sines.at(t)[i] : args.sines.at(t)[i];
      first = rotated_first(a, b, c, s);
      second = rotated_second(a, b, c, s);
    }
}

// ---------------------------------------------------------------- caches

struct CacheRows {
  RowsView src, cache;         // all rows, the dimensions between included: `inner` of them a token
  const int4* sequences;       // slot, first_token, tokens, past
  int sequence_count;
  std::int64_t inner, rows_per_slot, ratio;
  RowsOf rows;
  std::int64_t scales = 0;     // of INT8: bytes from a token's first code to its first scale
};

/// Where row `i` of src goes; -1: nowhere.
__device__ std::int64_t place_of(const CacheRows& args, std::int64_t i, const int4& sequence, std::int64_t first_row) {
  const std::int64_t slot = sequence.x, tokens = sequence.z, past = sequence.w, end = past + tokens;
  if (args.rows == RowsOf::kEntry) {
    const std::int64_t entry = past / args.ratio + i - first_row;
    return entry < end / args.ratio ? slot * args.rows_per_slot + entry : -1;
  }
  const std::int64_t position = past + i - first_row;
  if (args.rows == RowsOf::kPosition) return slot * args.rows_per_slot + position;
  return position >= end - args.rows_per_slot ? slot * args.rows_per_slot + position % args.rows_per_slot : -1;
}

template <class To>
__device__ void write_rows(const CacheRows& args, std::int64_t from, std::int64_t to) {
  const int n = static_cast<int>(args.src.n), elements = static_cast<int>(args.inner) * n, step = static_cast<int>(gridDim.y * blockDim.x);
  const int first = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  for (int e = first; e < elements; e += step) {
    const int j = e / n, i = e % n;
    args.cache.row<To>(to * args.inner + j)[i] = from_float<To>(args.src.row<const float>(from * args.inner + j)[i]);
  }
}

/// Of INT8: a warp a row.
__device__ void write_int8_rows(const CacheRows& args, std::int64_t from, std::int64_t to) {
  constexpr int kWarps = kCacheThreads / kWarp;
  auto* const scales = reinterpret_cast<float*>(args.cache.row<std::byte>(to * args.inner) + args.scales);
  for (auto j = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp; j < args.inner; j += static_cast<int>(gridDim.y) * kWarps)
    write_int8_row(args.src.row<const float>(from * args.inner + j), static_cast<int>(args.src.n), args.cache.row<std::int8_t>(to * args.inner + j), scales + j);
}

__global__ void __launch_bounds__(kCacheThreads) cache_write_kernel(CacheRows args, std::int64_t count) {
  __shared__ std::int64_t place;
  after_previous();
  for (std::int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    __syncthreads();  // the last place has been read
    if (threadIdx.x == 0) place = -1;
    __syncthreads();
    if (args.rows == RowsOf::kEntry) {
      if (threadIdx.x == 0) {
        std::int64_t row = 0;
        for (int s = 0; s < args.sequence_count; ++s) {
          const std::int64_t entries = divide_up(args.sequences[s].z, args.ratio);
          if (i >= row && i < row + entries) place = place_of(args, i, args.sequences[s], row);
          row += entries;
        }
      }
    } else {
      for (int s = static_cast<int>(threadIdx.x); s < args.sequence_count; s += static_cast<int>(blockDim.x)) {
        const int4 sequence = args.sequences[s];
        if (i >= sequence.y && i < static_cast<std::int64_t>(sequence.y) + sequence.z) place = place_of(args, i, sequence, sequence.y);
      }
    }
    __syncthreads();
    if (place < 0) continue;
    if (args.cache.dtype == DType::f32) write_rows<float>(args, i, place);
    else if (args.cache.dtype == DType::f16) write_rows<__half>(args, i, place);
    else if (args.cache.dtype == DType::f8e4m3) write_rows<E4m3>(args, i, place);
    else if (args.cache.dtype == DType::i8) write_int8_rows(args, i, place);
    else write_rows<__nv_bfloat16>(args, i, place);
  }
}

/// A tensor with its outermost dimension first and the rest as rows of the innermost: how many of those an outer row has.
std::int64_t inner_rows(const Tensor& x) {
  std::int64_t inner = 1;
  for (int i = 1; i + 1 < x.shape.rank; ++i) inner *= x.shape[i];
  return inner;
}

}  // namespace

void CudaOps::rotary(const RotaryArgs& args) {
  flush();
  const std::int64_t n = args.positions.dim(0), half = args.inverse_frequency.dim(0);
  FATHOM_CHECK(args.cos.shape == (Shape{n, half}) && args.sin.shape == args.cos.shape);
  FATHOM_CHECK(args.positions.dtype == DType::i32 && args.inverse_frequency.dtype == DType::f32);
  if (n == 0 || half == 0) return;
  launch_early(context_, &rotary_kernel, grid_for(context_, n * half, kCacheThreads), kCacheThreads, 0, args.positions.as<std::int32_t>(), args.inverse_frequency.as<float>(),
               static_cast<float>(args.scale), view_of<float>(args.cos), view_of<float>(args.sin));
}

void CudaOps::rope(const RopeArgs& args) {
  const std::int64_t n = args.x.dim(0), heads = args.x.dim(1), half = args.cos.dim(1);
  FATHOM_CHECK(args.x.shape.rank == 3 && args.cos.dim(0) == n && args.sin.shape == args.cos.shape);
  FATHOM_CHECK(args.first_dim >= 0 && args.first_dim + 2 * half <= args.x.dim(2) && heads * half < (1 << 24));
  if (n == 0 || heads == 0 || half == 0) return;
  const TokenRows rows = token_rows(args.x);
  if (n <= TokenProgram::kMostTokens && rows.n > 0 && rows.dtype == DType::f32 && args.cos.strides[0] == args.sin.strides[0])
    return waiting_->take(context_, {.kind = TokenAction::Kind::kRope, .x = rows, .cosines = args.cos.as<float>(), .sines = args.sin.as<float>(), .angle_stride = args.cos.strides[0],
                                     .half = static_cast<int>(half), .first_dim = static_cast<int>(args.first_dim), .interleaved = args.interleaved, .inverse = args.inverse}, n);
  if (n > TokenProgram::kMostTokens && can_rotate_many(args)) {
    if (!waiting_->only_rows()) flush();
    return waiting_->take(context_, args);
  }
  flush();
  if (rotate_many(context_, args)) return;
  const RopeView view{view_of<float>(args.x), view_of<const float>(args.cos), view_of<const float>(args.sin),
                      static_cast<int>(half), static_cast<int>(args.first_dim), args.interleaved, args.inverse};
  const dim3 grid(static_cast<unsigned>(divide_up(heads * half, kCacheThreads)), static_cast<unsigned>(std::min<std::int64_t>(n, 32768)));
  launch_early(context_, &rope_kernel, grid, kCacheThreads, 0, view);
}

void CudaOps::cache_write(const CacheWriteArgs& args) {
  const Batch& batch = *args.batch;
  const std::int64_t count = args.src.dim(0);
  FATHOM_CHECK(args.src.dtype == DType::f32, "activations are f32");
  FATHOM_CHECK(args.cache.dtype == DType::f32 || args.cache.dtype == DType::f16 || args.cache.dtype == DType::bf16 || dtype_bytes(args.cache.dtype) == 1, "a cache of another type");
  for (const Sequence& sequence : batch.sequences) {
    const std::int64_t end = static_cast<std::int64_t>(sequence.past) + sequence.tokens;
    FATHOM_CHECK(args.rows == RowsOf::kRing || end / (args.rows == RowsOf::kEntry ? args.ratio : 1) <= args.rows_per_slot, "a cache is too small");
  }
  if (count == 0 || batch.sequences.empty()) return;
  const TokenRows src = token_rows(args.src), cache = token_rows(args.cache);
  if (args.rows != RowsOf::kEntry && count <= TokenProgram::kMostTokens && src.n > 0 && src.n == cache.n && src.inner == cache.inner)
    return waiting_->take(context_, {.kind = TokenAction::Kind::kWrite, .x = src, .out = cache, .ring = args.rows == RowsOf::kRing, .rows_per_slot = args.rows_per_slot}, count, &batch);
  if (count > TokenProgram::kMostTokens && can_write_many(args)) {
    if (!waiting_->only_rows()) flush();
    return waiting_->take(context_, args);
  }
  flush();
  if (write_many(context_, args)) return;
  const CacheRows rows{.src = rows_of(args.src),
                       .cache = rows_of(args.cache),
                       .sequences = reinterpret_cast<const int4*>(batch.sequence_table.data),
                       .sequence_count = static_cast<int>(batch.sequences.size()),
                       .inner = inner_rows(args.src),
                       .rows_per_slot = args.rows_per_slot,
                       .ratio = args.ratio,
                       .rows = args.rows,
                       .scales = args.cache.dtype == DType::i8 ? int8_scales_offset(args.cache) : 0};
  FATHOM_CHECK(rows.inner == inner_rows(args.cache) && rows.src.n == rows.cache.n && rows.inner * rows.src.n < (std::int64_t{1} << 31));
  const std::int64_t items = rows.inner * rows.src.n;
  const dim3 grid(grid_for(context_, count, 1), static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(items, kCacheThreads), 1, 64)));
  launch_early(context_, &cache_write_kernel, grid, kCacheThreads, 0, rows, count);
}

}  // namespace fathom::cuda
