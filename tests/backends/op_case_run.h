// CaseRun: what the body of an op case makes its tensors with.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/op_cases.h"

namespace fathom::test {

/// Reproducible numbers (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  double uniform();  // [0, 1)
  double normal();   // mean 0, variance 1
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(n)); }

 private:
  std::uint64_t state_;
};

/// The value of element `i` (row-major).
using Fill = std::function<double(Random& random, std::int64_t i)>;
Fill normal(double scale = 1.0, double mean = 0.0);
Fill integers(std::int64_t largest);  // whole numbers in [-largest, largest]
Fill constant(double value);
Fill listed(std::vector<double> values);  // over and over
/// `base`, with some elements replaced.
Fill with(Fill base, std::vector<std::pair<std::int64_t, double>> replaced);

enum class Layout {
  kDense,       // 64-byte aligned, no gaps
  kStrided,     // gaps after every row of the two outermost dimensions
  kMisaligned,  // the same, and the address is aligned to one element only
};
inline constexpr Layout kLayouts[] = {Layout::kDense, Layout::kStrided, Layout::kMisaligned};

inline const char* name_of(Layout layout) {
  return layout == Layout::kDense ? "dense" : layout == Layout::kStrided ? "strided" : "misaligned";
}

class CaseRun {
 public:
  /// `memory` null: the heap, and ops that have finished when they return.
  CaseRun(tensor::Ops& ops, tensor::GradOps* grad, std::uint64_t seed, CaseMemory* memory = nullptr)
      : ops(ops), random(seed), grad_(grad), memory_(memory) {}

  tensor::Ops& ops;
  tensor::GradOps& grad() const {
    FATHOM_CHECK(grad_ != nullptr, "this backend does not differentiate");
    return *grad_;
  }
  Random random;

  DType activation() const { return ops.activation_dtype(); }
  /// f32, or f64 when activations are.
  DType wide() const { return activation() == DType::f64 ? DType::f64 : DType::f32; }

  tensor::Tensor input(DType dtype, tensor::Shape shape, const Fill& fill, Layout layout = Layout::kDense);
  tensor::Tensor input(tensor::Shape shape, const Fill& fill, Layout layout = Layout::kDense) {
    return input(activation(), shape, fill, layout);
  }
  tensor::Tensor ints(DType dtype, tensor::Shape shape, const std::vector<std::int64_t>& values,
                      Layout layout = Layout::kDense);
  /// Any format; values about normal · scale. Quantized ones get random bits with scales to match.
  tensor::Weight weight(tensor::WeightFormat format, std::int64_t rows, std::int64_t cols, double scale);
  tensor::Weight weight(tensor::WeightFormat format, std::int64_t rows, std::int64_t cols,
                        const Fill& fill);  // plain formats
  /// fp8_row or fp8_block128: whole numbers in [-largest, largest] (at most 16), all with this scale.
  tensor::Weight whole_weight(tensor::WeightFormat format, std::int64_t rows, std::int64_t cols, std::int64_t largest,
                              float scale);
  /// NaN (integers: a large number) until written.
  tensor::Tensor output(const std::string& name, DType dtype, tensor::Shape shape, Layout layout = Layout::kDense);
  tensor::Tensor output(const std::string& name, tensor::Shape shape, Layout layout = Layout::kDense) {
    return output(name, activation(), shape, layout);
  }
  /// Written by one op and read by another: not compared with the reference's.
  tensor::Tensor between(tensor::Shape shape);
  /// Two tensors of one type and shape that must end up with the same bits.
  void alike(const tensor::Tensor& a, const tensor::Tensor& b) { alike_.emplace_back(a, b); }
  /// Read and overwritten: in-place operands, accumulated outputs, caches.
  tensor::Tensor in_place(const std::string& name, DType dtype, tensor::Shape shape, const Fill& fill,
                          Layout layout = Layout::kDense);
  /// A batch with its device tables; ids are 0, 1, 2, … The reference stays good until the run ends.
  const tensor::Batch& batch(std::vector<tensor::Sequence> sequences);

  CaseResult finish();

 private:
  struct Free {
    void operator()(std::byte* memory) const;
    bool theirs;  // it goes with its CaseMemory; else it is from the heap
  };
  std::unique_ptr<std::byte, Free> allocate(std::size_t bytes);
  struct Block {
    std::unique_ptr<std::byte, Free> memory;
    std::vector<std::byte> before;
    std::vector<bool> writable;  // a byte
    std::string name;            // "" for inputs
    bool compared = true;
    tensor::Tensor tensor;
  };
  struct HeldBatch {
    std::vector<tensor::Sequence> sequences;
    tensor::Batch batch;
  };
  tensor::Tensor make(const std::string& name, DType dtype, tensor::Shape shape, const Fill& fill, Layout layout);
  std::byte* bytes(std::vector<std::uint8_t> values);

  tensor::GradOps* grad_;
  CaseMemory* memory_;
  std::vector<Block> blocks_;
  std::deque<HeldBatch> batches_;
  std::vector<std::pair<tensor::Tensor, tensor::Tensor>> alike_;
};

// One list a family; op_cases() joins them.
/// OpCase::format of a case whose cache is of this type: fp8_row for f8e4m3, int8_row for i8.
inline tensor::WeightFormat cache_format(DType cache) {
  return cache == DType::f8e4m3 ? tensor::WeightFormat::fp8_row
         : cache == DType::i8   ? tensor::WeightFormat::int8_row
                                : tensor::plain_weight_format(cache);
}

std::vector<OpCase> rows_cases();
std::vector<OpCase> norm_cases();
std::vector<OpCase> linear_cases();
std::vector<OpCase> rope_cases();
std::vector<OpCase> cache_cases();
std::vector<OpCase> attention_cases();
std::vector<OpCase> index_cases();
std::vector<OpCase> compress_cases();
std::vector<OpCase> expert_cases();
std::vector<OpCase> route_cases();
std::vector<OpCase> hyper_cases();
std::vector<OpCase> loss_cases();

}  // namespace fathom::test
