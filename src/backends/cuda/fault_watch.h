// Which GPU it was: when one fails, those that reach its memory fail with it, all with the same error. The driver tells
// its management library (NVML) of the one where it began.
#pragma once
#include <chrono>
#include <memory>

namespace fathom::cuda {

class FaultWatch {
 public:
  virtual ~FaultWatch() = default;
  /// Watches a CUDA device from now on; null where NVML is not there or does not tell.
  static std::unique_ptr<FaultWatch> start(int device);
  /// Whether this GPU has reported a fault of its own, or does so within `patience`.
  virtual bool saw_fault(std::chrono::milliseconds patience) = 0;
};

}  // namespace fathom::cuda
