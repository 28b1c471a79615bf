#include "weights/workers.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fathom::weights {
namespace {

// The threads of one run_workers call, and what they came to.
class Crew {
 public:
  Crew(WorkQueue& queue, const std::function<Status(WorkQueue&)>& worker) : queue_(queue), worker_(worker) {}
  ~Crew() {
    for (std::thread& thread : threads_) thread.join();
  }

  // As many of `count` as the system gives; false when it gives none.
  bool start(int count) {
    for (int i = 0; i < count; ++i) {
      {
        const std::lock_guard lock(mutex_);
        ++running_;
      }
      try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        const std::lock_guard lock(mutex_);
        --running_;
        return !threads_.empty();
      }
    }
    return true;
  }

  // Waits a moment; true when all are done.
  bool wait(std::chrono::milliseconds moment) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, moment, [this] { return running_ == 0; });
  }

  void finish(Status status) {
    const std::lock_guard lock(mutex_);
    if (!status) {
      if (status_) status_ = std::move(status);
      queue_.stop();
    }
    --running_;
    changed_.notify_all();
  }

  Status status() {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  void work() {
    Status status;
    try {
      status = worker_(queue_);
    } catch (const std::bad_alloc&) {
      status = fail_environment("weights.no_memory");
    }
    finish(std::move(status));
  }

  WorkQueue& queue_;
  const std::function<Status(WorkQueue&)>& worker_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int running_ = 0;
  Status status_;
};

}  // namespace

Status run_workers(std::size_t items, Bytes total, int threads, const ProgressFn& progress,
                   const std::function<Status(WorkQueue&)>& worker) {
  WorkQueue queue(items);
  Crew crew(queue, worker);
  bool interrupted = false;
  if (!crew.start(threads)) return fail_environment("weights.no_threads");
  while (!crew.wait(std::chrono::milliseconds(100))) {
    if (!interrupted && progress && !progress(queue.done(), total)) {
      interrupted = true;
      queue.stop();
    }
  }
  FATHOM_TRY_VOID(crew.status());
  if (interrupted || (progress && !progress(queue.done(), total))) return fail_environment("weights.interrupted");
  return {};
}

int usable_threads(int wanted, std::size_t items) {
  cpu_set_t set;
  CPU_ZERO(&set);
  int available = 1;
  if (::sched_getaffinity(0, sizeof set, &set) == 0)
    available = CPU_COUNT(&set);
  else
    available = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = wanted > 0 ? wanted : std::max(available, 1);
  return static_cast<int>(std::clamp<std::size_t>(items, 1, static_cast<std::size_t>(threads)));
}

}  // namespace fathom::weights
