// Family compress: gated pooling of tokens into entries (DeepSeek-V4 §2.3). A thread pools one column of one entry.
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/segments.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kCompressThreads = 128;

struct CompressView {
  View<const float> kv, gate;              // [tokens, width]
  FloatVector state_kv, state_gate;        // [slots · state_rows, width], strides below
  std::int64_t state_kv_row = 0, state_gate_row = 0;
  FloatVector ape;                         // [ratio, width] or undefined
  View<float> out;                         // [entries, d]
  View<std::int32_t> positions;            // [entries]
  const std::int32_t* table = nullptr;
  int sequences = 0;
  std::int32_t state_rows = 0, ratio = 1;
  std::int64_t d = 0, width = 0;
  bool overlap = false;
};

/// A token that goes into an entry, one column of it.
struct Part { float kv, gate; };

__device__ Part part_of(const CompressView& view, const SequenceRow& sequence, std::int32_t position, std::int64_t column) {
  Part part;
  if (position >= sequence.past) {
    const std::int64_t token = sequence.first_token + static_cast<std::int64_t>(position) - sequence.past;
    part = {view.kv.at(token)[column], view.gate.at(token)[column]};
  } else {
    const std::int64_t row = static_cast<std::int64_t>(sequence.slot) * view.state_rows + position % view.state_rows;
    part = {view.state_kv[row * view.state_kv_row + column], view.state_gate[row * view.state_gate_row + column]};
  }
  if (view.ape.data != nullptr) part.gate += view.ape[position % view.ratio * view.width + column];
  return part;
}

/// Softmax over the parts of one column, with a running maximum.
__device__ float pool_column(const CompressView& view, const SequenceRow& sequence, std::int32_t entry, std::int64_t column) {
  const bool both = view.overlap && entry > 0;
  const std::int32_t first = (both ? entry - 1 : entry) * view.ratio, own = entry * view.ratio;
  const std::int64_t own_column = column + (view.overlap ? view.d : 0);
  float largest = -INFINITY, total = 0.0f, sum = 0.0f;
  for (std::int32_t position = first; position < own + view.ratio; ++position) {
    const Part part = part_of(view, sequence, position, position < own ? column : own_column);
    const float now = fmaxf(largest, part.gate), base = now == -INFINITY ? 0.0f : now;
    const float shrink = expf(largest - base), share = expf(part.gate - base);
    total = total * shrink + share;
    sum = sum * shrink + share * part.kv;
    largest = now;
  }
  return sum / total;
}

/// Grid: entry rows, blocks of columns.
__global__ void __launch_bounds__(kCompressThreads) compress_entries(const __grid_constant__ CompressView view) {
  const std::int64_t row = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y) * kCompressThreads + threadIdx.x;
  // Entry rows of a sequence are as many as pieces of `ratio` of its tokens.
  const Piece piece = find_piece(view.table, view.sequences, view.ratio, static_cast<std::int32_t>(row));
  if (piece.sequence < 0) return;
  const SequenceRow sequence = sequence_row(view.table, piece.sequence);
  const std::int32_t entry = sequence.past / view.ratio + piece.first / view.ratio, end = (sequence.past + sequence.tokens) / view.ratio;
  const bool closes = entry < end;
  if (blockIdx.y == 0 && threadIdx.x == 0) *view.positions.at(row) = closes ? entry * view.ratio : -1;
  if (column < view.d) view.out.at(row)[column] = closes ? pool_column(view, sequence, entry, column) : 0.0f;
}

}  // namespace

void CudaOps::compress(const CompressArgs& args) {
  flush();
  const std::int64_t d = args.out.dim(1), width = args.overlap ? 2 * d : d, rows = args.out.dim(0);
  FATHOM_CHECK(args.kv.dim(1) == width && args.gate.dim(1) == width);
  FATHOM_CHECK(!args.ape.defined() || (args.ape.dim(0) == args.ratio && args.ape.dim(1) == width));
  FATHOM_CHECK(rows == max_entries(*args.batch, args.ratio) && args.positions.dim(0) == rows);
  if (rows == 0) return;
  CompressView view;
  view.kv = view_of<const float>(args.kv);
  view.gate = view_of<const float>(args.gate);
  if (args.state_kv.defined()) {
    FATHOM_CHECK(args.state_rows > 0 && dtype_is_float(args.state_kv.dtype) && dtype_is_float(args.state_gate.dtype));
    view.state_kv = {args.state_kv.data, args.state_kv.dtype};
    view.state_gate = {args.state_gate.data, args.state_gate.dtype};
    view.state_kv_row = args.state_kv.strides[0];
    view.state_gate_row = args.state_gate.strides[0];
    view.state_rows = static_cast<std::int32_t>(args.state_rows);
  } else {
    for (const Sequence& sequence : args.batch->sequences) FATHOM_CHECK(sequence.past == 0, "a window goes on and there is no state");
  }
  view.ape = vector_of(args.ape);
  view.out = view_of<float>(args.out);
  view.positions = view_of<std::int32_t>(args.positions);
  view.table = sequence_table(*args.batch);
  view.sequences = static_cast<int>(args.batch->sequences.size());
  view.ratio = static_cast<std::int32_t>(args.ratio);
  view.d = d;
  view.width = width;
  view.overlap = args.overlap;
  compress_entries<<<dim3(static_cast<unsigned>(rows), static_cast<unsigned>(divide_up(d, kCompressThreads))), kCompressThreads, 0, context_.stream>>>(view);
  context_.launched();
}

}  // namespace fathom::cuda
