// Family loss: cross entropy.
#include <cmath>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {
constexpr std::int64_t kNotCounted = -100;
constexpr std::int64_t kLossColumns = 4096;  // of a row of logits whose exponentials are looked at together
}  // namespace

void CpuOps::cross_entropy(const CrossEntropyArgs& args) {
  const std::int64_t tokens = args.logits.dim(0), vocabulary = args.logits.dim(1);
  FATHOM_CHECK(args.targets.elements() == tokens && args.losses.elements() == tokens && is_f32(args.logits) &&
               is_f32(args.losses));
  FATHOM_CHECK(args.targets.dtype == DType::i32);
  const RowsOfTensor logits(args.logits);
  for_ranges(context_.pool, tokens, 4 * vocabulary, [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t t = first; t < last; ++t) {
      const std::int64_t target = args.targets.as<std::int32_t>()[t * args.targets.strides[0]];
      float& loss = args.losses.as<float>()[t * args.losses.strides[0]];
      loss = 0;
      if (target == kNotCounted) continue;
      FATHOM_CHECK(target >= 0 && target < vocabulary, "a target outside the vocabulary");
      const float* row = logits.floats(t);
      float* ignored = fresh(thread).take<float>(kLossColumns);
      const float largest = context_.kernels.largest(row, vocabulary);
      double sum = 0;
      for (std::int64_t i = 0; i < vocabulary; i += kLossColumns)
        sum += context_.kernels.exponentials(row + i, 1.0f, largest, ignored, std::min(kLossColumns, vocabulary - i));
      loss = static_cast<float>(largest + std::log(sum) - row[target]);
    }
  });
}

}  // namespace fathom::cpu
