// The kernel of few tokens with INT4 weights: codes become bf16 exactly, three operations for two of them, and tensor cores multiply them with x
// cut into three bf16 parts, whose sum is x (of more than two tokens two parts: 16 bits); sums are f32. 128 columns, a group, are a step: a lane reads 16 bytes of a row, four lanes the
// group, so that a scale and a zero point are read once.
#pragma once
#include "backends/cuda/launch.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {

inline constexpr int kInt4Warps = 16, kInt4Rows = 32;  // of a block: two tiles of 16 rows; warps share its columns, a step each in turn
inline constexpr int kInt4Group = 128;

struct Int4View {
  Together all;
  unsigned units = 0;     // of 32 rows
  int steps_at_once = 0;  // whose x shared memory holds
};

/// 32 rows that a block takes together: of one product, or 16 of a gate and the same of its up.
struct Int4Rows {
  const WeightView* weight[2] = {};  // of each tile of 16
  std::int64_t row[2] = {};
  std::int64_t first = 0;            // of the product's outputs
  int which = 0;
  __device__ void find(const Together& all, unsigned unit) {
    which = 0;
    if (!all.gated)
      while (which + 1 < all.count && unit >= all.first_block[which + 1]) ++which;
    first = all.gated ? static_cast<std::int64_t>(unit) * (kInt4Rows / 2) : static_cast<std::int64_t>(unit - all.first_block[which]) * kInt4Rows;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const Product& p = all.products[all.gated ? tile : which];
      weight[tile] = &p.weight;
      row[tile] = p.first_row + first + (all.gated ? 0 : tile * 16);
    }
  }
};

/// What a lane has of a step: 32 codes of two rows of each tile, their scales and zero points.
struct Int4Step {
  uint4 codes[2][2];
  unsigned short scale[2][2];
  std::uint32_t zeros[2][2];
  __device__ void read(const Int4Rows& rows, int steps, int step) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const WeightView& weight = *rows.weight[tile];
        const std::int64_t row = min(rows.row[tile] + half * 8 + lane / 4, weight.rows - 1), at = row * steps + step;
        codes[tile][half] = __ldcs(reinterpret_cast<const uint4*>(weight.data) + at * 4 + lane % 4);
        scale[tile][half] = __ldg(reinterpret_cast<const unsigned short*>(weight.scales) + at);
        if (has_zeros(weight.format))
          zeros[tile][half] = __ldg(reinterpret_cast<const std::uint32_t*>(weight.scales + offset_of_zeros(weight.rows, weight.cols)) + row / 8 * steps + step) >> (row % 8 * 4) & 15u;
        else
          zeros[tile][half] = 8;
      }
  }
};

/// Codes j and j + 4 of a word of eight, less the zero point, in bf16: both are below 2^8, so that nothing is rounded.
__device__ inline unsigned int4_pair(unsigned word, int j, __nv_bfloat162 offset) {
  const unsigned bits = (word >> (4 * j) & 0x000f000fu) | 0x43004300u;  // 128 + code
  const __nv_bfloat162 value = __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), offset);
  return reinterpret_cast<const unsigned&>(value);
}

/// Eight columns of x in its parts, as the lanes' operands want them: pairs (0, 4), (1, 5), (2, 6), (3, 7).
template <int kParts>
__device__ inline void put_parts(const float (&x)[8], uint4* to, int part_stride) {
  float left[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) left[i] = x[i];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    unsigned pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const __nv_bfloat162 both = __floats2bfloat162_rn(left[j], left[j + 4]);
      left[j] -= __low2float(both), left[j + 4] -= __high2float(both);
      pairs[j] = reinterpret_cast<const unsigned&>(both);
    }
    to[part * part_stride] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

/// acc += the products of one step: `x` is its [word of four][columns][lane of four].
template <int kBlocks>
__device__ void multiply_step(const Int4Step& now, const uint4* x, int columns, bool half_precision, float (&acc)[2][kBlocks][4]) {
  const int lane = threadIdx.x % kWarp;
  float sums[2][kBlocks][4] = {};
  __nv_bfloat162 offset[2][2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) offset[tile][half] = __float2bfloat162_rn(static_cast<float>(128 + now.zeros[tile][half]));
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    uint4 b[kBlocks];
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) b[n] = x[(word * columns + min(n * 8 + lane / 4, columns - 1)) * 4 + lane % 4];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const auto bits = [&](int half) {
        const uint4& codes = now.codes[tile][half];
        return word == 0 ? codes.x : word == 1 ? codes.y : word == 2 ? codes.z : codes.w;
      };
      const unsigned top = bits(0), bottom = bits(1);
