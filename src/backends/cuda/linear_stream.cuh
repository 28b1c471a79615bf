// Products of few tokens, up to 64, on tensor cores: a block keeps x in shared memory and its weights stream by. Units of 16 or 32 rows are dealt out
// evenly to as many blocks as the device has places for; the warps of a block share a unit's columns, and each copies its next stretches of
// 128 bytes a row (cp.async) while it multiplies the last, across units, so that memory is never idle. The weights are operand A; of x, operand B:
//  - bf16 weights: two bf16 halves of each token, or one of more than eight tokens;
//  - e4m3 codes, widened to f16 exactly: two f16 halves, of 128 columns scaled by a power of two;
//  - whole numbers of eight and four bits: 23 bits of each x, relative to the largest of its 128 columns, as three digits of eight: sums of a group
//    of columns are exact, and so is what a zero point takes away.
// Where x of many columns does not fit, the blocks of a cluster (compute capability 9.0) share the columns, and add up over their shared memory.
#pragma once
#include "backends/cuda/streamed_x.cuh"

namespace fathom::cuda {

/// 16 rows of a unit: eight from rows[0] of weight[0] on and eight from rows[1] of weight[1] on, where outputs begin at out[i].
struct StreamRows {
  const WeightView* weight[2];
  std::int64_t row[2], out[2];
  int which;
  bool pair;  // of a gate and its up
  __device__ void find(const StreamView& view, unsigned unit, int tile) {
    which = 0;
    const int last = view.all.gated ? view.all.gate : view.all.count - 1;
    while (which < last && unit >= view.all.first_block[which + 1]) ++which;
    pair = view.all.gated && which == last;
    const std::int64_t at = static_cast<std::int64_t>(unit - view.all.first_block[which]) * view.row_tiles + tile;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Product& p = view.all.products[pair ? which + half : which];
      weight[half] = &p.weight;
      out[half] = pair ? at * 8 : at * 16 + half * 8;
      row[half] = p.first_row + out[half];
    }
  }
};

/// What a warp copies next: a stretch of its tile's rows.
template <tensor::WeightFormat F>
struct StreamSource {
  using Shape = Streamed<F>;
  const std::byte* codes[2];          // of this lane's two rows, at its place in a stretch
  const std::byte* beside = nullptr;  // what else this lane copies: int4: scales (lanes 0 … 15, a row each) or zero points (16 … 19); e4m3 in blocks: scales (0, 1)
  std::int64_t scale = 0;             // int4: index of the first scale of row lane % 16
  unsigned unit;
  int at;

  __device__ void begin(const StreamView& view, int tile, int row_bytes) {
    if (unit >= view.units) return;
    const int lane = threadIdx.x % kWarp;
    StreamRows rows;
    rows.find(view, unit, tile);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      codes[half] = rows.weight[half]->data + min(rows.row[half] + lane / 4, rows.weight[half]->rows - 1) * row_bytes + lane % 4 * 16;
    if constexpr (!Shape::kInt4 && !Shape::kFp8) return;
    const bool second = Shape::kFp8 ? lane == 1 : lane < 16 ? lane >= 8 : lane >= 18;
    const WeightView& own = second ? *rows.weight[1] : *rows.weight[0];
    const std::int64_t first = second ? rows.row[1] : rows.row[0], groups = divide_up(own.cols, 128);
    beside = nullptr;
    if constexpr (Shape::kFp8) {
      if (lane < 2 && own.format == tensor::WeightFormat::fp8_block128) beside = own.scales + min(first, own.rows - 1) / 128 * groups * 4;
    } else if (lane < 16) {
      scale = min(first + lane % 8, own.rows - 1) * groups;
      beside = own.scales;
    } else if (lane < 20 && has_zeros(own.format) && first < own.rows) {
      beside = own.scales + offset_of_zeros(own.rows, own.cols) + (first / 8 * groups + lane % 2) * 4;
    }
  }
  /// To shared memory at `to`, all lanes; nothing when there are no more units.
  __device__ void copy(const StreamView& view, unsigned to, int row_bytes) const {
    if (unit < view.units) {
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        const int offset = at * kStretch + sub * 64;
        const bool here = offset + lane % 4 * 16 < row_bytes;
#pragma unroll
        for (int half = 0; half < 2; ++half) copy_16(to + (sub * 2 + half) * 512 + lane * 16, codes[half] + (here ? offset : 0), here);
      }
      if constexpr (Shape::kInt4) {
        if (lane < 16) {  // two scales, in one word or in two
          const std::int64_t index = scale + 2 * at;
          copy_4(to + 16 * kStretch + lane * 8, beside + index / 2 * 4, true);
          if (index % 2 != 0) copy_4(to + 16 * kStretch + lane * 8 + 4, beside + index / 2 * 4 + 4, true);
        } else if (beside != nullptr) {
          const bool here = 2 * at + lane % 2 < row_bytes / 64;
          copy_4(to + 16 * kStretch + 128 + (lane - 16) * 4, beside + (here ? at * 8 : 0), here);
        }
      }
      if constexpr (Shape::kFp8)
        if (beside != nullptr) copy_4(to + 16 * kStretch + lane * 4, beside + at * 4, true);
    }
    commit_copies();
  }
};

