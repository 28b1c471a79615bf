#include "backends/threads/threads_transport.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

namespace fathom::threads {
namespace {
using tensor::Incoming;
using tensor::Outgoing;
using tensor::Patience;
using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::milliseconds(50);  // how often a waiting rank looks whether the others are alive

/// From one rank to another: a message that lies at the sender's until it is taken, and those that were posted.
struct Box {
  enum State : int { kEmpty, kFull, kTaking };
  std::atomic<int> state{kEmpty};
  std::span<const std::byte> bytes;
  std::atomic<int> posted{0};
  std::deque<std::vector<std::byte>> posts;  // under the mutex
};

struct Room {
  explicit Room(int n)
      : size(n),
        boxes(static_cast<std::size_t>(n) * static_cast<std::size_t>(n)),
        beats(static_cast<std::size_t>(n)),
        waits(static_cast<std::size_t>(n)) {
    for (auto& peer : waits) peer = -1;
  }
  const int size;
  std::vector<Box> boxes;  // [from, to]
  std::vector<std::atomic<std::uint64_t>> beats;
  std::vector<std::atomic<int>> waits;  // for whom each rank waits; -1: it works
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Error> failure;  // under the mutex
  // Spinning pays where every rank has a processor of its own.
  const bool spin = std::thread::hardware_concurrency() >= static_cast<unsigned>(2 * size);

  Box& box(int from, int to) {
    return boxes[static_cast<std::size_t>(from) * static_cast<std::size_t>(size) + static_cast<std::size_t>(to)];
  }
  std::atomic<std::uint64_t>& beat(int rank) { return beats[static_cast<std::size_t>(rank)]; }
  /// Who holds up those that wait for `rank`: it, or whom it waits for in turn.
  int culprit(int rank) const {
    for (int step = 0; step < size; ++step) {
      const int next = waits[static_cast<std::size_t>(rank)].load(std::memory_order_relaxed);
      if (next < 0) break;
      rank = next;
    }
    return rank;
  }
  void wake() {
    { const std::lock_guard lock(mutex); }  // whoever is about to sleep has looked already, or will see it
    changed.notify_all();
  }
  void fail(const Error& error) {
    {
      const std::lock_guard lock(mutex);
      if (!failure) failure = error;
      failed.store(true, std::memory_order_release);
    }
    changed.notify_all();
  }
};

class ThreadTransport final : public tensor::Transport {
 public:
  ThreadTransport(std::shared_ptr<Room> room, int rank) : room_(std::move(room)), rank_(rank) {}
  ThreadTransport(const ThreadTransport&) = delete;
  ThreadTransport& operator=(const ThreadTransport&) = delete;
  ~ThreadTransport() override {
    room_->fail(tensor::rank_failed(rank_, size(), fathom::fail_environment("ranks.left").value()));
  }

  std::string_view name() const override { return "threads"; }
  int size() const override { return room_->size; }
  int rank() const override { return rank_; }
  int local_rank() const override { return rank_; }
  int local_size() const override { return room_->size; }
  bool same_process(int) const override { return true; }
  void beat() override { room_->beat(rank_).fetch_add(1, std::memory_order_relaxed); }
  void fail(const Error& error) override { room_->fail(tensor::rank_failed(rank_, size(), error)); }
  std::optional<Error> failure() const override {
    if (!room_->failed.load(std::memory_order_acquire)) return std::nullopt;
    const std::lock_guard lock(room_->mutex);
    return room_->failure;
  }

  Status exchange(std::span<const Outgoing> out, std::span<const Incoming> in) override {
    beat();
    if (room_->failed.load(std::memory_order_acquire)) return broken();
    for (const Outgoing& message : out) {
      Box& box = room_->box(rank_, message.to);
      FATHOM_CHECK(box.state.load(std::memory_order_acquire) == Box::kEmpty, "a message before the last one was taken");
      box.bytes = message.bytes;
      box.state.store(Box::kFull, std::memory_order_release);
    }
    if (!out.empty()) room_->wake();
    const Status status = deliver(out, in);
    if (!status)
      for (const Outgoing& message : out) retract(room_->box(rank_, message.to));
    return status;
  }

  Status post(int to, std::vector<std::byte> bytes) override {
    beat();
    if (room_->failed.load(std::memory_order_acquire)) return broken();
    Box& box = room_->box(rank_, to);
    {
      const std::lock_guard lock(room_->mutex);
      box.posts.push_back(std::move(bytes));
      box.posted.fetch_add(1, std::memory_order_release);
    }
    room_->changed.notify_all();
    return {};
  }

