// Family linear: products with weights of any format. A weight row is turned into doubles once.
#include <algorithm>

#include "backends/reference/dequantize.h"
#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"
#include "backends/reference/rounded.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary

void ReferenceOps::linear(const LinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), n = args.weight.rows, k = args.weight.cols;
  FATHOM_CHECK(args.x.dim(1) == k && args.out.dim(0) == tokens && args.out.dim(1) == n);
  FATHOM_CHECK(!args.bias.defined() || args.bias.elements() == n);
  Array x = load(args.x);
  round_rows(args.weight, x);
  const Array bias = args.bias.defined() ? load(args.bias) : Array(Shape{n});
  Array out = args.accumulate ? load(args.out) : Array(args.out.shape);
  std::vector<double> row(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < n && tokens > 0; ++i) {
    dequantize_row(args.weight, i, row.data());
    for (std::int64_t t = 0; t < tokens; ++t) out.at(t)[i] += dot(x.at(t), row.data(), k) + *bias.at(i);
  }
  store(args.out, out);
}

void ReferenceGradOps::linear_backward(const LinearGrad& args) {
  const std::int64_t tokens = args.f.x.dim(0), n = args.f.weight.rows, k = args.f.weight.cols;
  const Array dout = load(args.dout),
              x = args.dweight.defined() ? load(args.f.x) : Array();  // a frozen weight needs no x
  Array dx(args.f.x.shape), dbias(Shape{n});
  std::vector<double> row(static_cast<std::size_t>(k)), drow(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < n && tokens > 0; ++i) {
    dequantize_row(args.f.weight, i, row.data());
    std::fill(drow.begin(), drow.end(), 0.0);
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (args.dx.defined()) add_scaled(dout.at(t)[i], row.data(), dx.at(t), k);
      if (args.dweight.defined()) add_scaled(dout.at(t)[i], x.at(t), drow.data(), k);
      *dbias.at(i) += dout.at(t)[i];
    }
    add_to_row(args.dweight, i, drow.data());
  }
  add_to(args.dx, dx);
  add_to(args.dbias, dbias);
}

void ReferenceOps::grouped_linear(const GroupedLinearArgs& args) {
  const std::int64_t tokens = args.x.dim(0), groups = args.x.dim(1), k = args.weight.cols;
  FATHOM_CHECK(args.weight.rows == groups * args.group_rows && args.row_offset >= 0 &&
               args.row_offset + args.rows <= args.group_rows);
  FATHOM_CHECK(args.x.dim(2) == (args.transposed ? args.rows : k) && args.out.dim(0) == tokens &&
               args.out.dim(1) == groups);
  FATHOM_CHECK(args.out.dim(2) == (args.transposed ? k : args.rows));
  const Array x = load(args.x);
  Array out(args.out.shape);
  std::vector<double> row(static_cast<std::size_t>(k));
  for (std::int64_t g = 0; g < groups && tokens > 0; ++g)
    for (std::int64_t r = 0; r < args.rows; ++r) {
      dequantize_row(args.weight, g * args.group_rows + args.row_offset + r, row.data());
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (args.transposed)
          add_scaled(x.at(t, g)[r], row.data(), out.at(t, g), k);
        else
          out.at(t, g)[r] = dot(x.at(t, g), row.data(), k);
      }
    }
  store(args.out, out);
}

void ReferenceGradOps::grouped_linear_backward(const GroupedLinearGrad& args) {
  const GroupedLinearArgs& f = args.f;
  const std::int64_t tokens = f.x.dim(0), groups = f.x.dim(1), k = f.weight.cols;
  const Array dout = load(args.dout), x = args.dweight.defined() ? load(f.x) : Array();  // a frozen weight needs no x
  Array dx(f.x.shape);
  std::vector<double> row(static_cast<std::size_t>(k)), drow(static_cast<std::size_t>(k));
  for (std::int64_t g = 0; g < groups && tokens > 0; ++g)
    for (std::int64_t r = 0; r < f.rows; ++r) {
      const std::int64_t weight_row = g * f.group_rows + f.row_offset + r;
      dequantize_row(f.weight, weight_row, row.data());
      std::fill(drow.begin(), drow.end(), 0.0);
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (f.transposed) {  // out[t, g, :] = sum over r of x[t, g, r] · row
          dx.at(t, g)[r] += dot(dout.at(t, g), row.data(), k);
          if (args.dweight.defined()) add_scaled(x.at(t, g)[r], dout.at(t, g), drow.data(), k);
        } else {  // out[t, g, r] = x[t, g, :] · row
          add_scaled(dout.at(t, g)[r], row.data(), dx.at(t, g), k);
          if (args.dweight.defined()) add_scaled(dout.at(t, g)[r], x.at(t, g), drow.data(), k);
        }
      }
      add_to_row(args.dweight, weight_row, drow.data());
    }
  add_to(args.dx, dx);
}

}  // namespace fathom::reference
