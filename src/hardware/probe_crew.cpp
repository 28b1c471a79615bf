#include "hardware/probe_crew.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/clock.h"

namespace fathom::hardware {

struct Crew::State {
  std::mutex mutex;
  std::condition_variable start, finish;
  std::uint64_t round = 0;
  int wanted = 0, left = 0;
  bool over = false;
  const std::function<void(int)>* work = nullptr;
  std::atomic<int> arrived{0};
  std::vector<double> began, ended;
  std::vector<CpuPlace> places;
  std::vector<std::thread> threads;

  void wait_for_the_others() {
    arrived.fetch_add(1);
    for (int spins = 0; arrived.load() < wanted; ++spins)
      if (spins > 20000) ::sched_yield();  // more threads than CPUs
  }

  void live(int index, bool pin) {
    if (pin) {
      cpu_set_t set;
      CPU_ZERO(&set);
      const int cpu = places[static_cast<std::size_t>(index)].cpu;
      if (cpu < CPU_SETSIZE) {
        CPU_SET(cpu, &set);
        ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set);  // unpinned is slower, never wrong
      }
    }
    std::uint64_t seen = 0;
    for (;;) {
      std::unique_lock lock(mutex);
      start.wait(lock, [&] { return over || round != seen; });
      if (over) return;
      seen = round;
      if (index >= wanted) continue;
      lock.unlock();
      wait_for_the_others();
      began[static_cast<std::size_t>(index)] = now_seconds();
      (*work)(index);
      ended[static_cast<std::size_t>(index)] = now_seconds();
      lock.lock();
      if (--left == 0) finish.notify_one();
    }
  }
};

Crew::Crew(const std::vector<CpuPlace>& places, bool pin) : state_(std::make_unique<State>()) {
  state_->places = places;
  if (state_->places.empty()) state_->places.push_back({});
  state_->began.resize(state_->places.size());
  state_->ended.resize(state_->places.size());
  State* state = state_.get();
  try {
    for (int i = 0; i < static_cast<int>(state_->places.size()); ++i)
      state_->threads.emplace_back([state, i, pin] { state->live(i, pin); });
  } catch (const std::system_error&) {  // no more threads: measure with those we have
  }
}

Crew::~Crew() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->over = true;
  }
  state_->start.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int Crew::size() const { return static_cast<int>(state_->threads.size()); }

int Crew::node(int thread) const { return state_->places[static_cast<std::size_t>(thread)].node; }

double Crew::run(int threads, const std::function<void(int)>& work) {
  const int count = std::min(threads, size());
  if (count <= 0) return 0;
  std::unique_lock lock(state_->mutex);
  state_->wanted = state_->left = count;
  state_->arrived = 0;
  state_->work = &work;
  ++state_->round;
  state_->start.notify_all();
  state_->finish.wait(lock, [&] { return state_->left == 0; });
  const auto n = static_cast<std::ptrdiff_t>(count);
  return *std::max_element(state_->ended.begin(), state_->ended.begin() + n) -
         *std::min_element(state_->began.begin(), state_->began.begin() + n);
}

}  // namespace fathom::hardware
