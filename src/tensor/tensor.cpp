#include "tensor/tensor.h"

#include <fmt/format.h>

#include "tensor/ops.h"

namespace fathom::tensor {
namespace {
std::array<std::int64_t, 4> dense_strides(const Shape& shape) {
  std::array<std::int64_t, 4> strides{};
  std::int64_t step = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    strides[static_cast<std::size_t>(i)] = step;
    step *= shape[i];
  }
  return strides;
}
}  // namespace

bool Tensor::contiguous() const { return strides == dense_strides(shape); }

Tensor make_tensor(void* data, DType dtype, Shape shape) {
  return {.data = static_cast<std::byte*>(data),
          .dtype = dtype,
          .shape = shape,
          .strides = dense_strides(shape),
          .root = 0};
}

Tensor Tensor::rows(std::int64_t first, std::int64_t count) const {
  FATHOM_CHECK(shape.rank >= 1 && first >= 0 && count >= 0 && first + count <= shape[0]);
  Tensor view = *this;
  view.shape.dims[0] = count;
  view.data += first * strides[0] * dtype_bytes(dtype);
  return view;
}

Tensor Tensor::columns(std::int64_t first, std::int64_t count) const {
  FATHOM_CHECK(shape.rank >= 1 && first >= 0 && count >= 0 && first + count <= shape[shape.rank - 1]);
  Tensor view = *this;
  view.shape.dims[static_cast<std::size_t>(shape.rank - 1)] = count;
  view.data += first * dtype_bytes(dtype);
  return view;
}

Tensor Tensor::split_last(std::int64_t inner) const {
  FATHOM_CHECK(shape.rank >= 1 && shape.rank < 4 && inner > 0 && shape[shape.rank - 1] % inner == 0);
  Tensor view = *this;
  const auto last = static_cast<std::size_t>(shape.rank - 1);
  view.shape.rank = shape.rank + 1;
  view.shape.dims[last] = shape.dims[last] / inner;
  view.shape.dims[last + 1] = inner;
  view.strides[last] = inner;
  view.strides[last + 1] = 1;
  return view;
}

Tensor Tensor::join_last() const {
  FATHOM_CHECK(shape.rank >= 2);
  const auto last = static_cast<std::size_t>(shape.rank - 1);
  FATHOM_CHECK(strides[last] == 1 && (strides[last - 1] == shape.dims[last] || shape.dims[last - 1] == 1));
  Tensor view = *this;
  view.shape.rank = shape.rank - 1;
  view.shape.dims[last - 1] = shape.dims[last - 1] * shape.dims[last];
  view.shape.dims[last] = 0;
  view.strides[last - 1] = 1;
  view.strides[last] = 0;
  return view;
}

Tensor Tensor::join_first() const {
  FATHOM_CHECK(shape.rank >= 2 && strides[0] == shape[1] * strides[1]);
  Tensor view = *this;
  view.shape.rank = shape.rank - 1;
  view.shape.dims[0] = shape[0] * shape[1];
  view.strides[0] = strides[1];
  for (std::size_t i = 1; i + 1 < 4; ++i) {
    view.shape.dims[i] = shape.dims[i + 1];
    view.strides[i] = strides[i + 1];
  }
  view.shape.dims[3] = 0;
  view.strides[3] = 0;
  return view;
}

std::string describe(const Tensor& tensor) {
  std::string out = "[";
  for (int i = 0; i < tensor.shape.rank; ++i) out += fmt::format("{}{}", i > 0 ? ", " : "", tensor.shape[i]);
  return out + "] " + std::string(dtype_name(tensor.dtype));
}

Value& Value::operator=(Value&& other) noexcept {
  if (this != &other) {
    reset();
    ops_ = std::exchange(other.ops_, nullptr);
    tensor_ = std::exchange(other.tensor_, {});
  }
  return *this;
}

void Value::reset() {
  if (ops_ != nullptr) ops_->release(tensor_);
  ops_ = nullptr;
  tensor_ = {};
}

}  // namespace fathom::tensor
