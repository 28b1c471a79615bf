// The backend `cuda` of a build without CUDA: the same door, which says what is missing.
#include "backends/cuda/cuda_backend.h"

namespace fathom::cuda {

std::string why_unavailable() { return error_text(fail_unsupported("cuda.not_built").value()); }

Result<std::unique_ptr<tensor::Backend>> make_cuda_backend(const tensor::BackendOptions&) {
  return fail_unsupported("cuda.not_built");
}

std::optional<std::int64_t> stages_launched(const tensor::Backend&) { return std::nullopt; }

}  // namespace fathom::cuda
