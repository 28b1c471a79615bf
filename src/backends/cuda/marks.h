// Marks: moments of a stream on the host's clock, and the same as ranges for NVIDIA's profilers.
#pragma once
#include <cuda_runtime_api.h>

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define FATHOM_NVTX 1
#else
#define FATHOM_NVTX 0
#endif

#include <cstddef>
#include <vector>

#include "backends/cuda/context.h"
#include "base/clock.h"

namespace fathom::cuda {

/// A range that a profiler shows around what a scope launches; nothing without one.
class Range {
 public:
  explicit Range(const char* name) { open(name); }
  ~Range() { close(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  static void open([[maybe_unused]] const char* name) {
#if FATHOM_NVTX
    nvtxRangePushA(name);
#endif
  }
  static void close() {
#if FATHOM_NVTX
    nvtxRangePop();
#endif
  }
};

class Marks {
 public:
  Marks() = default;
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;

  void mark(Context& context, const char* opens) {
    if (used_ == 0) {
      // Events know how far they are apart; where the first one lies is known by waiting for it.
      next(context);
      context.note(cudaEventSynchronize(events_.front()));
      zero_ = now_seconds();
    }
    next(context);
    if (opens != nullptr)
      Range::open(opens);
    else
      Range::close();
  }

  /// Of a stream that is done.
  std::vector<double> take(Context& context) {
    std::vector<double> seconds;
    for (std::size_t i = 1; i < used_ && context.error == cudaSuccess; ++i) {
      float milliseconds = 0;
      context.note(cudaEventElapsedTime(&milliseconds, events_.front(), events_[i]));
      seconds.push_back(zero_ + 1e-3 * static_cast<double>(milliseconds));
    }
    used_ = 0;
    return seconds;
  }

  void clear() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    events_.clear();
    used_ = 0;
  }

 private:
  void next(Context& context) {
    if (used_ == events_.size()) {
      cudaEvent_t event = nullptr;
      context.note(cudaEventCreate(&event));
      if (event == nullptr) return;
      events_.push_back(event);
    }
    context.note(cudaEventRecord(events_[used_++], context.stream));
  }

  std::vector<cudaEvent_t> events_;  // the first is the zero of the others; used again pass after pass
  std::size_t used_ = 0;
  double zero_ = 0;
};

}  // namespace fathom::cuda
