// Family rows: embedding, gathering, copying, adding.
#include <algorithm>

#include "backends/reference/dequantize.h"
#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary

void ReferenceOps::embed(const EmbedArgs& args) {
  const auto ids = load_ints(args.ids);
  std::vector<double> row(static_cast<std::size_t>(args.table.cols));
  FATHOM_CHECK(args.out.dim(0) == args.ids.dim(0) && args.out.dim(1) == args.table.cols);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::int64_t id = ids[t] - args.first_id;
    const bool here = id >= 0 && id < args.table.rows;
    FATHOM_CHECK(here || args.split, "a token outside the vocabulary");
    if (here)
      dequantize_row(args.table, id, row.data());
    else
      std::fill(row.begin(), row.end(), 0.0);
    store_row(args.out, static_cast<std::int64_t>(t), row.data());
  }
}

void ReferenceOps::gather_rows(const GatherRowsArgs& args) {
  const auto rows = load_ints(args.rows);
  FATHOM_CHECK(args.out.dim(0) == args.rows.dim(0) && args.out.dim(1) == args.x.dim(1));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    FATHOM_CHECK(rows[i] >= 0 && rows[i] < args.x.dim(0), "a row outside its tensor");
    store_row(args.out, static_cast<std::int64_t>(i), load_row(args.x, rows[i]).values.data());
  }
}

void ReferenceOps::copy(const CopyArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  if (args.x.dtype == DType::i32) return store_ints(args.out, load_ints(args.x));
  store(args.out, load(args.x));
}

void ReferenceOps::add(const AddArgs& args) {
  FATHOM_CHECK(args.a.shape == args.b.shape && args.a.shape == args.out.shape);
  Array sum = load(args.a);
  const Array b = load(args.b);
  for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += b.values[i];
  store(args.out, sum);
}

void ReferenceOps::expand_streams(const ExpandStreamsArgs& args) {
  const std::int64_t tokens = args.out.dim(0), streams = args.out.dim(1), width = args.out.dim(2);
  FATHOM_CHECK(args.x.dim(0) == tokens && args.x.dim(1) == width);
  const Array x = load(args.x);
  Array out(args.out.shape);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t s = 0; s < streams; ++s)
      for (std::int64_t i = 0; i < width; ++i) out.at(t, s)[i] = x.at(t)[i];
  store(args.out, out);
}

void ReferenceGradOps::zero(const Tensor& x) { store(x, Array(x.shape)); }

void ReferenceGradOps::embed_backward(const EmbedGrad& args) {
  const auto ids = load_ints(args.f.ids);
  for (std::size_t t = 0; t < ids.size(); ++t)
    if (const std::int64_t id = ids[t] - args.f.first_id; id >= 0 && id < args.f.table.rows)
      add_to_row(args.dtable, id, load_row(args.dout, static_cast<std::int64_t>(t)).values.data());
}

void ReferenceGradOps::gather_rows_backward(const GatherRowsGrad& args) {
  const auto rows = load_ints(args.f.rows);
  for (std::size_t i = 0; i < rows.size(); ++i)
    add_to_row(args.dx, rows[i], load_row(args.dout, static_cast<std::int64_t>(i)).values.data());
}

void ReferenceGradOps::accumulate(const AccumulateGrad& args) { add_to(args.dx, load(args.dout)); }

void ReferenceGradOps::expand_streams_backward(const ExpandStreamsGrad& args) {
  const Array dout = load(args.dout);
  Array dx(args.dx.shape);
  for (std::int64_t t = 0; t < dout.dim(0); ++t)
    for (std::int64_t s = 0; s < dout.dim(1); ++s) add_scaled(1.0, dout.at(t, s), dx.at(t), dout.dim(2));
  add_to(args.dx, dx);
}

}  // namespace fathom::reference
