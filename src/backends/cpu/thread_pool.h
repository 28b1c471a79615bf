// ThreadPool: threads that live as long as the backend, made for many short parallel regions: they spin a while for the
// next region before they sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace fathom::cpu {

class ThreadPool {
 public:
  /// `threads` in all, the caller included. `spin` false: sleep at once, for when there are more threads than CPUs.
  ThreadPool(int threads, bool spin);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();
  int size() const { return size_; }

  /// body(thread) once on every thread, the caller being thread 0; returns when all are done. Not reentrant.
  template <class Body>
  void on_every_thread(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run([](void* context, int thread) { (*static_cast<Plain*>(context))(thread); },
        const_cast<std::remove_const_t<Plain>*>(&body));
  }

  /// body(task, thread) for every task in [0, tasks), each taken by the next free thread. One task or none stays on the
  /// caller.
  template <class Body>
  void for_each(std::int64_t tasks, Body&& body) {
    next_.store(0, std::memory_order_relaxed);
    const auto take = [&](int thread) {
      for (std::int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task, thread);
    };
    if (tasks <= 1)
      take(0);
    else
      on_every_thread(take);
  }

  /// The same with body(task, following, thread): which task this thread takes next, so that it can fetch what that
  /// needs; -1 when none is left. A task that is taken waits for its thread, so these should all take about as long.
  template <class Body>
  void for_each_ahead(std::int64_t tasks, Body&& body) {
    next_.store(0, std::memory_order_relaxed);
    const auto take = [&](int thread) {
      std::int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      while (task < tasks) {
        const std::int64_t following = next_.fetch_add(1, std::memory_order_relaxed);
        body(task, following < tasks ? following : -1, thread);
        task = following;
      }
    };
    if (tasks <= 1)
      take(0);
    else
      on_every_thread(take);
  }

 private:
  using Function = void (*)(void* context, int thread);
  void run(Function function, void* context);
  void work(int thread);
  bool wait_for(std::uint64_t region);

  const int size_;
  const int spins_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<std::uint64_t> region_{0};  // number of the region that was opened last
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

/// CPUs that this process may use: its affinity mask held against its cgroup's quota, at least 1.
int usable_cpus();

}  // namespace fathom::cpu
