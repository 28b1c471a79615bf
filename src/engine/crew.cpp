#include "engine/crew.h"

#include <atomic>
#include <chrono>
#include <new>
#include <thread>

#include "base/leaving.h"

namespace fathom::engine {
namespace {

constexpr auto kFarewell = std::chrono::seconds(5);  // that a thread has to end after a failure

/// The threads of ranks 1 …. One that hangs in its device cannot be joined: it is left behind, and ends with the
/// process.
class Threads {
 public:
  Threads() = default;
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() {
    const auto until = std::chrono::steady_clock::now() + kFarewell;
    for (Member& member : members_) {
      while (!member.done->load(std::memory_order_acquire) && std::chrono::steady_clock::now() < until)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (member.done->load(std::memory_order_acquire))
        member.thread.join();
      else
        abandon(member);
    }
  }
  template <class Body>
  void add(Body body) {
    auto done = std::make_shared<std::atomic<bool>>(false);
    members_.push_back({std::thread([body = std::move(body), done]() mutable {
                          body();
                          { const Body gone = std::move(body); }  // what it held goes before it counts as done
                          done->store(true, std::memory_order_release);
                        }),
                        done});
  }

 private:
  struct Member {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> done;
  };
  static void abandon(Member& member) {
    member.thread.detach();
    leave_at_once();  // it may use what an orderly end takes away
  }
  std::vector<Member> members_;
};

// The engine of one rank, or what kept any rank's from being made.
Result<std::unique_ptr<Engine>> take_seat(Seat seat, const PartsMaker& make) {
  tensor::Transport& transport = *seat.transport;
  auto parts = make(seat);
  FATHOM_TRY_VOID(tensor::agree(transport, parts ? Status() : Status(tl::unexpected<Error>(parts.error()))));
  return Engine::create(std::move(parts->architecture), std::move(parts->backend), std::move(parts->weights),
                        parts->options, std::move(seat), std::move(parts->offload));
}

// A rank other than 0, from its first breath to its last.
Status follow(Seat seat, const PartsMaker& make) {
  const std::shared_ptr<tensor::Transport> transport = seat.transport;
  try {
    FATHOM_TRY(const auto engine, take_seat(std::move(seat), make));
    return engine->follow();
  } catch (const std::bad_alloc&) {
    transport->fail(fail_environment("ranks.no_memory").value());
    return tl::unexpected<Error>(*transport->failure());
  }
}

}  // namespace

Result<std::unique_ptr<Engine>> start_alone(const PartsMaker& make) {
  FATHOM_TRY(EngineParts parts, make({}));
  return Engine::create(std::move(parts.architecture), std::move(parts.backend), std::move(parts.weights),
                        parts.options, {}, std::move(parts.offload));
}

Result<std::unique_ptr<Engine>> start_threads(const Spread& spread,
                                              std::vector<std::shared_ptr<tensor::Transport>> ends,
                                              const PartsMaker& make) {
  FATHOM_CHECK(static_cast<int>(ends.size()) == spread.ranks());
  if (ends.size() == 1) return start_alone(make);
  auto threads = std::make_shared<Threads>();
  for (int r = 1; r < spread.ranks(); ++r) {
    Seat seat{.spread = spread, .rank = r, .transport = std::move(ends[static_cast<std::size_t>(r)])};
    // Rank 0 hears of a failure through the transport.
    threads->add([seat = std::move(seat), make]() mutable { static_cast<void>(follow(std::move(seat), make)); });
  }
  Seat seat{.spread = spread, .rank = 0, .transport = std::move(ends[0])};
  FATHOM_TRY(auto engine, take_seat(std::move(seat), make));
  engine->keep(std::move(threads));
  return engine;
}

Result<std::unique_ptr<Engine>> start_process(const Spread& spread, std::shared_ptr<tensor::Transport> transport,
                                              const PartsMaker& make) {
  Seat seat{.spread = spread, .rank = transport->rank(), .transport = transport};
  if (seat.rank == 0) return take_seat(std::move(seat), make);
  FATHOM_TRY_VOID(follow(std::move(seat), make));
  return std::unique_ptr<Engine>();
}

}  // namespace fathom::engine
