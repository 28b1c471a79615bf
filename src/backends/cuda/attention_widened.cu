// Attention over caches of 8 bits by ways that know 16: see attention_ways.h.
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/blas.h"
#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr Bytes kMostWidened = kOpBytes / 2;  // the rest is for what parts of the keys find
constexpr int kWidenThreads = 256;

struct WidenView {
  SegmentView from;                               // its key heads are the part's
  __nv_bfloat16 *k = nullptr, *k_shared = nullptr, *v = nullptr;  // [sequences · rows, heads, width], dense; v null: it is k
  const std::int32_t* table = nullptr;
  std::int32_t* own_table = nullptr;              // the same sequences in slots 0, 1, …, their tokens from 0 on
  std::int32_t rows = 0, first_token = 0, dv = 0;
};

template <class S>
__device__ void widen_eight_of(const std::byte* from, float scale, __nv_bfloat16* to) {
  float x[8];
  widen_codes<S>(*reinterpret_cast<const uint2*>(from), x);
  if constexpr (kRowScales<S>) {
#pragma unroll
    for (float& value : x) value *= scale;
  }
  *reinterpret_cast<uint4*>(to) = pack_eight<__nv_bfloat16>(make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7]));
}

/// Grid: blocks of rows, sequences. Only rows that are there: how many is read here, since a recorded step is launched again with more.
template <class S>
__global__ void __launch_bounds__(kWidenThreads) widen_rows(const __grid_constant__ WidenView view) {
  after_previous();
  const SequenceRow sequence = sequence_row(view.table, blockIdx.y);
  const auto index = static_cast<std::int32_t>(blockIdx.y);
  if (blockIdx.x == 0 && threadIdx.x == 0) *reinterpret_cast<int4*>(view.own_table + 4 * index) = make_int4(index, sequence.first_token - view.first_token, sequence.tokens, sequence.past);
  const SegmentView& from = view.from;
  const int eights_of_k = from.kv_heads * from.dk / 8, eights_of_shared = from.dr / 8, eights = eights_of_k + eights_of_shared + (view.v != nullptr ? from.kv_heads * view.dv / 8 : 0);
  const std::int64_t rows = sequence.tokens > 0 ? min(sequence.past + sequence.tokens, view.rows) : 0, base = static_cast<std::int64_t>(sequence.slot) * from.rows_per_slot;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWidenThreads;
  for (std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWidenThreads + threadIdx.x; item < rows * eights; item += step) {
    const std::int64_t row = item / eights, to = static_cast<std::int64_t>(index) * view.rows + row;
    int at = static_cast<int>(item % eights);
    if (at < eights_of_k) {
      const int head = at / (from.dk / 8), d = at % (from.dk / 8) * 8;
      widen_eight_of<S>(from.k + (base + row) * from.k_row + head * from.k_head + d, key_scale<S>(from, base + row, head), view.k + (to * from.kv_heads + head) * from.dk + d);
      continue;
    }
    at -= eights_of_k;
    if (at < eights_of_shared) {
      widen_eight_of<S>(from.k_shared + (base + row) * from.shared_row + 8 * at, shared_scale<S>(from, base + row), view.k_shared + to * from.dr + 8 * at);
      continue;
    }
    at -= eights_of_shared;
    const int head = at / (view.dv / 8), d = at % (view.dv / 8) * 8;
    widen_eight_of<S>(from.v + (base + row) * from.v_row + head * from.v_head + d, value_scale<S>(from, base + row, head), view.v + (to * from.kv_heads + head) * view.dv + d);
  }
}

/// Heads [first, first + count) of x [rows, heads, width].
Tensor heads_of(const Tensor& x, std::int64_t first, std::int64_t count) {
  Tensor part = x;
  part.data += first * x.strides[1] * dtype_bytes(x.dtype);
  part.shape.dims[1] = count;
  return part;
}

bool values_are_keys(const KvSegment& segment) { return segment.v.data == segment.k.data && segment.v.strides == segment.k.strides && segment.v.dim(2) <= segment.k.dim(2); }

}  // namespace

Widening::Widening(const AttentionArgs& args) : whole_(args) {
  if (args.segments.size() != 1) return;
  const KvSegment& segment = args.segments[0];
  const std::int64_t dr = segment.k_shared.defined() ? segment.k_shared.dim(1) : 0, dk = segment.k.dim(2), dv = segment.v.dim(2);
  if (segment.kind != KvSegment::Kind::kCache || dtype_bytes(segment.k.dtype) != 1 || segment.selected.defined() || dk % 8 != 0 || dr % 8 != 0 || dv % 8 != 0) return;
  if (!rows_aligned(segment.k, 8) || !rows_aligned(segment.v, 8) || (dr > 0 && !rows_aligned(segment.k_shared, 8))) return;
  rows_ = 1;
  for (const Sequence& sequence : args.batch->sequences) rows_ = std::max<std::int64_t>(rows_, sequence.past + sequence.tokens);
  if (one_token_each(*args.batch)) rows_ = segment.rows_per_slot;  // a recorded step is launched again with more keys
  const std::int64_t most = static_cast<std::int64_t>(kMostWidened) / (2 * rows_);  // elements of a row
  const std::int64_t head = dk + (values_are_keys(segment) ? 0 : dv), all = std::ssize(args.batch->sequences), heads = segment.k.dim(1);
  if (heads * head + dr <= most) {
    kv_heads_ = heads, sequences_ = std::min(most / (heads * head + dr), all);
  } else if (head + dr <= most) {
    kv_heads_ = (most - dr) / head, sequences_ = 1;
  } else {
    return;
  }
  head_parts_ = divide_up(heads, kv_heads_);
  parts_ = static_cast<int>(divide_up(all, sequences_) * head_parts_);
}

