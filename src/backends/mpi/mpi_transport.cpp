#include "backends/mpi/mpi_transport.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <list>
#include <thread>

#include "backends/mpi/mpi_library.h"

namespace fathom::mpi {
namespace {
using tensor::Incoming;
using tensor::Outgoing;
using tensor::Patience;
using Clock = std::chrono::steady_clock;

constexpr int kData = 11, kControl = 12, kBeat = 13;      // tags
constexpr std::size_t kMostBytes = std::size_t{1} << 30;  // of one message of MPI
constexpr auto kBeatEvery = std::chrono::seconds(1);
constexpr auto kSpin = std::chrono::milliseconds(2);  // before a wait begins to sleep between looks
constexpr auto kNap = std::chrono::microseconds(100);

int environment_number(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names)
    if (const char* text = std::getenv(name); text != nullptr && *text != '\0') return std::atoi(text);
  return otherwise;
}

double seconds_since(Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); }

class MpiTransport final : public tensor::Transport {
 public:
  explicit MpiTransport(std::unique_ptr<Library> library)
      : library_(std::move(library)), peers_(static_cast<std::size_t>(library_->size())), last_beat_(Clock::now()) {
    for (int r = 0; r < size(); ++r)
      if (r != rank()) listen(r);
  }
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;
  ~MpiTransport() override {
    if (std::uncaught_exceptions() > 0) library_->abort(2);  // the others would wait for what never comes
    for (Posted& posted : posted_) {
      bool done = false;
      while (!done && library_->test(posted.request, done)) ::sched_yield();
    }
    for (Peer& peer : peers_) library_->cancel(peer.request);
    library_->finalize();
  }

  /// Ranks whose host has our name are beside us.
  Status look_for_neighbours() {
    std::vector<std::byte> name(64), all;
    ::gethostname(reinterpret_cast<char*>(name.data()), name.size() - 1);
    FATHOM_TRY(const auto names, tensor::gather(*this, name));
    for (const auto& one : names) all.insert(all.end(), one.begin(), one.end());
    FATHOM_TRY_VOID(tensor::broadcast(*this, all));
    local_rank_ = local_size_ = 0;
    for (int r = 0; r < size(); ++r) {
      if (!std::equal(name.begin(), name.end(), all.begin() + static_cast<std::ptrdiff_t>(name.size()) * r)) continue;
      local_rank_ += r < rank() ? 1 : 0;
      ++local_size_;
    }
    return {};
  }

  std::string_view name() const override { return "mpi"; }
  int size() const override { return library_->size(); }
  int rank() const override { return library_->rank(); }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  bool same_process(int other) const override { return other == rank(); }

  void beat() override {
    if (Clock::now() - last_beat_ < kBeatEvery) return;
    last_beat_ = Clock::now();
    reap();
    for (int r = 0; r < size(); ++r)
      if (r != rank()) static_cast<void>(leave(r, kBeat, {std::byte{1}}));
  }

  void fail(const Error& error) override {
    if (failure_) return;
    failure_ = tensor::rank_failed(rank(), size(), error);
    std::fflush(stdout);
    std::fprintf(stderr, "fathom: %s\n", error_text(*failure_).c_str());
    std::fflush(stderr);
    library_->abort(2);  // mpirun ends the others
  }
  std::optional<Error> failure() const override { return failure_; }

  Status exchange(std::span<const Outgoing> out, std::span<const Incoming> in) override {
    beat();
    std::vector<Waiting>& all = waiting_;
    all.clear();
    for (const Incoming& message : in)
      for (std::size_t at = 0; at < message.bytes.size(); at += kMostBytes) {
        Request request = 0;
        if (!library_->receive(message.bytes.data() + at,
                               static_cast<int>(std::min(kMostBytes, message.bytes.size() - at)), message.from, kData,
                               request))
          return broken();
        all.push_back({request, message.from});
      }
    for (const Outgoing& message : out)
      for (std::size_t at = 0; at < message.bytes.size(); at += kMostBytes) {
        Request request = 0;
        if (!library_->send(message.bytes.data() + at,
                            static_cast<int>(std::min(kMostBytes, message.bytes.size() - at)), message.to, kData,
                            request))
          return broken();
        all.push_back({request, message.to});
      }
    for (Waiting& one : all) FATHOM_TRY_VOID(wait(one.request, one.peer, Patience::kBusy));
    return {};
  }

