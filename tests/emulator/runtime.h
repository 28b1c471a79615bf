// What the files of the emulated CUDA runtime have in common. They are linked in the place of cudart, and define what
// the project and nvcc's host code call of it. Work runs at once, when it is asked for, and on the thread that asks:
// streams and events only keep what capturing needs. The device's own mistakes (Fault) are printed and stay, as a
// device's do: every later call reports them.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/gpu.h"

namespace fathom::emulator {

/// Keeps an error for this thread's cudaGetLastError, and returns it.
cudaError_t note(cudaError_t error);
/// What the device stopped with; cudaSuccess while it runs. The caller holds lock().
cudaError_t stopped();
/// The device stops: prints why. The caller holds lock().
cudaError_t stop(const Fault& fault);

/// A call of the runtime: `body` runs under lock() unless the device has stopped.
template <class Body>
cudaError_t call(Body&& body) {
  const std::lock_guard held(lock());
  return note(stopped() != cudaSuccess ? stopped() : body());
}

/// Something a stream does. Takes the lock itself where it needs it: host functions must not have it.
using Work = std::function<cudaError_t()>;
/// Does it now, or keeps it in the graph that the stream captures.
cudaError_t submit(cudaStream_t stream, Work work);
/// Whether any stream captures. The caller holds lock().
bool anything_captures();

/// A device's memory or pinned memory and whether a range lies within one allocation. The caller holds lock().
struct Whereabouts {
  bool registered = false;  // its first byte is in an allocation
  bool inside = false;      // and all others in the same
  Place place = Place::host;
  bool on_device() const { return registered && place == Place::device; }
};
Whereabouts whereabouts(const void* data, std::uint64_t bytes);

inline constexpr std::uint32_t kPlainShared = 48 * 1024;               // of a block, unless its kernel may have more
inline constexpr unsigned kPortableCluster = 8, kLargestCluster = 16;  // blocks

}  // namespace fathom::emulator
