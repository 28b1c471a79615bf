#include "backends/cuda/lost.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "base/leaving.h"

namespace fathom::cuda {
namespace {
std::atomic<std::uint64_t> lost{0};  // a bit a device; those beyond share the last
std::uint64_t bit_of(int device) { return std::uint64_t{1} << (device < 63 ? device : 63); }
}  // namespace

void mark_lost(int device) {
  lost.fetch_or(bit_of(device));
  leave_at_once();
}
bool is_lost(int device) { return (lost.load() & bit_of(device)) != 0; }

void find_lost(int device, cudaStream_t stream) {
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::seconds(2);
  while (cudaStreamQuery(stream) == cudaErrorNotReady) {
    if (Clock::now() > until) return mark_lost(device);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace fathom::cuda
