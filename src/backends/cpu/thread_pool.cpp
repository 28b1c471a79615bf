#include "backends/cpu/thread_pool.h"

#include "hardware/cpu_info.h"

namespace fathom::cpu {
namespace {

// About 0.2 ms on a recent x86 (a pause is some 40 ns there): longer than any gap between two ops of a pass.
constexpr int kSpins = 5000;
// The caller waits for the others at the end of a region. After this it lets other programs run in between.
constexpr int kSpinsBeforeYield = 20000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool spin) : size_(threads), spins_(spin ? kSpins : 0) {
  threads_.reserve(static_cast<std::size_t>(threads));
  for (int thread = 1; thread < threads; ++thread) threads_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  {
    const std::lock_guard lock(mutex_);
    region_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(Function function, void* context) {
  if (size_ == 1) return function(context, 0);
  function_ = function;
  context_ = context;
  running_.store(size_ - 1, std::memory_order_relaxed);
  region_.fetch_add(1);  // sequentially consistent, as is sleepers_: either we see a sleeper or it sees the new region
  if (sleepers_.load() > 0) {
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  function(context, 0);
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpinsBeforeYield && spins_ > 0)
      relax();
    else
      std::this_thread::yield();
  }
}

/// Until a region after `region` was opened; false when the pool is to end.
bool ThreadPool::wait_for(std::uint64_t region) {
  for (int spin = 0; spin < spins_; ++spin) {
    if (region_.load(std::memory_order_acquire) != region) return !stop_.load();
    relax();
  }
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  wake_.wait(lock, [&] { return region_.load() != region; });
  sleepers_.fetch_sub(1);
  return !stop_.load();
}

void ThreadPool::work(int thread) {
  for (std::uint64_t region = 0; wait_for(region);) {
    ++region;
    function_(context_, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

int usable_cpus() {
  const hardware::SystemFiles files("/");
  const int threads = hardware::read_cpu(files, hardware::read_cgroup(files)).usable_threads;
  return threads > 0 ? threads : 1;
}

}  // namespace fathom::cpu
