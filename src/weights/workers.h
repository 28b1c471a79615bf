// Work split over threads, with progress and a way to stop.
#pragma once
#include <atomic>
#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>

#include "base/result.h"
#include "base/units.h"

namespace fathom::weights {

/// Called about ten times a second from the thread that waits, and once at the end. Answering false stops the work,
/// which then fails with weights.interrupted.
using ProgressFn = std::function<bool(Bytes done, Bytes total)>;

/// Hands out the numbers 0 … items - 1, each once.
class WorkQueue {
 public:
  explicit WorkQueue(std::size_t items) : items_(items) {}
  /// nullopt when there is nothing more to do, or the work was stopped.
  std::optional<std::size_t> next() {
    if (stopped()) return std::nullopt;
    const std::size_t item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < items_ ? std::optional(item) : std::nullopt;
  }
  void add_done(Bytes bytes) { done_.fetch_add(bytes, std::memory_order_relaxed); }
  Bytes done() const { return done_.load(std::memory_order_relaxed); }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void stop() { stopped_.store(true, std::memory_order_relaxed); }

 private:
  const std::size_t items_;
  std::atomic<std::size_t> next_{0};
  std::atomic<Bytes> done_{0};
  std::atomic<bool> stopped_{false};
};

/// Runs `worker` on `threads` threads, which share the queue. The first failure stops the others and is returned.
/// `total` is for progress.
Status run_workers(std::size_t items, Bytes total, int threads, const ProgressFn& progress,
                   const std::function<Status(WorkQueue&)>& worker);

/// `wanted`, or as many threads as this process may run at once when it is 0; never more than `items` are useful.
int usable_threads(int wanted, std::size_t items);

}  // namespace fathom::weights
