// Ranks whose devices are behind their hosts: what a host that fails leaves under way keeps neither the others nor
// anybody's memory waiting.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "backends/threads/threads_transport.h"
#include "engine/crew.h"
#include "engine/generate.h"
#include "support.h"
#include "support/stand_in.h"

namespace fathom::engine {
namespace {
using namespace test;  // NOLINT
using tensor::Group;
using tensor::Tensor;

constexpr auto kTooLong = std::chrono::seconds(10);  // to wait for what is over

/// What the devices of a run have done: a sum ends when every rank has launched it, however long that takes, and those
/// after it wait. A rank that is cut off waits for nothing.
class Meeting {
 public:
  explicit Meeting(int ranks) : launched_(static_cast<std::size_t>(ranks)), cut_(static_cast<std::size_t>(ranks)) {}
  void launch(int rank) {
    const std::lock_guard lock(mutex_);
    ++launched_[static_cast<std::size_t>(rank)];
    changed_.notify_all();
  }
  std::uint64_t launched(int rank) {
    const std::lock_guard lock(mutex_);
    return launched_[static_cast<std::size_t>(rank)];
  }
  void cut(int rank) {
    const std::lock_guard lock(mutex_);
    cut_[static_cast<std::size_t>(rank)] = true;
  }
  /// Whether this rank's first `count` sums are done after a moment at most.
  bool done(int rank, std::uint64_t count, std::chrono::milliseconds moment) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, moment, [&] {
      return cut_[static_cast<std::size_t>(rank)] || *std::min_element(launched_.begin(), launched_.end()) >= count;
    });
  }
  /// What cannot end before this rank's device has: giving memory back, for one.
  void drain(int rank) {
    if (!stuck && !done(rank, launched(rank), kTooLong)) stuck = true;
  }
  std::atomic<bool> stuck = false;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::uint64_t> launched_;
  std::vector<bool> cut_;
};

/// One rank's sums: launched, not made, for the numbers do not matter here.
class LateSums final : public tensor::Collectives {
 public:
  LateSums(Meeting& meeting, std::shared_ptr<tensor::Transport> transport, tensor::GroupMembers members)
      : meeting_(meeting), transport_(std::move(transport)), members_(std::move(members)) {}
  LateSums(const LateSums&) = delete;
  LateSums& operator=(const LateSums&) = delete;
  /// As those of GPUs: in order, but for a run that failed, whose waiting ends here.
  ~LateSums() override {
    if (transport_->failure()) meeting_.cut(transport_->rank());
    meeting_.drain(transport_->rank());
  }
  int size(Group group) const override { return std::max(static_cast<int>(members_.of(group).size()), 1); }
  int rank(Group group) const override {
    const std::vector<int>& ranks = members_.of(group);
    return ranks.empty() ? 0
                         : static_cast<int>(std::find(ranks.begin(), ranks.end(), transport_->rank()) - ranks.begin());
  }
  void all_reduce(Group group, const Tensor&) override { launch(group); }
  void all_gather(Group group, const Tensor& x, const Tensor& out) override {
    launch(group);
    for (int r = 0; r < size(group); ++r) std::memmove(out.data + static_cast<Bytes>(r) * x.bytes(), x.data, x.bytes());
  }
  void all_gather_rows(Group group, const Tensor& x, std::span<const std::int64_t>, const Tensor& out) override {
    launch(group);
    std::memset(out.data, 0, out.bytes());
    std::memmove(out.data, x.data, x.bytes());
  }
  void reduce_scatter(Group, const Tensor&, const Tensor&) override { FATHOM_CHECK(false); }
  void all_to_all(Group, const Tensor&, const Tensor&) override { FATHOM_CHECK(false); }
  void send(Group, int, const Tensor&) override { FATHOM_CHECK(false); }
  void receive(Group, int, const Tensor&) override { FATHOM_CHECK(false); }
  Status status() override {
    if (const auto told = transport_->failure()) return tl::unexpected<Error>(*told);
    return {};
  }

 private:
  void launch(Group group) {
    if (size(group) > 1) meeting_.launch(transport_->rank());
  }
  Meeting& meeting_;
  std::shared_ptr<tensor::Transport> transport_;
  tensor::GroupMembers members_;
};

/// Memory that is not given back while the device may use it.
class LateBuffer final : public tensor::Buffer {
 public:
  LateBuffer(std::unique_ptr<Buffer> inner, std::shared_ptr<Meeting> meeting, int rank)
      : inner_(std::move(inner)), meeting_(std::move(meeting)), rank_(rank) {}
  LateBuffer(const LateBuffer&) = delete;
  LateBuffer& operator=(const LateBuffer&) = delete;
  ~LateBuffer() override { meeting_->drain(rank_); }
  std::byte* data() const override { return inner_->data(); }
  Bytes bytes() const override { return inner_->bytes(); }

 private:
  std::unique_ptr<Buffer> inner_;
  std::shared_ptr<Meeting> meeting_;
  int rank_;
};

