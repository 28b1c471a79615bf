// Collectives on device memory: small sums by direct peer access, everything else by NCCL, all on the backend's stream,
// so that a recorded pass holds them too.
#pragma once
#include <functional>
#include <memory>
#include <optional>

#include "backends/cuda/cuda_ops.h"
#include "tensor/collectives.h"
#include "tensor/transport.h"

namespace fathom::cuda {

class CudaCollectives : public tensor::Collectives {
 public:
  /// All ranks make it together, each with the device of its context current. Sums are of f32. Errors: "cuda.no_nccl",
  /// "cuda.nccl_failed", "cuda.no_memory".
  static Result<std::unique_ptr<CudaCollectives>> make(Context& context, CudaOps& ops,
                                                       std::shared_ptr<tensor::Transport> transport,
                                                       const tensor::GroupMembers& members);
  /// Device memory that it holds.
  virtual Bytes bytes() const = 0;
  /// Whether what was launched may still come to an end: false once another rank failed or a wait took too long; then
  /// it has been cut off, and status() says why.
  virtual bool hopeful(double waited_seconds) = 0;
  /// Whether something is known to be wrong. Who failed tells within a moment; until then hopeful() is true.
  virtual bool troubled() = 0;
  /// After this rank's device failed: what another rank says of its own, where that was the first to fail. May wait a
  /// moment for it.
  virtual std::optional<Error> first_to_fail() = 0;
  /// Called before it ends: recordings that hold its launches must go first.
  std::function<void()> before_end;
};

}  // namespace fathom::cuda
