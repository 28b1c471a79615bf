// What tests of the reference's ops share.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "backends/held.h"
#include "backends/reference/reference_backend.h"

namespace fathom::test {

class ReferenceForward : public testing::Test {
 protected:
  ReferenceForward()
      : backend_(std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}))),
        ops_(backend_->ops()) {}
  std::unique_ptr<tensor::Backend> backend_;
  tensor::Ops& ops_;
};

/// Numbers without pattern, in (-1, 1).
inline double wave(std::int64_t i) { return std::sin(1.7 * static_cast<double>(i * i % 1009) + 0.3); }
inline Held waves(tensor::Shape shape, int salt = 0, DType dtype = DType::f64) {
  return Held(dtype, shape, [salt](std::int64_t i) { return wave(i + 131 * salt); });
}

}  // namespace fathom::test
