// Threads for measuring: each held to a CPU, started together, timed together.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "hardware/cpu_info.h"

namespace fathom::hardware {

class Crew {
 public:
  /// One thread a place (fewer when the system gives no more). `pin`: hold each to its CPU, which a CPU quota over many
  /// CPUs forbids.
  Crew(const std::vector<CpuPlace>& places, bool pin);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  int size() const;
  int node(int thread) const;
  /// Calls work(0) … work(threads-1), each on its thread; all wait for each other before they start. Answers the
  /// seconds from the first start to the last end. `work` must not throw.
  double run(int threads, const std::function<void(int thread)>& work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fathom::hardware
