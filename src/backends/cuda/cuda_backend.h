// Backend `cuda`: one NVIDIA GPU, one stream. Ranks on several GPUs have one each (cuda_collectives.h).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "tensor/backend.h"

namespace fathom::cuda {

/// Why there is no such backend here, in the language in use ("" when there is): this build has no CUDA, the machine
/// has no driver or one that is too old, or no device.
std::string why_unavailable();

/// Device number options.device of those that CUDA_VISIBLE_DEVICES leaves, made current for the calling thread, which
/// is the one to use it. Activations are f32 (anything else: kUnsupported "cuda.activation_dtype"). Device buffers are
/// zeroed and the host cannot touch them; shared ones are pinned host memory that the device reads through its address.
/// Activations of a planned pass lie where the plan says; others are shared memory, so that tests can look at them.
/// Errors: "cuda.not_built", "cuda.no_driver", "cuda.no_device", "cuda.no_such_device", "cuda.too_old",
/// "cuda.no_cublas", "cuda.no_memory", "cuda.device_failed" (everything after a failure of the device says so).
Result<std::unique_ptr<tensor::Backend>> make_cuda_backend(const tensor::BackendOptions& options);

/// How many products and attentions of one token a backend of make_cuda_backend has launched several at a time so far
/// (stages.h); nothing where the device cannot. For tests, which otherwise would not see that they are launched apart.
std::optional<std::int64_t> stages_launched(const tensor::Backend& backend);

}  // namespace fathom::cuda
