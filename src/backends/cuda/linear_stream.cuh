// Products of few tokens on tensor cores: a block keeps x in shared memory and its weights stream by. Units of 16 rows are dealt out evenly to as
// many blocks as the device has multiprocessors; the warps of a block share a unit's columns, and each copies its next stretches of 128 bytes a row
// (cp.async) while it multiplies the last, across units: no warp waits for another until the sums of all the block's units lie in shared memory.
// The weights are operand A; of x, operand B:
//  - e4m3 codes, widened to f16 exactly: two f16 halves, of 128 columns scaled by a power of two;
//  - whole numbers of eight and four bits: 23 bits of each x, relative to the largest of its 128 columns, as three digits of eight: sums of a group
//    of columns are exact, and so is what a zero point takes away.
#pragma once
#include "backends/cuda/streamed_x.cuh"

namespace fathom::cuda {

/// 16 rows of a unit: eight from rows[0] of weight[0] on and eight from rows[1] of weight[1] on, where outputs begin at out[i].
struct StreamRows {
  const WeightView* weight[2];
  std::int64_t row[2], out[2];
  int which;
  bool pair;  // of a gate and its up
  __device__ void find(const StreamView& view, unsigned unit) {
    which = 0;
    const int last = view.all.gated ? 0 : view.all.count - 1;
    while (which < last && unit >= view.all.first_block[which + 1]) ++which;
    pair = view.all.gated && which == last;
    const auto at = static_cast<std::int64_t>(unit - view.all.first_block[which]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Product& p = view.all.products[pair ? which + half : which];
      weight[half] = &p.weight;
      out[half] = pair ? at * 8 : at * 16 + half * 8;
      row[half] = p.first_row + out[half];
    }
  }
};

/// The 16 rows of a unit as a warp copies them to shared memory, a stretch at a time. kWhole: eight lanes a row, so that a copy asks for whole lines
/// of memory, and every second row has its halves changed over, so that who reads eight rows meets no bank conflict; else four lanes a row, half a
/// line (with codes of four bits the instructions are what counts).
template <bool kWhole>
struct CopiedRows {
  static constexpr int kLanes = kWhole ? 8 : 4;  // a row
  const std::byte* codes[2];  // this lane's first row of each half, at its place in a stretch
  int below[2];               // whole lines: bytes from there to its second, four rows further on

  __device__ void find(const StreamRows& rows, int row_bytes) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t first = rows.row[half] + lane / kLanes, last = rows.weight[half]->rows - 1;
      codes[half] = rows.weight[half]->data + min(first, last) * row_bytes + lane % kLanes * 16;
      if constexpr (kWhole) below[half] = static_cast<int>(min(first + 4, last) - min(first, last)) * row_bytes;
    }
  }
  __device__ void copy(unsigned to, int at, int row_bytes) const {
    const int lane = threadIdx.x % kWarp;
    if constexpr (kWhole) {
      const bool here = at * kStretch + lane % 8 * 16 < row_bytes;
      const int offset = here ? at * kStretch : 0;
      to += lane / 8 * kStretch + place(lane / 8, lane % 8);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        copy_16(to + half * 8 * kStretch, codes[half] + offset, here);
        copy_16(to + (half * 8 + 4) * kStretch, codes[half] + below[half] + offset, here);
      }
    } else {
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        const int offset = at * kStretch + sub * 64;
        const bool here = offset + lane % 4 * 16 < row_bytes;
#pragma unroll
        for (int half = 0; half < 2; ++half) copy_16_of_line(to + (sub * 2 + half) * 512 + lane * 16, codes[half] + (here ? offset : 0), here);
      }
    }
  }
  /// 16 bytes of row lane / 4 of a half, from 64 · sub + 16 · (lane % 4) on.
  __device__ static uint4 read(const unsigned char* stage, int sub, int half) {
    const int lane = threadIdx.x % kWarp, row = lane / 4;
    return *reinterpret_cast<const uint4*>(kWhole ? stage + (half * 8 + row) * kStretch + place(row, sub * 4 + lane % 4) : stage + (sub * 2 + half) * 512 + lane * 16);
  }

 private:
  __device__ static int place(int row, int chunk) { return (chunk ^ (row % 2 * 4)) * 16; }
};

/// What a warp copies next: a stretch of its tile's rows.
template <tensor::WeightFormat F>
struct StreamSource {
  using Shape = Streamed<F>;
  CopiedRows<!Shape::kInt4> rows_to_copy;
  const std::byte* beside = nullptr;  // what else this lane copies: int4: scales (lanes 0 … 15, a row each) or zero points (16 … 19); e4m3 in blocks: scales (0, 1)
  std::int64_t scale = 0;             // int4: index of the first scale of row lane % 16
  unsigned unit;
  int at;

