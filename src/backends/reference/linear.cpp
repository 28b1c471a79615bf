// Family linear: products with weights of any format. A weight row is turned into doubles once.
#include "backends/reference/dequantize.h"
#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary

void ReferenceOps::linear(const LinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), n = args.weight.rows, k = args.weight.cols;
  FATHOM_CHECK(args.x.dim(1) == k && args.out.dim(0) == tokens && args.out.dim(1) == n);
  FATHOM_CHECK(!args.bias.defined() || args.bias.elements() == n);
  const Array x = load(args.x);
  const Array bias = args.bias.defined() ? load(args.bias) : Array(Shape{n});
  Array out = args.accumulate ? load(args.out) : Array(args.out.shape);
  std::vector<double> row(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < n && tokens > 0; ++i) {
    dequantize_row(args.weight, i, row.data());
    for (std::int64_t t = 0; t < tokens; ++t) out.at(t)[i] += dot(x.at(t), row.data(), k) + *bias.at(i);
  }
  store(args.out, out);
}

void ReferenceOps::grouped_linear(const GroupedLinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), groups = args.x.dim(1), k = args.weight.cols;
  FATHOM_CHECK(args.weight.rows == groups * args.group_rows && args.row_offset >= 0 && args.row_offset + args.rows <= args.group_rows);
  FATHOM_CHECK(args.x.dim(2) == (args.transposed ? args.rows : k) && args.out.dim(0) == tokens && args.out.dim(1) == groups);
  FATHOM_CHECK(args.out.dim(2) == (args.transposed ? k : args.rows));
  const Array x = load(args.x);
  Array out(args.out.shape);
  std::vector<double> row(static_cast<std::size_t>(k));
  for (std::int64_t g = 0; g < groups && tokens > 0; ++g)
    for (std::int64_t r = 0; r < args.rows; ++r) {
      dequantize_row(args.weight, g * args.group_rows + args.row_offset + r, row.data());
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (args.transposed) add_scaled(x.at(t, g)[r], row.data(), out.at(t, g), k);
        else out.at(t, g)[r] = dot(x.at(t, g), row.data(), k);
      }
    }
  store(args.out, out);
}

}  // namespace fathom::reference