#pragma unroll
      for (int pair = 0; pair < 4; pair += 2) {
        const unsigned a[4] = {int4_pair(top, pair, offset[tile][0]), int4_pair(bottom, pair, offset[tile][1]), int4_pair(top, pair + 1, offset[tile][0]),
                               int4_pair(bottom, pair + 1, offset[tile][1])};
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) multiply_add<__nv_bfloat16>(sums[tile][n], a, pair == 0 ? b[n].x : b[n].z, pair == 0 ? b[n].y : b[n].w);
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      scale[half] = half_precision ? __half2float(__ushort_as_half(now.scale[tile][half])) : __uint_as_float(static_cast<unsigned>(now.scale[tile][half]) << 16);
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[tile][n][i] += sums[tile][n][i] * scale[i / 2];
  }
}

/// Blocks take units of 32 rows in turn. Shared: x of steps_at_once steps, [step][word of four][token · parts][lane of four] × 16 bytes; then, twice,
/// the warps' sums of a unit, [warp][row][column].
template <int kBlocks, int kParts>  // blocks of eight columns of x's parts
__global__ void __launch_bounds__(kInt4Warps * kWarp, 1) int4_kernel(const __grid_constant__ Int4View view) {
  extern __shared__ __align__(16) std::byte int4_room[];
  __shared__ float squares[kInt4Warps];
  let_next_start();
  const Together& all = view.all;
  const Product& like = all.products[0];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int cols = static_cast<int>(like.weight.cols), steps = cols / kInt4Group, tokens = static_cast<int>(like.tokens), columns = tokens * kParts;
  auto* x_room = reinterpret_cast<uint4*>(int4_room);
  auto* parts = reinterpret_cast<float*>(int4_room + view.steps_at_once * columns * 256);
  // Two steps of a warp are on their way, each in registers of its own: the even ones of a unit and the odd ones.
  Int4Step even, odd;
  const int own_steps = warp < steps ? (steps - warp + kInt4Warps - 1) / kInt4Warps : 0;
  Int4Rows rows, next_rows;
  if (blockIdx.x < view.units) rows.find(all, blockIdx.x);
  if (own_steps > 0 && blockIdx.x < view.units) even.read(rows, steps, warp);
  if (own_steps > 1 && blockIdx.x < view.units) odd.read(rows, steps, warp + kInt4Warps);
  wait_for_previous();
  float factor = 1.0f;
  if (all.norm.from != nullptr) {  // one token
    float square = 0.0f;
    for (int at = static_cast<int>(threadIdx.x) * 4; at < cols; at += kInt4Warps * kWarp * 4) {
      const float4 v = *reinterpret_cast<const float4*>(all.norm.from + at);
      square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    square = warp_sum(square);
    if (lane == 0) squares[warp] = square;
    __syncthreads();
    square = 0.0f;
    for (int w = 0; w < kInt4Warps; ++w) square += squares[w];
    factor = 1.0f / sqrtf(square / static_cast<float>(cols) + all.norm.eps);
  }
  const auto prepare = [&](int chunk, int last) {
    for (int item = static_cast<int>(threadIdx.x); item < (last - chunk) * 16 * tokens; item += kInt4Warps * kWarp) {
      const int token = item / ((last - chunk) * 16), eight = item % ((last - chunk) * 16);  // [step][lane of four][word of four]
      const int at = chunk * kInt4Group + eight * 8, step = eight / 16, four = eight / 4 % 4, word = eight % 4;
      float x[8];
      const auto* from = reinterpret_cast<const float4*>((all.norm.from != nullptr ? all.norm.from : like.x + token * like.x_stride) + at);
      const float4 low = from[0], high = from[1];
      x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
      if (all.norm.from != nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x[i] *= factor * (all.norm.weight == nullptr ? 1.0f : element_of(all.norm.weight, all.norm.weight_type, at + i));
          if (blockIdx.x == 0) all.norm.x[at + i] = x[i];
        }
      }
      put_parts<kParts>(x, x_room + ((step * 4 + word) * columns + token * kParts) * 4 + four, 4);
    }
  };
  bool prepared = false;
  int turn = 0;
  for (unsigned unit = blockIdx.x; unit < view.units; unit += gridDim.x, turn ^= 1) {
    const bool last_unit = unit + gridDim.x >= view.units;
    if (!last_unit) next_rows.find(all, unit + gridDim.x);
    const auto format = rows.weight[0]->format;
    const bool half_precision = format == tensor::WeightFormat::int4_group128_f16 || format == tensor::WeightFormat::int4_group128_zero_f16;
    float acc[2][kBlocks][4] = {};
    int done = 0;  // of this warp's steps
    for (int chunk = 0; chunk < steps; chunk += view.steps_at_once) {
      const int last = min(chunk + view.steps_at_once, steps);
      if (!prepared || view.steps_at_once < steps) {
        if (prepared) __syncthreads();
        prepare(chunk, last);
        prepared = true;
        __syncthreads();
      }
      const auto take = [&](Int4Step& step, int index) {  // what a step leaves free is filled with the next one of its kind, of this unit or the next
        multiply_step<kBlocks>(step, x_room + (warp + index * kInt4Warps - chunk) * 16 * columns, columns, half_precision, acc);
        if (index + 2 < own_steps) step.read(rows, steps, warp + (index + 2) * kInt4Warps);
        else if (!last_unit) step.read(next_rows, steps, warp + index % 2 * kInt4Warps);
      };
      for (; done < own_steps && warp + done * kInt4Warps < last; ++done) {
        if (done % 2 == 0) take(even, done);
        else take(odd, done);
      }
    }
    float* own = parts + turn * (kInt4Warps * kInt4Rows * kBlocks * 8);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; i += 2)
          *reinterpret_cast<float2*>(own + (warp * kInt4Rows + tile * 16 + i * 4 + lane / 4) * (kBlocks * 8) + n * 8 + lane % 4 * 2) = make_float2(acc[tile][n][i], acc[tile][n][i + 1]);
    __syncthreads();
    const int count = min(kInt4Warps, steps);
    const auto total = [&](int row, int token) {
      float sum = 0.0f;
      for (int part = kParts - 1; part >= 0; --part)
        for (int w = 0; w < count; ++w) sum += own[(w * kInt4Rows + row) * (kBlocks * 8) + token * kParts + part];
      return sum;
    };
    const int outputs = all.gated ? kInt4Rows / 2 : kInt4Rows;
    for (int item = static_cast<int>(threadIdx.x); item < outputs * tokens; item += kInt4Warps * kWarp) {
      const int row = item % outputs, token = item / outputs;
      const Product& p = all.products[rows.which];
      if (rows.first + row >= p.rows) continue;
      if (!all.gated) {
        store(p, token, 0, rows.first + row, total(row, token));
        continue;
      }
      const Product& other = all.products[1];
      const float gate = finished(p, token, 0, rows.first + row, total(row, token)), up = finished(other, token, 0, rows.first + row, total(16 + row, token));
      other.out[token * other.out_stride + rows.first + row] = up;
      p.out[token * p.out_stride + rows.first + row] = gated(gate, up, all.limit);
    }
    rows = next_rows;
  }
}

