// Workspace: what kernels need beside activations, taken once when the backend is made. Ops cut their work so that it
// fits, so its size depends on the number of threads alone and is known to every plan.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backends/cpu/host_buffer.h"
#include "base/units.h"

namespace fathom::cpu {

inline constexpr Bytes kSharedWorkspaceBytes = 16 * kMiB;
inline constexpr Bytes kThreadWorkspaceBytes = 2 * kMiB;

/// A stretch of memory handed out from the front. Not thread-safe; each thread has its own.
class Scratch {
 public:
  Scratch() = default;
  Scratch(std::byte* base, std::size_t bytes) : base_(base), bytes_(bytes) {}
  void reset() { used_ = 0; }
  std::size_t left() const { return bytes_ - used_; }
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    FATHOM_CHECK(bytes <= left(), "an op asked for more workspace than there is");
    T* out = reinterpret_cast<T*>(base_ + used_);
    used_ += bytes;
    return out;
  }
  /// Gives back everything taken since `mark`, an earlier answer of used().
  std::size_t used() const { return used_; }
  void rewind(std::size_t mark) { used_ = mark; }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0, used_ = 0;
};

class Workspace {
 public:
  static constexpr Bytes bytes_for(int threads) {
    return kSharedWorkspaceBytes + static_cast<Bytes>(threads) * kThreadWorkspaceBytes;
  }
  static Result<Workspace> make(int threads);
  Scratch& shared() { return shared_; }
  Scratch& of(int thread) { return threads_[static_cast<std::size_t>(thread)]; }
  Bytes bytes() const { return buffer_->bytes(); }

 private:
  std::unique_ptr<tensor::Buffer> buffer_;
  Scratch shared_;
  std::vector<Scratch> threads_;
};

}  // namespace fathom::cpu
