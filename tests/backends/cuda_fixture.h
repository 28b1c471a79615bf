// What tests of backend cuda's launches share: a device, tensors on it that the host can read, and comparisons.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/held.h"

namespace fathom::test {

/// Skipped where there is no device.
class CudaTest : public testing::Test {
 protected:
  using Tensor = tensor::Tensor;
  using Shape = tensor::Shape;
  using Weight = tensor::Weight;
  using WeightFormat = tensor::WeightFormat;

  void SetUp() override {
    if (const std::string why = cuda::why_unavailable(); !why.empty()) GTEST_SKIP() << why;
    auto made = cuda::make_cuda_backend({});
    ASSERT_TRUE(made.has_value()) << error_text(made.error());
    backend_ = std::move(*made);
  }
  /// In memory that host and device share, zeros.
  Tensor make(DType dtype, Shape shape) {
    auto buffer = backend_->allocate_buffer(static_cast<Bytes>(shape.elements() * dtype_bytes(dtype)),
                                            tensor::Placement::kShared);
    if (!buffer) std::abort();
    buffers_.push_back(std::move(*buffer));
    return tensor::make_tensor(buffers_.back()->data(), dtype, shape);
  }
  Tensor random(DType dtype, Shape shape, float size = 1) {
    const Tensor x = make(dtype, shape);
    std::uniform_real_distribution<float> values(-size, size);
    for (std::int64_t i = 0; i < x.elements(); ++i) {
      const float value = values(random_);
      put_element(x.data + i * dtype_bytes(dtype), dtype, value);
    }
    return x;
  }
  /// Rows of a cache; in INT8 with their scales behind them.
  Tensor random_cache(DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width) {
    if (dtype != DType::i8) return random(dtype, {rows, heads * width});
    const Tensor x = make(dtype, {rows, tensor::int8_row_bytes(heads, width)});
    std::uniform_real_distribution<float> values(-1, 1);
    std::vector<double> all(static_cast<std::size_t>(rows * heads * width));
    for (double& value : all) value = values(random_);
    put_int8_rows(x.columns(0, heads * width).split_last(width), all);
    return x;
  }
  Tensor copy_of(const Tensor& x) {
    const Tensor y = make(x.dtype, x.shape);
    std::memcpy(y.data, x.data, x.bytes());
    return y;
  }
  /// A copy that only the device reads, where weights lie.
  std::byte* on_device(const Tensor& x) {
    auto buffer = backend_->allocate_buffer(x.bytes(), tensor::Placement::kDevice);
    if (!buffer || !backend_->upload((*buffer)->data(), {x.data, x.bytes()})) std::abort();
    buffers_.push_back(std::move(*buffer));
    return buffers_.back()->data();
  }
  /// Any codes, and scales that make sums of products with values up to one about one.
  Weight weight(WeightFormat format, std::int64_t rows, std::int64_t cols) {
    if (format == WeightFormat::bf16) return weight(rows, cols);
    const tensor::WeightLayout layout = tensor::weight_layout(format);
    const auto code_bytes = static_cast<std::int64_t>(tensor::weight_row_bytes(format, cols)) * rows;
    const auto beside = static_cast<std::int64_t>(tensor::weight_scale_bytes(format, rows, cols));
    const Tensor codes = make(DType::i8, {code_bytes}), scales = make(DType::i8, {beside});
    const auto fill = [&](const Tensor& x) {
      for (std::int64_t i = 0; i < x.elements(); ++i) {
        auto byte = static_cast<std::uint8_t>(random_());
        if (layout.code == tensor::WeightCode::kE4m3) byte &= 0xb7;  // up to 0.94, no NaN
        if (layout.code == tensor::WeightCode::kInt8 && byte == 0x80) byte = 0;
        x.data[i] = static_cast<std::byte>(byte);
      }
    };
    fill(codes), fill(scales);
    const double largest = layout.code == tensor::WeightCode::kInt8    ? 127
                           : layout.code == tensor::WeightCode::kUint4 ? 8
                                                                       : 2;
    std::uniform_real_distribution<double> values(0.5, 2);
    for (std::uint64_t i = 0; i < tensor::weight_scale_count(format, rows, cols); ++i)
      put_element(scales.data + static_cast<std::int64_t>(i) * dtype_bytes(layout.scale), layout.scale,
                  values(random_) / largest / std::sqrt(static_cast<double>(cols)));
    return {.format = format, .rows = rows, .cols = cols, .data = on_device(codes), .scales = on_device(scales)};
  }
  Weight weight(std::int64_t rows, std::int64_t cols) {
    return {.format = WeightFormat::bf16,
            .rows = rows,
            .cols = cols,
            .data = on_device(random(DType::bf16, {rows, cols}, 1 / std::sqrt(static_cast<float>(cols))))};
  }
  void wait() {
    const auto done = backend_->synchronize();
    ASSERT_TRUE(done.has_value()) << error_text(done.error());
  }

  static void expect_near(const Tensor& got, const Tensor& want, double part) {
    double largest = 0, worst = 0;
    for (std::int64_t i = 0; i < want.elements(); ++i) {
      ASSERT_TRUE(std::isfinite(got.as<float>()[i]));
      largest = std::max<double>(largest, std::abs(want.as<float>()[i]));
      worst = std::max<double>(worst, std::abs(got.as<float>()[i] - want.as<float>()[i]));
    }
    EXPECT_GT(largest, 0);
    EXPECT_LE(worst, part * largest);
  }
  static bool same_bits(const Tensor& a, const Tensor& b) { return std::memcmp(a.data, b.data, a.bytes()) == 0; }

  std::unique_ptr<tensor::Backend> backend_;
  std::mt19937 random_{7};

 private:
  std::vector<std::unique_ptr<tensor::Buffer>> buffers_;
};

}  // namespace fathom::test