/// Runs ahead; who waits for it waits for its sums, and looks whether the run failed meanwhile.
class LateDevice final : public fathom::test::StandIn {
 public:
  LateDevice(std::unique_ptr<Backend> inner, std::shared_ptr<Meeting> meeting,
             std::shared_ptr<tensor::Transport> transport)
      : StandIn(std::move(inner), true),
        meeting_(std::move(meeting)),
        transport_(std::move(transport)),
        rank_(transport_->rank()) {}
  Result<std::unique_ptr<tensor::Buffer>> allocate_buffer(Bytes bytes, tensor::Placement placement) override {
    FATHOM_TRY(auto buffer, inner().allocate_buffer(bytes, placement));
    return std::make_unique<LateBuffer>(std::move(buffer), meeting_, rank_);
  }
  Result<std::unique_ptr<tensor::Collectives>> make_collectives(std::shared_ptr<tensor::Transport> transport,
                                                                const tensor::GroupMembers& members) override {
    return std::make_unique<LateSums>(*meeting_, std::move(transport), members);
  }
  void remember(int moment) override {
    moments_[static_cast<std::size_t>(moment)] = meeting_->launched(rank_);
    StandIn::remember(moment);
  }
  Status await_moment(int moment) override {
    FATHOM_TRY_VOID(await(moments_[static_cast<std::size_t>(moment)]));
    return StandIn::await_moment(moment);
  }
  Status synchronize() override {
    FATHOM_TRY_VOID(await(meeting_->launched(rank_)));
    return StandIn::synchronize();
  }

 private:
  Status await(std::uint64_t count) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::duration<double>(tensor::rank_patience_seconds());
    for (;;) {
      const auto told = transport_->failure();  // asked first: what a rank launched before it failed counts
      if (meeting_->done(rank_, count, std::chrono::milliseconds(told ? 0 : 5))) return {};
      if (told) {
        meeting_->cut(rank_);
        return tl::unexpected<Error>(*told);
      }
      if (Clock::now() > until) return fail_environment("ranks.gpus_stuck", {{"seconds", "15"}});
    }
  }
  std::shared_ptr<Meeting> meeting_;
  std::shared_ptr<tensor::Transport> transport_;
  int rank_;
  std::array<std::uint64_t, tensor::kMoments> moments_{};
};

PartsMaker late_maker(const EngineOptions& options, const std::shared_ptr<Meeting>& meeting) {
  return [=](const Seat& seat) -> Result<EngineParts> {
    EngineParts parts{.options = options};
    FATHOM_TRY(const model::ModelSpec spec, model::load_config(fathom::test::fixtures() / "golden" / "llama3-gqa"));
    FATHOM_TRY(parts.architecture, model::make_architecture(spec, sharding_of(spec, seat.spread, seat.rank)));
    FATHOM_TRY(auto cpu, backends::make_backend("cpu", {.threads = 1}));
    parts.backend = std::make_unique<LateDevice>(std::move(cpu), meeting, seat.transport);
    FATHOM_TRY(parts.weights, weights::synthesize_in_memory(parts.architecture->weights(), *parts.backend,
                                                            {.storage = {}, .seed = 3, .threads = 1, .progress = {}}));
    return parts;
  };
}

constexpr EngineOptions kLateOptions{.slots = 2, .context = 96, .prefill_chunk = 24, .cache_dtype = DType::f32};

TEST(LateDevices, EndInOrder) {
  const auto meeting = std::make_shared<Meeting>(2);
  auto engine = start_threads({.tp = 2}, threads::make_thread_transports(2), late_maker(kLateOptions, meeting));
  ASSERT_TRUE(engine) << error_text(engine.error());
  EXPECT_TRUE((*engine)->runs_ahead());
  const auto text = generate(**engine, 0, some_ids(3, 500), {.max_tokens = 12, .ignore_stop = true}, nullptr);
  ASSERT_TRUE(text) << error_text(text.error());
  EXPECT_EQ(text->ids.size(), 12u);
  EXPECT_EQ(meeting->launched(0), meeting->launched(1));
  EXPECT_GT(meeting->launched(0), 12u);
  engine->reset();
  EXPECT_FALSE(meeting->stuck);
}

// The other rank's device has a pass under way whose sums nobody will come to.
TEST(LateDevices, AHostThatFailsWithAPassAheadEndsTheStepOfAll) {
  for (const char* what : {"error:1:4", "error:0:4", "error:1:1", "error:0:1"}) {
    const Fault fault(what);
    const auto meeting = std::make_shared<Meeting>(2);
    {
      auto engine = start_threads({.tp = 2}, threads::make_thread_transports(2), late_maker(kLateOptions, meeting));
      ASSERT_TRUE(engine) << error_text(engine.error());
      const auto failed = generate(**engine, 0, some_ids(3, 500), {.max_tokens = 20, .ignore_stop = true}, nullptr);
      ASSERT_FALSE(failed) << what;
      EXPECT_EQ(failed.error().key, "ranks.failed") << what << ": " << error_text(failed.error());
      const std::string rank = std::string("rank ") + what[6] + " of 2";
      EXPECT_NE(error_text(failed.error()).find(rank), std::string::npos) << error_text(failed.error());
      if (what[6] == '1') {
        EXPECT_GT(meeting->launched(0), meeting->launched(1)) << what << ": the pass that is never met";
      }
    }
    EXPECT_FALSE(meeting->stuck) << what << ": memory waited for a pass that cannot end";
  }
}

}  // namespace
}  // namespace fathom::engine
