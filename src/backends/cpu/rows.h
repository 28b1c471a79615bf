// Tensors as rows of floats, and loops over rows that are only spread over threads when that pays.
#pragma once
#include <algorithm>

#include "backends/cpu/thread_pool.h"
#include "tensor/tensor.h"

namespace fathom::cpu {

/// The innermost rows of a tensor of any strides, numbered in row-major order.
class RowsOfTensor {
 public:
  explicit RowsOfTensor(const tensor::Tensor& x) : x_(x), outer_(x.shape.rank - 1), n_(x.shape[x.shape.rank - 1]) {
    for (int i = 0; i < outer_; ++i) rows_ *= x.shape[i];
    bytes_ = dtype_bytes(x.dtype);
    dense_ = x.contiguous();
  }
  std::int64_t rows() const { return rows_; }
  std::int64_t n() const { return n_; }
  std::byte* at(std::int64_t row) const {
    if (dense_) return x_.data + row * n_ * bytes_;
    std::int64_t offset = 0;
    for (int i = outer_ - 1; i >= 0; --i) {
      offset += row % x_.shape[i] * x_.strides[static_cast<std::size_t>(i)];
      row /= x_.shape[i];
    }
    return x_.data + offset * bytes_;
  }
  float* floats(std::int64_t row) const { return reinterpret_cast<float*>(at(row)); }

 private:
  const tensor::Tensor& x_;
  int outer_;
  std::int64_t n_, rows_ = 1;
  std::int64_t bytes_ = 4;
  bool dense_ = false;
};

/// body(first, last, thread) over ranges that cover [0, n). `cost` is what one of the n costs in elements touched; work
/// below kWorthSharing elements stays on the caller.
inline constexpr std::int64_t kWorthSharing = 16 << 10;
template <class Body>
void for_ranges(ThreadPool& pool, std::int64_t n, std::int64_t cost, Body&& body) {
  if (n <= 0) return;
  const std::int64_t grain = std::max<std::int64_t>(1, kWorthSharing / std::max<std::int64_t>(cost, 1));
  const std::int64_t ranges = std::min((n + grain - 1) / grain, std::int64_t{4} * pool.size());
  if (ranges <= 1 || pool.size() == 1) return body(0, n, 0);
  pool.for_each(ranges,
                [&](std::int64_t range, int thread) { body(n * range / ranges, n * (range + 1) / ranges, thread); });
}

inline bool is_f32(const tensor::Tensor& x) { return x.dtype == DType::f32; }

}  // namespace fathom::cpu