  Result<std::vector<std::byte>> take(int from, Patience patience) override {
    beat();
    Box& box = room_->box(from, rank_);
    FATHOM_TRY_VOID(wait([&] { return box.posted.load(std::memory_order_acquire) > 0; }, from, patience));
    const std::lock_guard lock(room_->mutex);
    std::vector<std::byte> bytes = std::move(box.posts.front());
    box.posts.pop_front();
    box.posted.fetch_sub(1, std::memory_order_relaxed);
    return bytes;
  }

 private:
  Status deliver(std::span<const Outgoing> out, std::span<const Incoming> in) {
    for (const Incoming& message : in) {
      Box& box = room_->box(message.from, rank_);
      FATHOM_TRY_VOID(
          wait([&] { return box.state.load(std::memory_order_acquire) == Box::kFull; }, message.from, Patience::kBusy));
      int full = Box::kFull;
      if (!box.state.compare_exchange_strong(full, Box::kTaking, std::memory_order_acq_rel))
        return broken();  // retracted after a failure
      FATHOM_CHECK(box.bytes.size() == message.bytes.size(), "sender and receiver mean messages of different length");
      std::memcpy(message.bytes.data(), box.bytes.data(), message.bytes.size());
      box.state.store(Box::kEmpty, std::memory_order_release);
      room_->wake();
    }
    for (const Outgoing& message : out) {
      const Box& box = room_->box(rank_, message.to);
      FATHOM_TRY_VOID(
          wait([&] { return box.state.load(std::memory_order_acquire) == Box::kEmpty; }, message.to, Patience::kBusy));
    }
    return {};
  }

  // After a failure: the bytes may go once nobody reads them.
  static void retract(Box& box) {
    int full = Box::kFull;
    if (box.state.compare_exchange_strong(full, Box::kEmpty, std::memory_order_acq_rel)) return;
    while (box.state.load(std::memory_order_acquire) == Box::kTaking) std::this_thread::yield();
  }

  Status broken() const { return tl::unexpected<Error>(*failure()); }

  // Until what `peer` has to do is done.
  template <class There>
  Status wait(const There& there, int peer, Patience patience) {
    for (int i = 0; i < (room_->spin ? 20000 : 200); ++i) {
      if (there()) return {};
      if (room_->failed.load(std::memory_order_acquire)) return broken();
      if (!room_->spin) std::this_thread::yield();
    }
    room_->waits[static_cast<std::size_t>(rank_)].store(peer, std::memory_order_relaxed);
    const Status status = sleep(there, peer, patience);
    room_->waits[static_cast<std::size_t>(rank_)].store(-1, std::memory_order_relaxed);
    return status;
  }

  template <class There>
  Status sleep(const There& there, int peer, Patience patience) {
    auto heard = Clock::now();
    int culprit = peer;
    std::uint64_t last = 0;
    for (;;) {
      {
        std::unique_lock lock(room_->mutex);
        room_->changed.wait_for(lock, kLook, [&] { return room_->failed.load(std::memory_order_relaxed) || there(); });
      }
      if (there()) return {};
      if (room_->failed.load(std::memory_order_acquire)) return broken();
      const int who = room_->culprit(peer);
      const std::uint64_t now = room_->beat(who).load(std::memory_order_relaxed);
      if (now != last || who != culprit || patience == Patience::kIdle) {
        last = now;
        culprit = who;
        heard = Clock::now();
        continue;
      }
      const double silent = std::chrono::duration<double>(Clock::now() - heard).count();
      if (silent < tensor::rank_patience_seconds()) continue;
      room_->fail(fathom::fail_environment("ranks.silent", {{"rank", std::to_string(culprit)},
                                                            {"ranks", std::to_string(size())},
                                                            {"seconds", std::to_string(static_cast<int>(silent))}})
                      .value());
      return broken();
    }
  }

  std::shared_ptr<Room> room_;
  const int rank_;
};

}  // namespace

std::vector<std::shared_ptr<tensor::Transport>> make_thread_transports(int ranks) {
  FATHOM_CHECK(ranks >= 1);
  auto room = std::make_shared<Room>(ranks);
  std::vector<std::shared_ptr<tensor::Transport>> ends;
  for (int r = 0; r < ranks; ++r) ends.push_back(std::make_shared<ThreadTransport>(room, r));
  return ends;
}

}  // namespace fathom::threads
