#include "backends/cuda/lost.h"

#include <atomic>
#include <cstdint>

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

}  // namespace fathom::cuda