/// A stretch of codes that has come, and what a warp multiplies it with.
template <tensor::WeightFormat F, int kTiles>
struct Stretch {
  using Shape = Streamed<F>;
  const unsigned char* stage;
  const StreamedX<F>& x;
  int columns, at;        // of operand B; of the block's stretches
  tensor::WeightFormat format;
  std::int64_t cols;      // of the weight
  int odd;                // int4: bit i, whether the first scale of this lane's row i is at an odd index

  __device__ uint4 codes(int sub, int half) const { return *reinterpret_cast<const uint4*>(stage + (sub * 2 + half) * 512 + threadIdx.x % kWarp * 16); }
  __device__ uint4 b(int piece, int n) const {
    const int group = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
    return x.pieces[((at * Shape::kPieces + piece) * columns + min(n * 8 + group, columns - 1)) * 4 + quad];
  }
  /// Of this lane's two columns of tile n, in a group of 128.
  __device__ float2 factor(int group, int n) const { return reinterpret_cast<const float2*>(x.factors)[(group * kTiles + n) * 4 + threadIdx.x % 4]; }

  __device__ void multiply(float (&acc)[kTiles][4]) const {
    if constexpr (Shape::kInt4) multiply_int4(acc);
    else if constexpr (Shape::kInt8) multiply_int8(acc);
    else if constexpr (Shape::kFp8) multiply_fp8(acc);
    else multiply_bf16(acc);
  }
  __device__ void multiply_bf16(float (&acc)[kTiles][4]) const {
#pragma unroll
    for (int sub = 0; sub < 2; ++sub) {
      const uint4 top = codes(sub, 0), bottom = codes(sub, 1);
      const unsigned low[4] = {top.x, bottom.x, top.y, bottom.y}, high[4] = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 own = b(sub, n);
        multiply_add<__nv_bfloat16>(acc[n], low, own.x, own.y);
        multiply_add<__nv_bfloat16>(acc[n], high, own.z, own.w);
      }
    }
  }
  __device__ void multiply_int8(float (&acc)[kTiles][4]) const {
    int sums[kTiles][4] = {};
#pragma unroll
    for (int sub = 0; sub < 2; ++sub) {
      const uint4 top = codes(sub, 0), bottom = codes(sub, 1);
      const unsigned low[4] = {top.x, bottom.x, top.y, bottom.y}, high[4] = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 own = b(sub, n);
        multiply_add(sums[n], low, own.x, own.y);
        multiply_add(sums[n], high, own.z, own.w);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 own = factor(at, n);
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] += static_cast<float>(sums[n][i]) * (i % 2 == 0 ? own.x : own.y);
    }
  }
  __device__ void multiply_fp8(float (&acc)[kTiles][4]) const {
    const auto wide = [](unsigned pair) {
      const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
      return static_cast<unsigned>(raw.y) << 16 | raw.x;
    };
    float sums[kTiles][4] = {};
#pragma unroll
    for (int sub = 0; sub < 2; ++sub) {
      const uint4 top = codes(sub, 0), bottom = codes(sub, 1);
      const unsigned words[2][4] = {{top.x, top.y, top.z, top.w}, {bottom.x, bottom.y, bottom.z, bottom.w}};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        unsigned a[2][4];
#pragma unroll
        for (int w = 0; w < 2; ++w)
#pragma unroll
          for (int i = 0; i < 4; ++i) a[w][i] = wide(words[i % 2][2 * h + w] >> (i / 2 * 16) & 0xffffu);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint4 own = b(sub * 2 + h, n);
          multiply_add<__half>(sums[n], a[0], own.x, own.y);
          multiply_add<__half>(sums[n], a[1], own.z, own.w);
        }
      }
    }
    const float2 scale = format == tensor::WeightFormat::fp8_block128 ? *reinterpret_cast<const float2*>(stage + 16 * kStretch) : make_float2(1.0f, 1.0f);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 own = factor(at, n);
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] += sums[n][i] * ((i % 2 == 0 ? own.x : own.y) * (i < 2 ? scale.x : scale.y));
    }
  }
  /// The scale and zero point of this lane's row `half` in group `sub`.
  __device__ void read_scale(int half, int sub, float& scale, int& zero) const {
    const int group = threadIdx.x % kWarp / 4, shift = (odd >> half & 1) + sub;
    const bool half_precision = format == tensor::WeightFormat::int4_group128_f16 || format == tensor::WeightFormat::int4_group128_zero_f16;
    const unsigned short bits = reinterpret_cast<const unsigned short*>(stage + 16 * kStretch)[(half * 8 + group) * 4 + shift];
    scale = half_precision ? to_float(__ushort_as_half(bits)) : __uint_as_float(static_cast<unsigned>(bits) << 16);
    if ((at * 2 + sub) * 128 >= cols) scale = 0.0f;  // behind the last group
    zero = has_zeros(format) ? static_cast<int>(reinterpret_cast<const unsigned*>(stage + 16 * kStretch + 128)[half * 2 + sub] >> (group * 4) & 15u) : 8;
  }
  __device__ void multiply_int4(float (&acc)[kTiles][4]) const {
#pragma unroll
    for (int sub = 0; sub < 2; ++sub) {
      int sums[kTiles][4] = {}, zero[2];
      float scale[2];
      const uint4 top = codes(sub, 0), bottom = codes(sub, 1);
      const unsigned words[2][4] = {{top.x, top.y, top.z, top.w}, {bottom.x, bottom.y, bottom.z, bottom.w}};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        unsigned a[2][4];
#pragma unroll
        for (int w = 0; w < 2; ++w)
#pragma unroll
          for (int i = 0; i < 4; ++i) a[w][i] = words[i % 2][2 * h + w] >> (i / 2 * 4) & 0x0f0f0f0fu;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint4 own = b(sub * 2 + h, n);
          multiply_add(sums[n], a[0], own.x, own.y);
          multiply_add(sums[n], a[1], own.z, own.w);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) read_scale(half, sub, scale[half], zero[half]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 own = factor(at * 2 + sub, n);
        const int2 digits = reinterpret_cast<const int2*>(x.sums)[((at * 2 + sub) * kTiles + n) * 4 + threadIdx.x % 4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          acc[n][i] += static_cast<float>(sums[n][i] - zero[i / 2] * (i % 2 == 0 ? digits.x : digits.y)) * ((i % 2 == 0 ? own.x : own.y) * scale[i / 2]);
      }
    }
  }
};

