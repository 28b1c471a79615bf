// Family rows: embedding, gathering, copying, adding.
#include <cstring>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
/// n elements from one type to another, by way of f32.
void convert(const Kernels& kernels, const std::byte* from, DType from_type, std::byte* to, DType to_type,
             std::int64_t n) {
  constexpr std::int64_t kPiece = 256;
  const Element x = element_of(from_type), out = element_of(to_type);
  float piece[kPiece];
  for (std::int64_t i = 0; i < n; i += kPiece) {
    const std::int64_t count = std::min(kPiece, n - i);
    kernels.widen(x, from + i * element_bytes(x), count, piece);
    kernels.narrow(out, piece, count, to + i * element_bytes(out));
  }
}
}  // namespace

void CpuOps::embed(const EmbedArgs& args) {
  const std::int64_t h = args.table.cols;
  FATHOM_CHECK(is_f32(args.out) && args.out.dim(0) == args.ids.dim(0) && args.out.dim(1) == h &&
               args.ids.dtype == DType::i32);
  const auto* ids = args.ids.as<std::int32_t>();
  const RowsOfTensor out(args.out);
  for_ranges(context_.pool, args.ids.dim(0), h, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const std::int64_t id = ids[t * args.ids.strides[0]] - args.first_id;
      if (id < 0 || id >= args.table.rows) {
        FATHOM_CHECK(args.split, "a token outside the vocabulary");
        std::fill_n(out.floats(t), h, 0.0f);
        continue;
      }
      Row row = nullptr;
      const Element element =
          weight_rows(args.table, id, 1, 0, h, out.floats(t), &row);  // quantized rows are widened in place
      if (is_plain(args.table.format)) context_.kernels.widen(element, row, h, out.floats(t));
    }
  });
}

void CpuOps::gather_rows(const GatherRowsArgs& args) {
  const std::int64_t bytes = args.x.dim(1) * dtype_bytes(args.x.dtype);
  FATHOM_CHECK(args.x.dtype == args.out.dtype && args.out.dim(0) == args.rows.dim(0) &&
               args.out.dim(1) == args.x.dim(1) && args.rows.dtype == DType::i32);
  const auto* rows = args.rows.as<std::int32_t>();
  const RowsOfTensor x(args.x), out(args.out);
  for_ranges(context_.pool, args.rows.dim(0), args.x.dim(1), [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t row = rows[i * args.rows.strides[0]];
      FATHOM_CHECK(row >= 0 && row < args.x.dim(0), "a row outside its tensor");
      if (bytes > 0) std::memcpy(out.at(i), x.at(row), static_cast<std::size_t>(bytes));
    }
  });
}

void CpuOps::copy(const CopyArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  const RowsOfTensor x(args.x), out(args.out);
  const std::int64_t n = x.n();
  for_ranges(context_.pool, x.rows(), n, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      if (args.x.dtype == args.out.dtype)
        std::memcpy(out.at(i), x.at(i), static_cast<std::size_t>(n * dtype_bytes(args.x.dtype)));
      else
        convert(context_.kernels, x.at(i), args.x.dtype, out.at(i), args.out.dtype, n);
    }
  });
}

void CpuOps::add(const AddArgs& args) {
  FATHOM_CHECK(args.a.shape == args.b.shape && args.a.shape == args.out.shape && is_f32(args.a) && is_f32(args.b) &&
               is_f32(args.out));
  const RowsOfTensor a(args.a), b(args.b), out(args.out);
  for_ranges(context_.pool, a.rows(), a.n(), [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) context_.kernels.add(a.floats(i), b.floats(i), out.floats(i), a.n());
  });
}

void CpuOps::expand_streams(const ExpandStreamsArgs& args) {
  const std::int64_t tokens = args.out.dim(0), streams = args.out.dim(1), width = args.out.dim(2);
  FATHOM_CHECK(args.x.dim(0) == tokens && args.x.dim(1) == width && is_f32(args.x) && is_f32(args.out));
  const RowsOfTensor x(args.x), out(args.out);
  for_ranges(context_.pool, tokens * streams, width, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) std::copy_n(x.floats(i / streams), width, out.floats(i));
  });
}

}  // namespace fathom::cpu