  Status post(int to, std::vector<std::byte> bytes) override {
    beat();
    reap();
    const std::uint64_t length = bytes.size();
    std::vector<std::byte> head(sizeof length);
    std::memcpy(head.data(), &length, sizeof length);
    if (!leave(to, kControl, std::move(head)) || (length > 0 && !leave(to, kControl, std::move(bytes))))
      return broken();
    return {};
  }

  Result<std::vector<std::byte>> take(int from, Patience patience) override {
    beat();
    reap();
    std::uint64_t length = 0;
    Request request = 0;
    if (!library_->receive(&length, sizeof length, from, kControl, request)) return broken();
    FATHOM_TRY_VOID(wait(request, from, patience));
    std::vector<std::byte> bytes(length);
    if (length == 0) return bytes;
    if (!library_->receive(bytes.data(), static_cast<int>(length), from, kControl, request)) return broken();
    FATHOM_TRY_VOID(wait(request, from, patience));
    return bytes;
  }

 private:
  struct Peer {
    Request request = 0;
    std::byte beat{};
    Clock::time_point heard = Clock::now();
  };
  struct Posted {
    Request request = 0;
    std::vector<std::byte> bytes;
  };
  struct Waiting {
    Request request = 0;
    int peer = 0;
  };

  tl::unexpected<Error> broken() {
    fail(fail_environment("mpi.failed", {{"error", library_->error()}}).value());
    return tl::unexpected<Error>(*failure_);
  }

  bool leave(int to, int tag, std::vector<std::byte> bytes) {
    Posted& posted = posted_.emplace_back();
    posted.bytes = std::move(bytes);
    return library_->send(posted.bytes.data(), static_cast<int>(posted.bytes.size()), to, tag, posted.request);
  }
  void reap() {
    posted_.remove_if([&](Posted& posted) {
      bool done = false;
      return posted.request == 0 || !library_->test(posted.request, done) || done;
    });
  }
  void listen(int r) {
    Peer& peer = peers_[static_cast<std::size_t>(r)];
    static_cast<void>(library_->receive(&peer.beat, 1, r, kBeat, peer.request));
  }
  // Notes who has been heard of. One that waits for another who is alive says so in turn.
  void look_around(int awaited) {
    for (int r = 0; r < size(); ++r) {
      Peer& peer = peers_[static_cast<std::size_t>(r)];
      bool done = false;
      if (r == rank() || peer.request == 0 || !library_->test(peer.request, done) || !done) continue;
      peer.heard = Clock::now();
      listen(r);
      if (r == awaited) beat();
    }
  }

  Status wait(Request& request, int peer, Patience patience) {
    const auto begun = Clock::now();
    auto& heard = peers_[static_cast<std::size_t>(peer)].heard;
    heard = begun;
    for (int i = 0;; ++i) {
      bool done = false;
      if (!library_->test(request, done)) return broken();
      if (done) return {};
      if (i % 16 == 0) ::sched_yield();
      if (i % 256 != 0 && Clock::now() - begun < kSpin) continue;
      look_around(peer);
      reap();
      if (Clock::now() - begun >= kSpin) std::this_thread::sleep_for(kNap);
      if (patience == Patience::kIdle || seconds_since(heard) < tensor::rank_patience_seconds()) continue;
      fail(fail_environment("ranks.silent", {{"rank", std::to_string(peer)},
                                             {"ranks", std::to_string(size())},
                                             {"seconds", std::to_string(static_cast<int>(seconds_since(heard)))}})
               .value());
      return tl::unexpected<Error>(*failure_);
    }
  }

  std::unique_ptr<Library> library_;
  std::vector<Peer> peers_;
  std::list<Posted> posted_;
  std::vector<Waiting> waiting_;
  std::optional<Error> failure_;
  int local_rank_ = 0, local_size_ = 1;
  Clock::time_point last_beat_;
};

}  // namespace

bool launched() {
  // Slurm counts tasks in a batch script too, where nobody else was started; a step has its own count.
  return environment_number({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"}, 1) > 1 ||
         environment_number({"SLURM_STEP_NUM_TASKS"}, 1) > 1;
}

Result<std::shared_ptr<tensor::Transport>> make_mpi_transport() {
  FATHOM_TRY(auto library, Library::start());
  if (library->size() == 1) {
    library->finalize();
    return fail_environment("mpi.alone");
  }
  auto transport = std::make_shared<MpiTransport>(std::move(library));
  FATHOM_TRY_VOID(transport->look_for_neighbours());
  return std::shared_ptr<tensor::Transport>(std::move(transport));
}

}  // namespace fathom::mpi
