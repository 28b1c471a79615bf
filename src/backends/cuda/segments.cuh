// Segments as kernels see them: which rows of a segment a token may see, and where they lie. The device's twin of reference/visible.h.
// Kernels read the sequences from the batch's table on the device; the host's copy only sizes grids.
#pragma once
#include "backends/cuda/device_math.cuh"
#include "tensor/int8_rows.h"
#include "tensor/ops.h"

namespace fathom::cuda {

/// One row of Batch::sequence_table.
struct SequenceRow { std::int32_t slot, first_token, tokens, past; };
__device__ inline SequenceRow sequence_row(const std::int32_t* table, int index) {
  const std::int32_t* row = table + 4 * static_cast<std::int64_t>(index);
  return {row[0], row[1], row[2], row[3]};
}
inline const std::int32_t* sequence_table(const tensor::Batch& batch) {
  FATHOM_CHECK(batch.sequence_table.dtype == DType::i32 && batch.sequence_table.contiguous() && batch.sequence_table.dim(1) == 4);
  FATHOM_CHECK(batch.sequence_table.dim(0) == std::ssize(batch.sequences));
  return batch.sequence_table.as<std::int32_t>();
}

/// A piece of at most `step` consecutive tokens (or entry rows) of one sequence.
struct Piece { int sequence = -1; std::int32_t first = 0; };

/// Piece `number` when every sequence is cut into divide_up(tokens, step) of them. All lanes of the warp call it and get the same.
/// Sequence -1: there are fewer.
__device__ inline Piece find_piece(const std::int32_t* table, int sequences, std::int32_t step, std::int32_t number) {
  const int lane = threadIdx.x % kWarp;
  for (int base = 0; base < sequences; base += kWarp) {
    const std::int32_t own = base + lane < sequences ? (table[4 * static_cast<std::int64_t>(base + lane) + 2] + step - 1) / step : 0;
    std::int32_t sum = own;
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
      const std::int32_t below = __shfl_up_sync(kAllLanes, sum, i);
      if (lane >= i) sum += below;
    }
    const unsigned behind = __ballot_sync(kAllLanes, sum > number);
    if (behind != 0) {
      const int at = __ffs(static_cast<int>(behind)) - 1;
      return {base + at, (number - __shfl_sync(kAllLanes, sum - own, at)) * step};
    }
    number -= __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  return {};
}

/// Entry rows of the sequences before `index`. All lanes of the warp call it.
__device__ inline std::int64_t first_entry_row(const std::int32_t* table, int index, std::int32_t ratio) {
  std::int32_t sum = 0;
  for (int s = threadIdx.x % kWarp; s < index; s += kWarp) sum += (table[4 * static_cast<std::int64_t>(s) + 2] + ratio - 1) / ratio;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

struct SegmentView {
  const std::byte *k = nullptr, *k_shared = nullptr, *v = nullptr;
  const std::int32_t* selected = nullptr;
  std::int64_t k_row = 0, k_head = 0, shared_row = 0, v_row = 0, v_head = 0, selected_row = 0;  // strides in elements
  std::int32_t k_scales = 0, shared_scales = 0, v_scales = 0;  // INT8: bytes from a row's first code to its first scale
  std::int32_t dk = 0, dr = 0, kv_heads = 1;
  std::int32_t rows_per_slot = 0, window = 0, ratio = 1, selected_count = 0;
  tensor::KvSegment::Kind kind = tensor::KvSegment::Kind::kCache;
  DType dtype = DType::f32;
};

inline SegmentView view_of(const tensor::KvSegment& segment) {
  SegmentView view;
  view.kind = segment.kind;
  view.k = segment.k.data;
  view.dtype = segment.k.dtype;
  view.dk = static_cast<std::int32_t>(segment.k.dim(2));
  view.kv_heads = static_cast<std::int32_t>(segment.k.dim(1));
  view.k_row = segment.k.strides[0];
  view.k_head = segment.k.strides[1];
  if (segment.k_shared.defined()) {
    FATHOM_CHECK(segment.k_shared.dtype == view.dtype);
    view.k_shared = segment.k_shared.data;
    view.dr = static_cast<std::int32_t>(segment.k_shared.dim(1));
    view.shared_row = segment.k_shared.strides[0];
  }
  if (segment.v.defined()) {
    FATHOM_CHECK(segment.v.dtype == view.dtype);
    view.v = segment.v.data;
    view.v_row = segment.v.strides[0];
    view.v_head = segment.v.strides[1];
  }
  if (view.dtype == DType::i8) {
    view.k_scales = static_cast<std::int32_t>(tensor::int8_scales_offset(segment.k));
    if (view.dr > 0) view.shared_scales = static_cast<std::int32_t>(tensor::int8_scales_offset(segment.k_shared));
    if (segment.v.defined()) view.v_scales = view.v == view.k ? view.k_scales : static_cast<std::int32_t>(tensor::int8_scales_offset(segment.v));
  }
  if (segment.selected.defined()) {
    FATHOM_CHECK(segment.selected.dtype == DType::i32);
    view.selected = segment.selected.as<std::int32_t>();
    view.selected_count = static_cast<std::int32_t>(segment.selected.dim(1));
    view.selected_row = segment.selected.strides[0];
  }
  view.rows_per_slot = static_cast<std::int32_t>(segment.rows_per_slot);
  view.window = static_cast<std::int32_t>(segment.window);
  view.ratio = static_cast<std::int32_t>(segment.ratio);
  FATHOM_CHECK(view.ratio > 0 && (view.dtype == DType::f32 || view.dtype == DType::f16 || view.dtype == DType::bf16 || dtype_bytes(view.dtype) == 1));
  return view;
}

/// Names (positions or entry numbers) [first, end); empty when first >= end.
struct NameRange { std::int32_t first = 0, end = 0; };

/// What the token at `position` of a sequence with `past` sees; both ends grow with the position.
__device__ inline NameRange visible_names(const SegmentView& segment, std::int32_t past, std::int32_t position) {
  using Kind = tensor::KvSegment::Kind;
  const std::int32_t window_start = segment.window > 0 ? max(0, position - segment.window + 1) : 0;
  switch (segment.kind) {
    case Kind::kCache: return {0, position + 1};
    case Kind::kFresh: return {max(window_start, past), position + 1};
    case Kind::kRingPast: return {max(window_start, max(past - segment.rows_per_slot, 0)), past};
    case Kind::kEntries:
    case Kind::kFreshEntries: return {0, (position + 1) / segment.ratio};
  }
  return {};
}

/// What is added to a name (on a ring: to the name modulo its rows) for its row. All lanes of the warp call it.
__device__ inline std::int64_t base_row(const SegmentView& segment, const std::int32_t* table, int index, const SequenceRow& sequence) {
  using Kind = tensor::KvSegment::Kind;
  switch (segment.kind) {
    case Kind::kCache:
    case Kind::kEntries:
    case Kind::kRingPast: return static_cast<std::int64_t>(sequence.slot) * segment.rows_per_slot;
    case Kind::kFresh: return static_cast<std::int64_t>(sequence.first_token) - sequence.past;
    case Kind::kFreshEntries: return first_entry_row(table, index, segment.ratio);
  }
  return 0;
}
__device__ inline std::int64_t row_of_name(const SegmentView& segment, std::int64_t base, std::int32_t name) {
  return base + (segment.kind == tensor::KvSegment::Kind::kRingPast ? name % segment.rows_per_slot : name);
}

}  // namespace fathom::cuda
