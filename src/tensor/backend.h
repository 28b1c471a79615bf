// Backend: one implementation of Ops with the memory that goes with it. src/backends/backends.h hands them out by name.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "base/units.h"
#include "tensor/grad_ops.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace fathom::tensor {

/// Memory that a backend can read and write: weights, caches, arenas. On hosts: anonymous pages, huge where the kernel gives
/// them (madvise), zeroed. Freed on destruction. `bytes` is exactly what was asked for.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() const = 0;
  virtual Bytes bytes() const = 0;
};

struct BackendOptions {
  int threads = 0;                        // 0: as many as this process may use
  DType activation_dtype = DType::f32;    // f64 on reference only
  std::string isa;                        // cpu: "scalar", "avx2", "avx512", "avx512_bf16", "amx"; "": the best here, or FATHOM_ISA
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  /// For people: "cpu: amx, 2 threads".
  virtual std::string description() const = 0;
  virtual Ops& ops() = 0;
  /// Null when this backend cannot differentiate.
  virtual GradOps* grad_ops() = 0;
  virtual ActivationMemory& activations() = 0;
  /// No memory, or more than the cgroup allows: kEnvironment, naming how much was asked for and how much there is.
  virtual Result<std::unique_ptr<Buffer>> allocate_buffer(Bytes bytes) = 0;
  /// Bytes of workspace that the backend keeps for kernels, given the widest shapes it was told of; part of every plan.
  virtual Bytes workspace_bytes() const = 0;
  /// Waits for everything that was launched.
  virtual void synchronize() = 0;
};

}  // namespace fathom::tensor
