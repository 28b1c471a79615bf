// Whether two strided views meet: decided from their strides alone, since on meta there is no memory to look at.
#include <algorithm>
#include <array>

#include "train/tape.h"

namespace fathom::train {
namespace {

/// Runs of `run` bytes at offset + sum of index_i · stride_i, index_i < count_i; strides descending.
struct Strided {
  std::int64_t offset = 0, run = 0;
  int dims = 0;
  std::array<std::int64_t, 4> count{}, stride{};

  std::int64_t span() const {  // bytes from the first to one past the last
    std::int64_t bytes = run;
    for (int i = 0; i < dims; ++i)
      bytes += (count[static_cast<std::size_t>(i)] - 1) * stride[static_cast<std::size_t>(i)];
    return bytes;
  }
  Strided inner() const {
    Strided part = *this;
    part.dims = dims - 1;
    for (int i = 0; i < part.dims; ++i) {
      part.count[static_cast<std::size_t>(i)] = count[static_cast<std::size_t>(i) + 1];
      part.stride[static_cast<std::size_t>(i)] = stride[static_cast<std::size_t>(i) + 1];
    }
    return part;
  }
};

Strided strided(const tensor::Tensor& x, const std::byte* start) {
  Strided out{.offset = x.data - start, .run = dtype_bytes(x.dtype)};
  const int last = x.shape.rank - 1;
  if (last >= 0) out.run *= x.shape[last];
  for (int i = 0; i < last; ++i) {
    if (x.shape[i] == 1) continue;
    out.count[static_cast<std::size_t>(out.dims)] = x.shape[i];
    out.stride[static_cast<std::size_t>(out.dims++)] = x.strides[static_cast<std::size_t>(i)] * dtype_bytes(x.dtype);
  }
  return out;
}

/// `x` as rows of `stride` bytes: which rows it touches, and what it is within one. False when a row's part crosses a
/// row's end.
bool split_rows(const Strided& x, std::int64_t stride, std::int64_t& first, std::int64_t& rows, Strided& within) {
  const bool has = x.dims > 0 && x.stride[0] == stride;
  within = has ? x.inner() : x;
  first = x.offset / stride;
  rows = has ? x.count[0] : 1;
  within.offset = x.offset % stride;
  return within.offset + within.span() <= stride;
}

bool meet(const Strided& a, const Strided& b) {
  if (a.offset + a.span() <= b.offset || b.offset + b.span() <= a.offset) return false;
  if (a.dims == 0 && b.dims == 0) return true;
  const std::int64_t stride = std::max(a.dims > 0 ? a.stride[0] : 0, b.dims > 0 ? b.stride[0] : 0);
  std::int64_t first_a = 0, first_b = 0, rows_a = 0, rows_b = 0;
  Strided in_a, in_b;
  if (stride <= 0 || !split_rows(a, stride, first_a, rows_a, in_a) || !split_rows(b, stride, first_b, rows_b, in_b))
    return true;
  if (first_a + rows_a <= first_b || first_b + rows_b <= first_a) return false;
  return meet(in_a, in_b);
}

}  // namespace

bool views_overlap(const tensor::Tensor& a, const tensor::Tensor& b, const std::byte* start) {
  if (a.elements() == 0 || b.elements() == 0) return false;
  return meet(strided(a, start), strided(b, start));
}

}  // namespace fathom::train
