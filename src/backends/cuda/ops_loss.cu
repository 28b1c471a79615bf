// Family loss: a block a token; the largest logit, then the sum of exponentials beside it.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/device_math.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int32_t kNotCounted = -100;

__global__ void cross_entropy_kernel(View<const float> logits, const std::int32_t* targets, float* losses) {
  __shared__ BlockRoom room;
  const std::int64_t vocabulary = logits.dims[1];
  for (std::int64_t t = blockIdx.x; t < logits.dims[0]; t += gridDim.x) {
    const std::int32_t target = targets[t];
    if (target == kNotCounted) {
      if (threadIdx.x == 0) losses[t] = 0.0f;
      continue;
    }
    const float* row = logits.at(t);
    float largest = -INFINITY, sum = 0.0f;
    for (std::int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) largest = larger(largest, row[i]);
    largest = block_max(largest, room);
    for (std::int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(row[i] - largest);
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) losses[t] = largest - row[target] + logf(sum);
  }
}

}  // namespace

void CudaOps::cross_entropy(const CrossEntropyArgs& args) {
  flush();
  const std::int64_t tokens = args.logits.dim(0), vocabulary = args.logits.dim(1);
  FATHOM_CHECK(args.targets.elements() == tokens && args.losses.elements() == tokens);
  FATHOM_CHECK(args.targets.dtype == DType::i32 && args.losses.dtype == DType::f32);
  if (tokens == 0) return;
  const int threads = vocabulary >= 8192 ? 1024 : 256;
  cross_entropy_kernel<<<grid_for(context_, tokens, 1), threads, 0, context_.stream>>>(view_of<const float>(args.logits), args.targets.as<std::int32_t>(),
                                                                                   args.losses.as<float>());
  context_.launched();
}

}  // namespace fathom::cuda
