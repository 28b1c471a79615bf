// Family compress: gated pooling of tokens into entries (DeepSeek-V4 §2.3).
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kCompressColumns = 64;  // pooled at a time

/// One entry that closes in this batch, and the row of `out` that it goes to.
struct Entry {
  const Sequence* sequence = nullptr;
  std::int64_t number = 0;
};

/// Copies `width` columns of the rows of `position` from the batch or from the state.
void load_token(const Kernels& kernels, const CompressArgs& args, const Sequence& sequence, std::int64_t position,
                std::int64_t column, std::int64_t width, float* kv, float* gate) {
  const bool past = position < sequence.past;
  const Tensor &from_kv = past ? args.state_kv : args.kv, &from_gate = past ? args.state_gate : args.gate;
  const std::int64_t row = past ? sequence.slot * args.state_rows + position % args.state_rows
                                : sequence.first_token + position - sequence.past;
  const auto widen = [&](const Tensor& x, std::int64_t at, float* to) {
    kernels.widen(element_of(x.dtype), x.data + (at * x.strides[0] + column) * dtype_bytes(x.dtype), width, to);
  };
  widen(from_kv, row, kv);
  widen(from_gate, row, gate);
  if (!args.ape.defined()) return;
  float ape[kCompressColumns];
  widen(args.ape, position % args.ratio, ape);
  kernels.add(gate, ape, gate, width);
}

void pool_entry(const Kernels& kernels, const CompressArgs& args, const Entry& entry, std::int64_t column, float* out,
                Scratch& scratch) {
  const std::int64_t d = args.out.dim(1), width = std::min(kCompressColumns, d - column);
  float* kv = scratch.take<float>(2 * args.ratio * width);
  float* gate = scratch.take<float>(2 * args.ratio * width);
  std::int64_t parts = 0;
  for (int window = args.overlap && entry.number > 0 ? 0 : 1; window < 2; ++window)  // 0: the window before
    for (std::int64_t i = 0; i < args.ratio; ++i, ++parts)
      load_token(kernels, args, *entry.sequence, (entry.number - 1 + window) * args.ratio + i,
                 column + (args.overlap && window == 1 ? d : 0), width, kv + parts * width, gate + parts * width);
  kernels.pool(kv, gate, parts, width, out);
}

}  // namespace

void CpuOps::compress(const CompressArgs& args) {
  const std::int64_t d = args.out.dim(1), width = args.overlap ? 2 * d : d;
  FATHOM_CHECK(args.kv.dim(1) == width && args.gate.dim(1) == width);
  FATHOM_CHECK(!args.ape.defined() || (args.ape.dim(0) == args.ratio && args.ape.dim(1) == width));
  FATHOM_CHECK(args.out.dim(0) == max_entries(*args.batch, args.ratio) && args.positions.dim(0) == args.out.dim(0) &&
               is_f32(args.out));
  FATHOM_CHECK(args.positions.dtype == DType::i32);
  const std::int64_t rows = args.out.dim(0), blocks = (d + kCompressColumns - 1) / kCompressColumns;
  auto* entries = fresh_shared().take<Entry>(rows);
  std::int64_t next = 0;
  for (const Sequence& sequence : args.batch->sequences) {
    const std::int64_t first = sequence.past / args.ratio, end = (sequence.past + sequence.tokens) / args.ratio;
    for (std::int64_t i = 0; i < max_entries(sequence.tokens, args.ratio); ++i)
      entries[next++] = first + i < end ? Entry{&sequence, first + i} : Entry{};
  }
  auto* positions = args.positions.as<std::int32_t>();
  for (std::int64_t row = 0; row < rows; ++row)
    positions[row * args.positions.strides[0]] =
        entries[row].sequence != nullptr ? static_cast<std::int32_t>(entries[row].number * args.ratio) : -1;
  for_ranges(context_.pool, rows * blocks, 8 * args.ratio * kCompressColumns,
             [&](std::int64_t first, std::int64_t last, int thread) {
               for (std::int64_t task = first; task < last; ++task) {
                 const Entry& entry = entries[task / blocks];
                 const std::int64_t column = task % blocks * kCompressColumns;
                 float* out = args.out.as<float>() + task / blocks * args.out.strides[0] + column;
                 if (entry.sequence == nullptr)
                   std::fill_n(out, std::min(kCompressColumns, d - column), 0.0f);
                 else
                   pool_entry(context_.kernels, args, entry, column, out, fresh(thread));
               }
             });
}

}  // namespace fathom::cpu
