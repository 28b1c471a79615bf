// Tensors that own their memory, for tests: made from lists or functions, read back as doubles.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "tensor/int8_rows.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace fathom::test {

inline void put_element(std::byte* at, DType dtype, double value) {
  const auto put = [&](auto typed) { std::memcpy(at, &typed, sizeof typed); };
  switch (dtype) {
    case DType::f64:
      return put(value);
    case DType::f32:
      return put(static_cast<float>(value));
    case DType::f16:
      return put(f32_to_f16(static_cast<float>(value)));
    case DType::bf16:
      return put(f32_to_bf16(static_cast<float>(value)));
    case DType::f8e4m3:
      return put(f32_to_f8e4m3(static_cast<float>(value)));
    case DType::i64:
      return put(static_cast<std::int64_t>(value));
    case DType::i32:
      return put(static_cast<std::int32_t>(value));
    default:
      FATHOM_CHECK(false, "tests do not make such elements");
  }
}

inline double get_element(const std::byte* at, DType dtype) {
  const auto get = [&](auto typed) {
    std::memcpy(&typed, at, sizeof typed);
    return typed;
  };
  switch (dtype) {
    case DType::f64:
      return get(double{});
    case DType::f32:
      return static_cast<double>(get(float{}));
    case DType::f16:
      return static_cast<double>(f16_to_f32(get(std::uint16_t{})));
    case DType::bf16:
      return static_cast<double>(bf16_to_f32(get(std::uint16_t{})));
    case DType::f8e4m3:
      return static_cast<double>(f8e4m3_to_f32(get(std::uint8_t{})));
    case DType::i64:
      return static_cast<double>(get(std::int64_t{}));
    case DType::i32:
      return static_cast<double>(get(std::int32_t{}));
    default:
      FATHOM_CHECK(false, "tests do not read such elements");
  }
}

/// The address of element `i` (row-major over the shape) of a tensor with any strides.
inline std::byte* element_address(const tensor::Tensor& x, std::int64_t i) {
  std::int64_t offset = 0;
  for (int d = x.shape.rank - 1; d >= 0; --d) {
    offset += i % x.shape[d] * x.strides[static_cast<std::size_t>(d)];
    i /= x.shape[d];
  }
  return x.data + offset * dtype_bytes(x.dtype);
}

/// A cache in INT8 (tensor/int8_rows.h): its scale of element `i`.
inline float* scale_of_element(const tensor::Tensor& x, std::int64_t i) {
  const std::int64_t row = i / x.shape[x.shape.rank - 1], heads = x.shape.rank == 3 ? x.dim(1) : 1;
  return tensor::int8_scale(x, row / heads, row % heads);
}

/// Writes a cache in INT8 from the values of its elements, row-major.
inline void put_int8_rows(const tensor::Tensor& x, const std::vector<double>& values) {
  const std::int64_t n = x.shape[x.shape.rank - 1];
  for (std::int64_t first = 0; first < x.elements(); first += n) {
    float largest = 0;
    for (std::int64_t i = first; i < first + n; ++i) {
      const auto size = static_cast<float>(std::fabs(values[static_cast<std::size_t>(i)]));
      largest = std::isfinite(size) && !std::isnan(largest) ? std::max(largest, size) : std::nanf("");
    }
    const float scale = largest == 0 ? 1.0f : largest / 127.0f;
    std::memcpy(scale_of_element(x, first), &scale, sizeof scale);
    for (std::int64_t i = first; i < first + n; ++i) {
      const float code = std::nearbyint(static_cast<float>(values[static_cast<std::size_t>(i)]) / scale);
      const auto byte = static_cast<std::int8_t>(std::isnan(code) ? 0.0f : code);
      std::memcpy(element_address(x, i), &byte, 1);
    }
  }
}

inline std::vector<double> values_of(const tensor::Tensor& x) {
  std::vector<double> out;
  if (x.dtype == DType::i8) {
    for (std::int64_t i = 0; i < x.elements(); ++i) {
      std::int8_t code = 0;
      float scale = 0;
      std::memcpy(&code, element_address(x, i), 1), std::memcpy(&scale, scale_of_element(x, i), sizeof scale);
      out.push_back(static_cast<double>(code) * static_cast<double>(scale));
    }
    return out;
  }
  for (std::int64_t i = 0; i < x.elements(); ++i) out.push_back(get_element(element_address(x, i), x.dtype));
  return out;
}

/// A dense tensor with its memory.
class Held {
 public:
  Held() = default;
  Held(
      DType dtype, tensor::Shape shape,
      const std::function<double(std::int64_t)>& value = [](std::int64_t) { return 0.0; })
      : memory_(new std::byte[static_cast<std::size_t>(shape.elements() * dtype_bytes(dtype)) + 64]),
        tensor_(tensor::make_tensor(memory_.get(), dtype, shape)) {
    for (std::int64_t i = 0; i < shape.elements(); ++i)
      put_element(memory_.get() + i * dtype_bytes(dtype), dtype, value(i));
  }
  Held(DType dtype, tensor::Shape shape, std::initializer_list<double> values)
      : Held(dtype, shape, [&](std::int64_t i) { return values.begin()[i]; }) {
    FATHOM_CHECK(static_cast<std::int64_t>(values.size()) == shape.elements());
  }
  operator const tensor::Tensor&() const { return tensor_; }  // NOLINT: used wherever a tensor is
  const tensor::Tensor& tensor() const { return tensor_; }
  tensor::Weight weight() const {
    const int last = tensor_.shape.rank - 1;
    return {.format = tensor::plain_weight_format(tensor_.dtype),
            .rows = last == 0 ? 1 : tensor_.shape[0],
            .cols = tensor_.shape[last],
            .data = tensor_.data};
  }
  std::vector<double> values() const { return values_of(tensor_); }

 private:
  std::shared_ptr<std::byte[]> memory_;
  tensor::Tensor tensor_;
};

}  // namespace fathom::test