/// Whether the kernel can do this: INT4, whole groups, codes at multiples of 16 bytes.
inline bool can_int4(const Context& context, const Together& all) {
  const Product& p = all.products[0];
  if (context.compute_capability < 80 || !is_int4(p.weight.format) || p.weight.cols % kInt4Group != 0 || p.groups != 1 || p.tokens > kFewTokens) return false;
  for (int i = 0; i < all.count; ++i)
    if (reinterpret_cast<std::uintptr_t>(all.products[i].weight.data) % 16 != 0) return false;
  return true;
}

inline void launch_int4(Context& context, const Together& together) {
  constexpr std::int64_t kMostShared = 224 * 1024;
  Int4View view;
  view.all = together;
  Together& all = view.all;
  const Product& p = all.products[0];
  if (all.gated) {
    view.units = static_cast<unsigned>(divide_up(p.rows, kInt4Rows / 2));
  } else {
    for (int i = 0; i < all.count; ++i) {
      all.first_block[i] = view.units;
      view.units += static_cast<unsigned>(divide_up(all.products[i].rows, kInt4Rows));
    }
  }
  const int tokens = static_cast<int>(p.tokens), parts = tokens <= 2 ? 3 : 2, blocks = tokens <= 4 ? 1 : 2;
  const std::int64_t steps = p.weight.cols / kInt4Group, step_bytes = tokens * parts * 256, sum_bytes = 2 * kInt4Warps * kInt4Rows * blocks * 32;
  view.steps_at_once = static_cast<int>(std::min(steps, (kMostShared - sum_bytes) / step_bytes));
  const auto shared = static_cast<std::size_t>(view.steps_at_once * step_bytes + sum_bytes);
  const auto go = [&](auto* kernel) {
    context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    launch_early(context, kernel, dim3(std::min(view.units, static_cast<unsigned>(context.multiprocessors))), dim3(kInt4Warps * kWarp), shared, view);
  };
  if (tokens <= 2) go(&int4_kernel<1, 3>);
  else if (tokens <= 4) go(&int4_kernel<1, 2>);
  else go(&int4_kernel<2, 2>);
}

}  // namespace fathom::cuda
