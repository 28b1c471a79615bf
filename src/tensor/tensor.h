// Tensor: a typed, strided view of memory that somebody else owns. Value: one that owns its place in an arena.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "base/dtype.h"
#include "base/result.h"

namespace fathom::tensor {

/// Up to four dimensions, outermost first.
struct Shape {
  int rank = 0;
  std::array<std::int64_t, 4> dims{};
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> list) {
    FATHOM_CHECK(list.size() <= 4);
    for (const std::int64_t dim : list) dims[static_cast<std::size_t>(rank++)] = dim;
  }
  std::int64_t elements() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[static_cast<std::size_t>(i)];
    return n;
  }
  std::int64_t operator[](int i) const { return dims[static_cast<std::size_t>(i)]; }
  bool operator==(const Shape&) const = default;
};

/// A view: never owns. Strides are in elements; the innermost is 1. `root` names the allocation that the view lies in
/// (0: none, e.g. a weight or the caller's own memory), so that the tape can find the gradient of a view.
/// On the meta backend `data` is an address in an arena that does not exist and is never followed.
struct Tensor {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  std::array<std::int64_t, 4> strides{};
  std::uint32_t root = 0;

  bool defined() const { return shape.rank > 0; }
  std::int64_t dim(int i) const { return shape[i]; }
  std::int64_t elements() const { return shape.elements(); }
  bool contiguous() const;
  std::uint64_t bytes() const {
    return static_cast<std::uint64_t>(elements()) * static_cast<std::uint64_t>(dtype_bytes(dtype));
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }

  /// Rows [first, first + count) of the outermost dimension.
  Tensor rows(std::int64_t first, std::int64_t count) const;
  /// Elements [first, first + count) of the innermost dimension.
  Tensor columns(std::int64_t first, std::int64_t count) const;
  /// The innermost dimension split in two: [..., a*b] -> [..., a, b].
  Tensor split_last(std::int64_t inner) const;
  /// The two innermost dimensions joined; they must lie densely: [..., a, b] -> [..., a*b].
  Tensor join_last() const;
  /// The two outermost dimensions joined; the outer stride must be inner dim × inner stride: [a, b, ...] -> [a*b, ...].
  Tensor join_first() const;
};

/// A dense view over memory of the caller.
Tensor make_tensor(void* data, DType dtype, Shape shape);
std::string describe(const Tensor& tensor);  // "[4, 16, 64] bf16"

class Ops;

/// An activation: allocated by an Ops, given back to it on destruction. Move-only.
class Value {
 public:
  Value() = default;
  Value(Ops& ops, Tensor tensor) : ops_(&ops), tensor_(tensor) {}
  Value(Value&& other) noexcept : ops_(std::exchange(other.ops_, nullptr)), tensor_(std::exchange(other.tensor_, {})) {}
  Value& operator=(Value&& other) noexcept;
  ~Value() { reset(); }
  void reset();
  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }  // NOLINT: a Value is used wherever a Tensor is read
  const Tensor* operator->() const { return &tensor_; }
  bool defined() const { return tensor_.defined(); }

 private:
  Ops* ops_ = nullptr;
  Tensor tensor_;
};

}  // namespace fathom::tensor
