// Family compress backwards. With s the softmax of the gates of a column: dkv_i += s_i · dout, dgate_i += s_i · (kv_i - out) · dout, and dape
// gets the same as the gates, summed over entries. A thread has one column of one entry; no other changes its elements of dkv and dgate,
// since an entry reads columns [0, d) of the window before its own and [d, 2d) of its own.
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/grad_product.cuh"
#include "backends/cuda/segments.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kPoolThreads = 128;

struct PoolGradView {
  View<const float> kv, gate, dout;  // [tokens, width], [entries, d]
  View<float> dkv, dgate;
  FloatVector ape;                   // [ratio, width] or undefined
  float* changes = nullptr;          // [entries of this launch, ratio, width], or null
  const std::int32_t* table = nullptr;
  int sequences = 0;
  std::int32_t ratio = 1;
  std::int64_t first_entry = 0, d = 0, width = 0;
  bool overlap = false;
};

/// One column of one entry: its tokens are positions [first, first + count), the last `ratio` of them its own window.
struct PoolColumn {
  std::int64_t first_token, column;
  std::int32_t first, count;

  __device__ std::int64_t column_of(const PoolGradView& view, std::int32_t i) const { return column + (view.overlap && i >= count - view.ratio ? view.d : 0); }
  __device__ float gate(const PoolGradView& view, std::int32_t i) const {
    const std::int64_t at = column_of(view, i);
    const float gate = view.gate.at(first_token + first + i)[at];
    return view.ape.data == nullptr ? gate : gate + view.ape[(first + i) % view.ratio * view.width + at];
  }
};

/// Grid: entry rows, blocks of columns.
__global__ void __launch_bounds__(kPoolThreads) compress_backward_kernel(const __grid_constant__ PoolGradView view) {
  const std::int64_t own = blockIdx.x, row = view.first_entry + own, column = static_cast<std::int64_t>(blockIdx.y) * kPoolThreads + threadIdx.x;
  const Piece piece = find_piece(view.table, view.sequences, view.ratio, static_cast<std::int32_t>(row));
  const std::int32_t entry = piece.first / view.ratio;
  const SequenceRow sequence = piece.sequence < 0 ? SequenceRow{} : sequence_row(view.table, piece.sequence);
  if (column >= view.d) return;
  float* const changes = view.changes == nullptr ? nullptr : view.changes + own * view.ratio * view.width;
  if (changes != nullptr)
    for (std::int32_t i = 0; i < view.ratio; ++i)
      for (std::int64_t at = column; at < view.width; at += view.d) changes[i * view.width + at] = 0.0f;
  if (piece.sequence < 0 || entry >= sequence.tokens / view.ratio) return;
  const bool both = view.overlap && entry > 0;
  const PoolColumn pool{sequence.first_token, column, (both ? entry - 1 : entry) * view.ratio, both ? 2 * view.ratio : view.ratio};
  float largest = -INFINITY, total = 0.0f, out = 0.0f;
  for (std::int32_t i = 0; i < pool.count; ++i) largest = fmaxf(largest, pool.gate(view, i));
  for (std::int32_t i = 0; i < pool.count; ++i) {
    const float share = expf(pool.gate(view, i) - largest);
    total += share;
    out += share * view.kv.at(pool.first_token + pool.first + i)[pool.column_of(view, i)];
  }
  out /= total;
  const float dout = view.dout.at(row)[column];
  for (std::int32_t i = 0; i < pool.count; ++i) {
    const std::int64_t token = pool.first_token + pool.first + i, at = pool.column_of(view, i);
    const float share = expf(pool.gate(view, i) - largest) / total, change = share * (view.kv.at(token)[at] - out) * dout;
    if (view.dkv.defined()) view.dkv.at(token)[at] += share * dout;
    if (view.dgate.defined()) view.dgate.at(token)[at] += change;
    if (changes != nullptr) changes[(pool.first + i) % view.ratio * view.width + at] = change;
  }
}

}  // namespace

void CudaGradOps::compress_backward(const CompressGrad& args) {
  Context& context = begin();
  const CompressArgs& f = args.f;
  const std::int64_t d = args.dout.dim(1), width = f.overlap ? 2 * d : d, entries = args.dout.dim(0);
  FATHOM_CHECK(f.kv.dim(1) == width && f.gate.dim(1) == width && entries == max_entries(*f.batch, f.ratio));
  FATHOM_CHECK(!f.ape.defined() || (f.ape.dim(0) == f.ratio && f.ape.dim(1) == width));
  for (const Sequence& sequence : f.batch->sequences) FATHOM_CHECK(sequence.past == 0, "a state is not differentiated");
  if (entries == 0) return;
  PoolGradView view;
  view.kv = view_of<const float>(f.kv);
  view.gate = view_of<const float>(f.gate);
  view.dout = view_of<const float>(args.dout);
  view.dkv = view_of<float>(args.dkv);
  view.dgate = view_of<float>(args.dgate);
  view.ape = vector_of(f.ape);
  view.table = sequence_table(*f.batch);
  view.sequences = static_cast<int>(f.batch->sequences.size());
  view.ratio = static_cast<std::int32_t>(f.ratio);
  view.d = d;
  view.width = width;
  view.overlap = f.overlap;
  float* const dape = parameter_of(args.dape, f.ratio * width);
  const std::int64_t changes = f.ratio * width, most = static_cast<std::int64_t>(context.workspace.left()) / 8 / (4 * changes);  // an eighth: the sums take some
  const std::int64_t chunk = dape == nullptr ? entries : std::min(entries, most);
  FATHOM_CHECK(chunk > 0, "an entry is too large for the workspace");
  if (dape != nullptr) view.changes = context.workspace.take<float>(chunk * changes);
  for (std::int64_t first = 0; first < entries; first += chunk) {
    const std::int64_t count = std::min(chunk, entries - first);
    view.first_entry = first;
    compress_backward_kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(divide_up(d, kPoolThreads))), kPoolThreads, 0, context.stream>>>(view);
    context.launched();
    if (dape != nullptr) add_column_sums(context, {.values = dense_rows(view.changes, count, changes)}, dape);
  }
}

}  // namespace fathom::cuda
