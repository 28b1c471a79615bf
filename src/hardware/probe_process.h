// Things that may hang - a vendor's tool, a driver, a dead network mount - held to a time limit.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace fathom::hardware {

/// Runs a program found on PATH, without a shell, its input empty and its complaints dropped. Its standard output, at
/// most 1 MiB; nullopt when it cannot be started, exits with a failure, or has not finished in time (it is then
/// killed).
std::optional<std::string> run_program(const std::vector<std::string>& arguments, double seconds);

/// Calls `work` on a thread of its own. Its answer, or nullopt after `seconds`: the thread is then left behind, so
/// `work` must own all it touches.
template <class T>
std::optional<T> with_time_limit(double seconds, std::function<T()> work) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable done;
    std::optional<T> answer;
  };
  auto shared = std::make_shared<Shared>();
  try {
    std::thread([shared, work = std::move(work)] {
      T answer = work();
      const std::lock_guard lock(shared->mutex);
      shared->answer.emplace(std::move(answer));
      shared->done.notify_all();
    }).detach();
  } catch (const std::system_error&) {  // no more threads
    return std::nullopt;
  }
  std::unique_lock lock(shared->mutex);
  shared->done.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return shared->answer.has_value(); });
  return std::move(shared->answer);
}

}  // namespace fathom::hardware