// ---------------------------------------------------------------- the kernel

/// How shared memory is divided; bytes.
struct StreamRoom {
  int x = 0, factors = 0, sums = 0, parts = 0, shared = 0, ring = 0, all = 0;
};
template <tensor::WeightFormat F, int kTiles>
__host__ __device__ inline StreamRoom stream_room(const StreamView& view) {
  using Shape = Streamed<F>;
  const int groups = Shape::kCoded ? view.own * Shape::kColumns / 128 : 0, table = groups * kTiles * 8 * 4;
  StreamRoom room;
  room.factors = room.x + view.own * Shape::kPieces * view.columns * 64;
  room.sums = room.factors + table;
  room.parts = room.sums + (Shape::kInt4 ? table : 0);
  room.shared = room.parts + (view.blocks > 1 ? 1 : 2) * kStreamedWarps * 16 * kTiles * 8 * 4;
  room.ring = room.shared + (view.blocks > 1 ? 2 * view.row_tiles * 16 * kTiles * 8 * 4 : 0);
  room.all = room.ring + kStreamedWarps * kStreamDepth<kTiles> * Shape::kStage;
  return room;
}

/// What joins the sums of two outputs.
struct StreamExtra { float scale[2], added[2]; };

/// Outputs of a unit, two a thread: rows g of both halves of a tile, and a column.
template <int kTiles>
struct StreamOutput {
  static constexpr int kLine = kTiles == 3 ? 32 : kTiles * 8;  // threads of a row
  int tile, row, column, token;
  bool own;  // the column is a token's first
  __device__ StreamOutput(const StreamView& view, int item) {
    column = item % kLine, row = item / kLine % 8, tile = item / (kLine * 8), token = column / view.parts;
    own = column < view.columns && column % view.parts == 0;
  }
  __device__ StreamExtra extra(const StreamView& view, unsigned unit) const {
    StreamExtra extra{{1.0f, 1.0f}, {0.0f, 0.0f}};
    if (!own) return extra;
    StreamRows rows;
    rows.find(view, unit, tile);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Product& p = view.all.products[rows.pair ? rows.which + half : rows.which];
      const std::int64_t i = rows.out[half] + row;
      if (i >= p.rows) continue;
      if (p.weight.format == tensor::WeightFormat::int8_row || p.weight.format == tensor::WeightFormat::fp8_row) extra.scale[half] = reinterpret_cast<const float*>(p.weight.scales)[p.first_row + i];
      extra.added[half] = finished(p, token, 0, i, 0.0f);
    }
    return extra;
  }
  __device__ void write(const StreamView& view, unsigned unit, const StreamExtra& extra, float factor, const float (&sum)[2]) const {
    if (!own) return;
    StreamRows rows;
    rows.find(view, unit, tile);
    float value[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) value[half] = sum[half] * factor * extra.scale[half] + extra.added[half];
    if (rows.pair) {
      const Product &gate = view.all.products[rows.which], &up = view.all.products[rows.which + 1];
      const std::int64_t i = rows.out[0] + row;
      if (i >= gate.rows) return;
      up.out[token * up.out_stride + i] = value[1];
      gate.out[token * gate.out_stride + i] = gated(value[0], value[1], view.all.limit);
      return;
    }
    const Product& p = view.all.products[rows.which];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (const std::int64_t i = rows.out[half] + row; i < p.rows) p.out[token * p.out_stride + i] = value[half];
  }
};