const AttentionArgs& Widening::part(Context& context, int i) {
  context.workspace.reset();
  const KvSegment& from = whole_.segments[0];
  const std::int64_t first = i / head_parts_ * sequences_, count = std::min(sequences_, std::ssize(whole_.batch->sequences) - first);
  const std::int64_t kv_head = i % head_parts_ * kv_heads_, kv_heads = std::min(kv_heads_, from.k.dim(1) - kv_head), group = whole_.q.dim(1) / from.k.dim(1);
  batch_ = *whole_.batch;
  batch_.sequences = whole_.batch->sequences.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  batch_.tokens = 0;
  for (const Sequence& sequence : batch_.sequences) batch_.tokens += sequence.tokens;
  first_token_ = batch_.sequences.front().first_token, first_sequence_ = first, first_head_ = kv_head;
  batch_.sequence_table = make_tensor(context.workspace.take<std::int32_t>(4 * count), DType::i32, {count, 4});
  const auto room = [&](const Tensor& x, std::int64_t heads) { return make_tensor(context.workspace.take<__nv_bfloat16>(count * rows_ * heads * x.dim(2)), DType::bf16, {count * rows_, heads, x.dim(2)}); };
  segment_ = {.kind = from.kind, .k = room(from.k, kv_heads), .k_shared = {}, .v = {}, .rows_per_slot = rows_, .window = from.window, .ratio = from.ratio, .selected = {}};
  if (from.k_shared.defined()) {
    const std::int64_t dr = from.k_shared.dim(1);
    segment_.k_shared = make_tensor(context.workspace.take<__nv_bfloat16>(count * rows_ * dr), DType::bf16, {count * rows_, dr});
  }
  segment_.v = values_are_keys(from) ? segment_.k.columns(0, from.v.dim(2)) : room(from.v, kv_heads);
  const auto share = [&](const Tensor& x) { return heads_of(x.rows(first_token_, batch_.tokens), kv_head * group, kv_heads * group); };
  args_ = whole_;
  args_.segments = {&segment_, 1};
  args_.batch = &batch_;
  args_.q = share(whole_.q), args_.out = share(whole_.out);
  if (whole_.lse.defined()) args_.lse = whole_.lse.rows(first_token_, batch_.tokens).columns(kv_head * group, kv_heads * group);
  if (whole_.sink.defined()) args_.sink = whole_.sink.rows(kv_head * group, kv_heads * group);
  return args_;
}

void Widening::launch(Context& context) const {
  SegmentView from = view_of(whole_.segments[0]);  // of the part's heads: rows begin and scales lie elsewhere
  const auto head = static_cast<std::int32_t>(first_head_);
  from.k += head * from.k_head, from.v += head * from.v_head, from.kv_heads = static_cast<std::int32_t>(segment_.k.dim(1));
  from.k_scales += head * (4 - static_cast<std::int32_t>(from.k_head)), from.v_scales += head * (4 - static_cast<std::int32_t>(from.v_head));
  const auto count = static_cast<unsigned>(batch_.sequences.size());
  const bool same = segment_.v.data == segment_.k.data;
  WidenView view{.from = from,
                 .k = segment_.k.as<__nv_bfloat16>(),
                 .k_shared = segment_.k_shared.as<__nv_bfloat16>(),
                 .v = same ? nullptr : segment_.v.as<__nv_bfloat16>(),
                 .table = sequence_table(*whole_.batch) + 4 * first_sequence_,
                 .own_table = batch_.sequence_table.as<std::int32_t>(),
                 .rows = static_cast<std::int32_t>(rows_),
                 .first_token = static_cast<std::int32_t>(first_token_),
                 .dv = static_cast<std::int32_t>(segment_.v.dim(2))};
  const std::int64_t eights = rows_ * (segment_.k.dim(1) * (view.from.dk + (same ? 0 : view.dv)) + view.from.dr) / 8;
  const std::int64_t most = divide_up(16 * static_cast<std::int64_t>(context.multiprocessors), count);
  const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(eights, kWidenThreads), 1, most)), count);
  launch_early(context, from.dtype == DType::i8 ? &widen_rows<Int8> : &widen_rows<E4m3>, grid, kWidenThreads, 0, view);
  context.launched();
}

}  // namespace fathom::cuda