  __device__ void begin(const StreamView& view, int row_bytes) {
    if (unit >= view.units) return;
    const int lane = threadIdx.x % kWarp;
    StreamRows rows;
    rows.find(view, unit);
    rows_to_copy.find(rows, row_bytes);
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
      rows_to_copy.copy(to, at, row_bytes);
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

  __device__ uint4 codes(int sub, int half) const { return CopiedRows<!Shape::kInt4>::read(stage, sub, half); }
  __device__ uint4 b(int piece, int n) const {
    const int group = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
    return x.pieces[((at * Shape::kPieces + piece) * columns + min(n * 8 + group, columns - 1)) * 4 + quad];
  }
  /// Of this lane's two columns of tile n, in a group of 128.
  __device__ float2 factor(int group, int n) const { return reinterpret_cast<const float2*>(x.factors)[(group * kTiles + n) * 4 + threadIdx.x % 4]; }

  __device__ void multiply(float (&acc)[kTiles][4]) const {
    if constexpr (Shape::kInt4) multiply_int4(acc);
    else if constexpr (Shape::kInt8) multiply_int8(acc);
    else multiply_fp8(acc);
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
  int x = 0, factors = 0, sums = 0, parts = 0, ring = 0, all = 0;
};
template <tensor::WeightFormat F, int kTiles>
__host__ __device__ inline StreamRoom stream_room(const StreamView& view) {
  using Shape = Streamed<F>;
  const int groups = view.stretches * Shape::kColumns / 128, table = groups * kTiles * 8 * 4;
  StreamRoom room;
  room.factors = room.x + view.stretches * Shape::kPieces * view.columns * 64;
  room.sums = room.factors + table;
  room.parts = room.sums + (Shape::kInt4 ? table : 0);
  room.ring = room.parts + view.slots * kStreamedWarps * 16 * view.columns * 4;
  room.all = room.ring + kStreamedWarps * kStreamDepth * Shape::kStage;
  return room;
}

/// What joins the sums of two outputs.
struct StreamExtra { float scale[2], added[2]; };

/// Two outputs of a thread: rows `row` of both halves of a unit.
struct StreamOutput {
  unsigned unit;
  int row, token;
  __device__ StreamExtra extra(const StreamView& view) const {
    StreamExtra extra{{1.0f, 1.0f}, {0.0f, 0.0f}};
    StreamRows rows;
    rows.find(view, unit);
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
  __device__ void write(const StreamView& view, const StreamExtra& extra, float factor, const float (&sum)[2]) const {
    StreamRows rows;
    rows.find(view, unit);
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

/// The norm that products of one token were made of, by all blocks together.
__device__ inline void write_norm_together(const NormedX& norm, float factor) {
  for (std::int64_t at = (static_cast<std::int64_t>(threadIdx.x) * gridDim.x + blockIdx.x) * 8; at < norm.n; at += static_cast<std::int64_t>(kStreamedThreads) * gridDim.x * 8) {
    float from[8], weight[8];
    read_eight_floats(norm.from + at, from);
    read_eight_of(norm.weight, norm.weight_type, at, weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) norm.x[at + i] = from[i] * factor * weight[i];
  }
}

/// Grid: blocks, whose teams of view.team warps take units in turn. Shared memory: stream_room. A warp has every team-th stretch of a unit.
template <tensor::WeightFormat F, int kTiles>
__global__ void __launch_bounds__(kStreamedThreads, 1) stream_kernel(const __grid_constant__ StreamView view) {
  using Shape = Streamed<F>;
  extern __shared__ __align__(128) unsigned char stream_memory[];
  __shared__ float squares[kStreamedWarps];
  let_next_start();
  const StreamRoom room = stream_room<F, kTiles>(view);
  const StreamedX<F> x{reinterpret_cast<uint4*>(stream_memory), reinterpret_cast<float*>(stream_memory + room.factors), reinterpret_cast<std::int32_t*>(stream_memory + room.sums)};
  auto* parts = reinterpret_cast<float*>(stream_memory + room.parts);
  const Product& like = view.all.products[0];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, teams = kStreamedWarps / view.team, first = warp % view.team;
  const int row_bytes = static_cast<int>(like.weight.cols) / 8 * kBytesOfEight<F>;
  const unsigned begin = blockIdx.x * teams, round = gridDim.x * teams;  // units of a block's first team; of all blocks together
  unsigned char* const ring = stream_memory + room.ring + warp * kStreamDepth * Shape::kStage;
  StreamSource<F> source;
  source.unit = first < view.stretches ? begin + warp / view.team : view.units;
  source.at = first;
  source.begin(view, row_bytes);
  const auto copy_next = [&](int stage) {
    source.copy(view, shared_address(ring) + stage * Shape::kStage, row_bytes);
    source.at += view.team;
    if (source.at >= view.stretches && source.unit < view.units) {
      source.unit += round;
      source.at = first;
      source.begin(view, row_bytes);
    }
  };
#pragma unroll 1
  for (int stage = 0; stage < kStreamDepth; ++stage) copy_next(stage);
  if (view.all.norm.weight != nullptr && threadIdx.x * 128 < view.all.norm.n * 2) fetch_to_l2(view.all.norm.weight + threadIdx.x * 128);
  wait_for_previous();
  const float square = warp_sum(fill_x<F>(x, view, kTiles * 8));
  if (lane == 0) squares[warp] = square;
  __syncthreads();
  float factor = 1.0f;
  if (view.all.norm.from != nullptr) {
    factor = factor_of_norm(view.all.norm, squares);
    if (!view.all.norm.unread) write_norm_together(view.all.norm, factor);
  }
  const int items = 8 * view.tokens;  // of a unit
  unsigned kept = begin;              // the first of the units whose sums are kept
  const auto output_of = [&](int item) {
    const int at = item / items;
    return StreamOutput{kept + at / teams * round + at % teams, item % 8, item % items / 8};
  };
  StreamExtra extra{{1.0f, 1.0f}, {0.0f, 0.0f}};
  if (output_of(static_cast<int>(threadIdx.x)).unit < view.units) extra = output_of(static_cast<int>(threadIdx.x)).extra(view);
  int stage = 0, slot = 0;
  for (unsigned base = begin; base < view.units; base += round) {
    const unsigned unit = base + warp / view.team;
    float acc[kTiles][4] = {};
    if (unit < view.units) {
      int odd = 0;  // int4: whether the first scale of this lane's two rows is at an odd index
      if constexpr (Shape::kInt4) {
        StreamRows rows;
        rows.find(view, unit);
        const std::int64_t groups = like.weight.cols / 128;
#pragma unroll
        for (int half = 0; half < 2; ++half) odd |= static_cast<int>(min(rows.row[half] + lane / 4, rows.weight[half]->rows - 1) * groups & 1) << half;
      }
      for (int at = first; at < view.stretches; at += view.team) {
        wait_copies<kStreamDepth - 1>();
        __syncwarp();
        Stretch<F, kTiles>{ring + stage * Shape::kStage, x, view.columns, at, like.weight.format, like.weight.cols, odd}.multiply(acc);
        __syncwarp();
        copy_next(stage);
        stage = stage + 1 == kStreamDepth ? 0 : stage + 1;
      }
    }
    float* own = parts + (slot * kStreamedWarps + warp) * 16 * view.columns;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (const int column = n * 8 + lane % 4 * 2 + i % 2; column < view.columns) own[(i / 2 * 8 + lane / 4) * view.columns + column] = acc[n][i];
    const bool last = base + round >= view.units;
    if (++slot < view.slots && !last) continue;
    __syncthreads();
    for (int item = static_cast<int>(threadIdx.x); item < slot * teams * items; item += kStreamedThreads) {
      const StreamOutput output = output_of(item);
      if (output.unit >= view.units) continue;
      float sum[2] = {};
      const float* from = parts + (item / items * view.team * 16 + output.row) * view.columns + output.token * view.parts;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        for (int part = view.parts - 1; part >= 0; --part)  // the smallest first
          for (int w = 0; w < view.team; ++w) sum[half] += from[(w * 16 + half * 8) * view.columns + part];
      const bool known = kept == begin && item == static_cast<int>(threadIdx.x);
      output.write(view, known ? extra : output.extra(view), factor, sum);
    }
    if (last) break;
    __syncthreads();
    slot = 0;
    kept = base + round;
  }
  wait_copies<0>();
}

/// Whether these kernels can do it: whole rows at multiples of 16 bytes, formats as above, rows of a product from a multiple of eight on.
bool can_stream(const Context& context, const Together& all);
void launch_stream(Context& context, const Together& all);
/// How `tokens` tokens of these are dealt out, also of bf16.
StreamView stream_view(const Context& context, const Together& all, std::int64_t tokens);
/// Whether whole rows, and their scales, lie where copies of 16 (4) bytes can read them.
bool rows_can_be_copied(const Together& all);

}  // namespace fathom::cuda
