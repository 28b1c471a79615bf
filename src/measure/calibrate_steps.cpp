// What a pass costs around its ops, in the three ways in which engines step.
#include <algorithm>
#include <array>

#include "base/clock.h"
#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

constexpr std::int64_t kVocabulary = 1 << 17;  // logits of a row; fewer bytes than that are one row of fewer
// Ops of passes ahead: together longer than a host needs to launch them, each longer than a device needs to begin the
// next of a record (of shorter ones 256 take more than twice as long as 128).
constexpr int kOps = 64;
constexpr std::int64_t kOpBytes = 1 << 20;
constexpr std::uint64_t kKeys = std::uint64_t{1} << 62;

class StepTables : Tables {
 public:
  explicit StepTables(const Tables& tables) : Tables(tables) {}

  Status run() {
    for (const std::string_view way : step_ways(rig_.backend()))
      FATHOM_TRY_VOID(table(Family::kStep, std::string(way), {grid_.step_bytes}, [&](const Place& at) -> Result<Point> {
        FATHOM_TRY_VOID(prepare(static_cast<Bytes>(at[0])));
        Point point{.bytes = at[0]};
        FATHOM_TRY(point.seconds, way == plan::kStepAhead ? ahead() : way == plan::kStepChosen ? chosen() : to_host());
        return point;
      }));
    return {};
  }

 private:
  Status prepare(Bytes bytes) {
    bytes_ = bytes;
    const std::int64_t floats = std::max<std::int64_t>(static_cast<std::int64_t>(bytes / 4), 1);
    rows_ = std::max<std::int64_t>(floats / kVocabulary, 1);
    vocabulary_ = floats / rows_;
    logits_ = rig_.tensor(DType::f32, {floats});
    a_ = rig_.tensor(DType::f32, {1, 64}), b_ = rig_.tensor(DType::f32, {1, 64});
    const std::int64_t wide = std::max<std::int64_t>(std::min(kOpBytes, whole(grid_.bytes.back())) / 12 / 64, 1);
    for (Tensor& x : work_) x = rig_.tensor(DType::f32, {64, wide});
    tokens_ = rig_.tokens(rows_, 1, 0);
    wanted_ = rig_.tensor(DType::i32, {rows_});
    FATHOM_TRY(host_, rig_.backend().allocate_buffer(std::max<Bytes>(bytes, 256), Placement::kShared));
    FATHOM_TRY(ids_, rig_.backend().allocate_buffer(static_cast<Bytes>(kMoments * rows_) * 4, Placement::kShared));
    return rig_.backend().synchronize();
  }

  /// Tables to the device, one short op from a record, logits back.
  Result<double> to_host() {
    Backend& backend = rig_.backend();
    return rig_.time_calls(15, [&]() -> Status {
      FATHOM_TRY(const bool called, backend.run_pass(kKeys + bytes_, [&] {
        backend.copy_in(a_.data, host_->data(), 256);
        ops_.copy({.x = a_, .out = b_});
      }));
      static_cast<void>(called);
      if (backend.host_addressable()) return backend.synchronize();
      return backend.download({host_->data(), bytes_}, logits_.data);
    });
  }

  /// Tables to the device, one short op from a record, the choice of a token a row, and the ids back.
  Result<double> chosen() {
    return rig_.time_calls(15, [&]() -> Status {
      rig_.backend().copy_in(a_.data, host_->data(), 256);
      FATHOM_TRY_VOID(begin(1, 0, false));
      return rig_.backend().await_moment(0);
    });
  }

  /// The same with the next pass under way before the host hears of the last one: what passes of few ops take from one
  /// to the next, less those ops. The host is done before the device is, as with passes of a model.
  Result<double> ahead() {
    FATHOM_TRY(const double once, period(kOps));
    FATHOM_TRY(const double twice, period(2 * kOps));
    return std::max(2 * once - twice, 1e-8);
  }
  Result<double> period(int ops) {
    constexpr std::uint64_t kBefore = 6, kPasses = 40;
    std::vector<double> seconds;
    FATHOM_TRY_VOID(begin(ops, 0, true));
    double started = now_seconds();
    for (std::uint64_t pass = 0; pass < kPasses; ++pass) {
      if (pass + 1 < kPasses) FATHOM_TRY_VOID(begin(ops, pass + 1, true));
      FATHOM_TRY_VOID(rig_.backend().await_moment(static_cast<int>(pass % kMoments)));
      const double ended = now_seconds();
      if (pass >= kBefore && pass + 1 < kPasses) seconds.push_back(ended - started);
      started = ended;
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  /// As Engine::begin and begin_next: a pass, what is chosen of its logits, and the tables of the next.
  Status begin(int ops, std::uint64_t pass, bool goes_on) {
    Backend& backend = rig_.backend();
    FATHOM_TRY(const bool called, backend.run_pass(kKeys + (static_cast<std::uint64_t>(ops) << 48) + bytes_, [&] {
      if (!goes_on) return ops_.copy({.x = a_, .out = b_});
      for (int i = 0; i < ops; ++i) ops_.add({.a = work_[0], .b = work_[1], .out = work_[2]});
    }));
    static_cast<void>(called);
    const std::vector<SamplingRow> greedy(static_cast<std::size_t>(rows_));
    NextPass next;
    if (goes_on)
      next = {.sequences = reinterpret_cast<Sequence*>(tokens_->batch.sequence_table.data),
              .ids = tokens_->batch.ids.as<std::int32_t>(),
              .positions = tokens_->batch.positions.as<std::int32_t>(),
              .wanted = wanted_.as<std::int32_t>()};
    const std::uint64_t moment = pass % kMoments;
    backend.sample({.logits = logits_.as<float>(),
                    .rows = rows_,
                    .vocabulary = vocabulary_,
                    .asked = greedy.data(),
                    .ids = reinterpret_cast<std::int32_t*>(ids_->data()) + moment * static_cast<std::uint64_t>(rows_),
                    .next = next});
    backend.remember(static_cast<int>(moment));
    return {};
  }

  Bytes bytes_ = 0;
  std::int64_t rows_ = 0, vocabulary_ = 0;
  Tensor logits_, a_, b_, wanted_;
  std::array<Tensor, 3> work_;
  std::unique_ptr<Rig::Tokens> tokens_;
  std::unique_ptr<Buffer> host_, ids_;
};

}  // namespace

std::vector<std::string_view> step_ways(Backend& backend) {
  std::vector<std::string_view> ways{plan::kStepToHost};
  if (!backend.sample({})) return ways;
  ways.push_back(plan::kStepChosen);
  if (backend.runs_ahead()) ways.push_back(plan::kStepAhead);
  return ways;
}

Status time_steps(const Tables& tables) { return StepTables(tables).run(); }

}  // namespace fathom::measure
