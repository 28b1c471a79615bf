// StandIn: a device that chooses tokens by itself and may fail, without one: the cpu backend stands for it.
#pragma once
#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include "tensor/forwarding_backend.h"

namespace fathom::test {

/// Chooses as a device would, and breaks when it is asked to. Launching does the work here; who waits learns nothing
/// new, and may not ask for what was never launched.
class StandIn : public tensor::ForwardingBackend {
 public:
  StandIn(std::unique_ptr<Backend> inner, bool ahead) : ForwardingBackend(std::move(inner)), ahead_(ahead) {}

  bool break_device() override { return broken_ = true; }
  Status synchronize() override {
    if (broken_) return fail_environment("cuda.device_failed", {{"gpu", "0"}, {"error", "broken on purpose"}});
    return inner().synchronize();
  }
  bool sample(const tensor::SampleArgs& args) override {
    const std::int64_t words = (args.vocabulary + 31) / 32;
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const tensor::SamplingRow& row = args.asked[r];
      std::uint32_t* const seen = args.seen != nullptr ? args.seen + row.seen * words : nullptr;
      const float* const logits = args.logits + r * args.vocabulary;
      args.ids[r] = choose(logits, args.vocabulary, row, seen);
      if (row.penalty != 1 && args.ids[r] >= 0) seen[args.ids[r] / 32] |= 1u << (args.ids[r] % 32);
      if (args.next.sequences != nullptr) leave_next(args.next, r, std::max(args.ids[r], 0));
    }
    return true;
  }
  bool runs_ahead() const override { return ahead_; }
  void remember(int moment) override { remembered_[static_cast<std::size_t>(moment)] = true; }
  Status await_moment(int moment) override {
    FATHOM_CHECK(std::exchange(remembered_[static_cast<std::size_t>(moment)], false));
    return StandIn::synchronize();  // of what was launched since, nothing
  }

 private:
  /// Without filters, which the Sampler's own tests are about.
  static std::int32_t choose(const float* logits, std::int64_t n, const tensor::SamplingRow& row,
                             const std::uint32_t* seen) {
    const auto score = [&](std::int64_t id) {
      return tensor::sampling_score(logits[id], row.penalty, seen != nullptr && (seen[id / 32] >> (id % 32) & 1u) != 0);
    };
    std::int64_t best = 0;
    for (std::int64_t id = 1; id < n; ++id)
      if (score(id) > score(best)) best = id;
    if (row.per_octave == 0) return static_cast<std::int32_t>(best);
    std::uint64_t total = 0, sum = 0;
    for (std::int64_t id = 0; id < n; ++id) total += tensor::sampling_weight(score(id), score(best), row.per_octave);
    for (std::int64_t id = 0; id < n; ++id)
      if ((sum += tensor::sampling_weight(score(id), score(best), row.per_octave)) > tensor::share_of(total, row.draw))
        return static_cast<std::int32_t>(id);
    return -1;
  }
  static void leave_next(const tensor::NextPass& next, std::int64_t r, std::int32_t id) {
    tensor::Sequence& sequence = next.sequences[r];
    const std::int32_t past = sequence.past + sequence.tokens, row = static_cast<std::int32_t>(r);
    sequence = {.slot = sequence.slot, .first_token = row, .tokens = 1, .past = past};
    next.ids[r] = id;
    next.positions[r] = past;
    next.wanted[r] = row;
  }
  bool broken_ = false, ahead_ = false;
  std::array<bool, tensor::kMoments> remembered_{};
};

}  // namespace fathom::test
