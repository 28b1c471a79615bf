// What every op of the cuda backend works with. Included by .cu files; CUDA's own headers appear only in this folder.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/result.h"
#include "base/units.h"

namespace fathom::cuda {

class Blas;    // blas.h: cuBLASLt, found at run time
class Stages;  // stages.h: what one launch does for a token

/// A stretch of device memory that ops of one stream take from the front, one op after the other.
class Workspace {
 public:
  Workspace() = default;
  Workspace(std::byte* base, Bytes bytes) : base_(base), bytes_(bytes) {}
  void reset() { used_ = 0; }
  Bytes left() const { return bytes_ - used_; }
  /// Aligned to 256 bytes. Ops cut their work so that it fits.
  template <class T>
  T* take(std::int64_t count) {
    const Bytes bytes = (static_cast<Bytes>(count) * sizeof(T) + 255) / 256 * 256;
    FATHOM_CHECK(bytes <= left(), "an op asked for more workspace than there is");
    T* out = reinterpret_cast<T*>(base_ + used_);
    used_ += bytes;
    return out;
  }

 private:
  std::byte* base_ = nullptr;
  Bytes bytes_ = 0, used_ = 0;
};

inline constexpr Bytes kRoundedBytes = 96 * kMiB, kStagesBytes = 6 * kMiB;

/// How codes of e4m3 were made: a scale a row, or (stretches) a row and 128 columns; powers: of two.
struct CodesKind {
  bool stretches = false, powers = false;
  bool operator==(const CodesKind&) const = default;
};

/// The activations that a product last rounded to its weight's 16-bit type, kept for the next product of the same ones:
/// [tokens, groups, width], dense. Every other op forgets them (CudaOps::flush), for it may change what they were made
/// from; one that makes both sets them.
struct RoundedActivations {
  const float* x = nullptr;  // what they were made from; null: nothing is kept
  std::int64_t tokens = 0, groups = 0, width = 0, stride = 0, step = 0;
  DType type = DType::f32;  // f8e4m3: as tiles (codes_wide.cuh), with scales
  CodesKind kind;
  bool beside = false;  // they lie half of kRoundedBytes further on
  bool operator==(const RoundedActivations&) const = default;
};

struct Context {
  int device = 0;
  int multiprocessors = 0;
  int compute_capability = 0;    // 90 for Hopper
  std::size_t shared_bytes = 0;  // that a block may ask for
  cudaStream_t stream = nullptr;
  Workspace workspace;                     // each op calls reset() first
  unsigned* arrivals = nullptr;            // a count that is 0 between launches
  unsigned long long* meetings = nullptr;  // one more for each block of launches that wait for all of theirs
  RoundedActivations rounded;
  std::byte* rounded_data = nullptr;  // kRoundedBytes of them, right before the workspace
  DType product_type =
      DType::f32;        // the 16-bit type that a product last rounded to: what the next will want; f32: none yet
  CodesKind codes_kind;  // of f8e4m3
  Blas* blas = nullptr;
  Stages* stages = nullptr;
  /// The first error that a launch or the runtime reported; later calls keep it. Backend::synchronize tells it.
  cudaError_t error = cudaSuccess;
  /// While `rounded` lies beside: what it was made from, which may lie in the first place yet.
  RoundedActivations rounded_before;
  void note(cudaError_t result) {
    if (error == cudaSuccess) error = result;
  }
  /// After every launch.
  void launched() { note(cudaPeekAtLastError()); }
};

/// Launches the stages that have been gathered. Every launch comes after that: launch_early and clusters see to it, who
/// launches otherwise does.
void close_stages(Context& context);

}  // namespace fathom::cuda