/// Grid: clusters of view.blocks blocks, which take units in turn. Shared memory: stream_room. Warp w has tile w % row_tiles of a unit, and every
/// (warps / row_tiles)-th of the block's stretches.
template <tensor::WeightFormat F, int kTiles>
__global__ void __launch_bounds__(kStreamedThreads, kTiles <= 3 ? 2 : 1) stream_kernel(const __grid_constant__ StreamView view) {
  using Shape = Streamed<F>;
  using Output = StreamOutput<kTiles>;
  constexpr int kDepth = kStreamDepth<kTiles>, kWidth = kTiles * 8;
  extern __shared__ __align__(128) unsigned char stream_memory[];
  __shared__ float squares[kStreamedWarps];
  let_next_start();
  const StreamRoom room = stream_room<F, kTiles>(view);
  const StreamedX<F> x{reinterpret_cast<uint4*>(stream_memory), reinterpret_cast<float*>(stream_memory + room.factors), reinterpret_cast<std::int32_t*>(stream_memory + room.sums)};
  const Product& like = view.all.products[0];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tile = warp % view.row_tiles, first = warp / view.row_tiles, step = kStreamedWarps / view.row_tiles;
  const int row_bytes = static_cast<int>(like.weight.cols) / 8 * kBytesOfEight<F>, stretches = (row_bytes + kStretch - 1) / kStretch;
  const int rank = view.blocks > 1 ? cluster_rank() : 0, begin = rank * view.own, count = max(0, min(view.own, stretches - begin));
  const unsigned clusters = gridDim.x / view.blocks;
  unsigned char* const ring = stream_memory + room.ring + warp * kDepth * Shape::kStage;
  StreamSource<F> source;
  source.unit = blockIdx.x / view.blocks;
  source.at = begin + first;
  if (first >= count) source.unit = view.units;  // nothing for this warp
  source.begin(view, tile, row_bytes);
  const auto copy_next = [&](int stage) {
    source.copy(view, shared_address(ring) + stage * Shape::kStage, row_bytes);
    source.at += step;
    if (source.at >= begin + count && source.unit < view.units) {
      source.unit += clusters;
      source.at = begin + first;
      source.begin(view, tile, row_bytes);
    }
  };
#pragma unroll
  for (int stage = 0; stage < kDepth; ++stage) copy_next(stage);
  if (view.all.norm.weight != nullptr && threadIdx.x * 128 < view.all.norm.n * 2) fetch_to_l2(view.all.norm.weight + threadIdx.x * 128);
  wait_for_previous();
  const float square = warp_sum(fill_x<F>(x, view, kWidth, begin));
  if (lane == 0) squares[warp] = square;
  __syncthreads();
  float factor = 1.0f;
  if (view.all.norm.from != nullptr) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kStreamedWarps; ++w) sum += squares[w];
    factor = 1.0f / sqrtf(sum / static_cast<float>(view.all.norm.n) + view.all.norm.eps);
    for (std::int64_t at = (static_cast<std::int64_t>(threadIdx.x) * gridDim.x + blockIdx.x) * 8; at < view.all.norm.n; at += static_cast<std::int64_t>(kStreamedThreads) * gridDim.x * 8) {
      float from[8], weight[8];
      read_eight_floats(view.all.norm.from + at, from);
      read_eight_of(view.all.norm.weight, view.all.norm.weight_type, at, weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) view.all.norm.x[at + i] = from[i] * factor * weight[i];
    }
  }
  const int items = view.row_tiles * 8 * Output::kLine, items_here = items / view.blocks;
  int stage = 0, turn = 0;
  for (unsigned unit = blockIdx.x / view.blocks; unit < view.units; unit += clusters, turn ^= 1) {
    StreamExtra extra{};
    if (static_cast<int>(threadIdx.x) < items_here) extra = Output(view, rank * items_here + static_cast<int>(threadIdx.x)).extra(view, unit);
    int odd = 0;  // int4: whether the first scale of this lane's two rows is at an odd index
    if constexpr (Shape::kInt4) {
      StreamRows rows;
      rows.find(view, unit, tile);
      const std::int64_t groups = like.weight.cols / 128;
#pragma unroll
      for (int half = 0; half < 2; ++half) odd |= static_cast<int>(min(rows.row[half] + lane / 4, rows.weight[half]->rows - 1) * groups & 1) << half;
    }
    float acc[kTiles][4] = {};
    for (int at = first; at < count; at += step) {
      wait_copies<kDepth - 1>();
      __syncwarp();
      Stretch<F, kTiles>{ring + stage * Shape::kStage, x, view.columns, at, like.weight.format, like.weight.cols, odd}.multiply(acc);
      __syncwarp();
      copy_next(stage);
      stage = stage + 1 == kDepth ? 0 : stage + 1;
    }
    float* parts = reinterpret_cast<float*>(stream_memory + room.parts) + (view.blocks > 1 ? 0 : turn * kStreamedWarps * 16 * kWidth);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(parts + (warp * 16 + half * 8 + lane / 4) * kWidth + n * 8 + lane % 4 * 2) = make_float2(acc[n][2 * half], acc[n][2 * half + 1]);
    __syncthreads();
    const auto sum_of_warps = [&](const Output& output, int half) {
      float sum = 0.0f;
      if (output.column < kWidth)
        for (int w = 0; w < step; ++w) sum += parts[((w * view.row_tiles + output.tile) * 16 + half * 8 + output.row) * kWidth + output.column];
      return sum;
    };
    float* shared = reinterpret_cast<float*>(stream_memory + room.shared) + turn * view.row_tiles * 16 * kWidth;
    if (view.blocks > 1) {  // to where the others look
      for (int item = static_cast<int>(threadIdx.x); item < items; item += kStreamedThreads) {
        const Output output(view, item);
#pragma unroll
        for (int half = 0; half < 2; ++half) shared[item * 2 + half] = sum_of_warps(output, half);
      }
      cluster_arrive();
      cluster_wait();
    }
    for (int item = static_cast<int>(threadIdx.x); item < items_here; item += kStreamedThreads) {
      const Output output(view, rank * items_here + item);
      float sum[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (view.blocks == 1) {
          sum[half] = sum_of_warps(output, half);
        } else {
          sum[half] = 0.0f;
          for (int block = 0; block < view.blocks; ++block) sum[half] += float_of_block(shared + (rank * items_here + item) * 2 + half, block);
        }
        if (view.parts > 1) {
          const float second = __shfl_down_sync(kAllLanes, sum[half], 1), third = __shfl_down_sync(kAllLanes, sum[half], 2);
          sum[half] += second + (view.parts > 2 ? third : 0.0f);
        }
      }
      output.write(view, unit, item == static_cast<int>(threadIdx.x) ? extra : output.extra(view, unit), factor, sum);
    }
  }
  wait_copies<0>();
  if (view.blocks > 1) {  // the others may still be looking
    cluster_arrive();
    cluster_wait();
  }
}

/// Whether these kernels can do it: whole rows at multiples of 16 bytes, formats as above, rows of a product from a multiple of eight on.
bool can_stream(const Context& context, const Together& all);
void launch_stream(Context& context, const Together& all);

}  // namespace fathom::cuda
