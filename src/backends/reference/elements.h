// How the reference reads and writes numbers: a tensor is copied into doubles, an equation is evaluated on the copy,
// and the result is rounded once when it is stored. Nothing here is shared with the fast backends.
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace fathom::reference {

using tensor::Shape;
using tensor::Tensor;

/// A dense copy of a tensor in doubles. Indexed from the outermost dimension; fewer indices than dimensions give a row.
struct Array {
  Shape shape;
  std::vector<double> values;

  Array() = default;
  explicit Array(Shape of) : shape(of), values(static_cast<std::size_t>(of.elements()), 0.0) {}
  std::int64_t dim(int i) const { return shape[i]; }
  double* at(std::int64_t i) { return values.data() + i * step(1); }
  double* at(std::int64_t i, std::int64_t j) { return at(i) + j * step(2); }
  double* at(std::int64_t i, std::int64_t j, std::int64_t k) { return at(i, j) + k * step(3); }
  const double* at(std::int64_t i) const { return values.data() + i * step(1); }
  const double* at(std::int64_t i, std::int64_t j) const { return at(i) + j * step(2); }
  const double* at(std::int64_t i, std::int64_t j, std::int64_t k) const { return at(i, j) + k * step(3); }

 private:
  std::int64_t step(int first) const {  // elements of one index of the dimension before `first`
    std::int64_t n = 1;
    for (int i = first; i < shape.rank; ++i) n *= shape[i];
    return n;
  }
};

/// `count` elements at `data` to doubles and back. Floats only; a store rounds to nearest even, once.
void read_elements(const std::byte* data, DType dtype, std::int64_t count, double* out);
void write_elements(std::byte* data, DType dtype, std::int64_t count, const double* values);

/// All of a float tensor, any strides; or of a cache in INT8 (tensor/int8_rows.h), which the stores below write too.
Array load(const Tensor& x);
/// One row x[i, ...] of the outermost dimension.
Array load_row(const Tensor& x, std::int64_t i);
/// All of an i32 or i64 tensor in row-major order.
std::vector<std::int64_t> load_ints(const Tensor& x);
/// out = values, and out += values (read, added, rounded once). Nothing happens when out is undefined.
void store(const Tensor& out, const Array& values);
void store_row(const Tensor& out, std::int64_t i, const double* values);
void add_to(const Tensor& out, const Array& values);
void add_to_row(const Tensor& out, std::int64_t i, const double* values);
void store_ints(const Tensor& out, const std::vector<std::int64_t>& values);

/// The sum of a[i] · b[i].
double dot(const double* a, const double* b, std::int64_t count);
/// y[i] += factor · x[i].
void add_scaled(double factor, const double* x, double* y, std::int64_t count);

double sigmoid(double x);
double silu(double x);

}  // namespace fathom::reference
