// Memory of serving and chatting: weights, caches, the activations of a pass, and what the engine takes for its pool.
#include <algorithm>
#include <cmath>

#include "plan/engine_profile.h"
#include "plan/memory_parts.h"

namespace fathom::plan {
namespace {

double round_up(double value, double step) { return step > 1 ? std::ceil(value / step) * step : value; }

/// What one attention replica works on: sequences alive at once, each of so many tokens.
struct Load {
  double sequences = 1, input = 0, output = 0;
  double context() const { return input + output; }
};

/// The caches and activations of a moment. They peak at different times, so the larger sum counts.
struct Moment {
  double kv = 0, activations = 0;
  double total() const { return kv + activations; }
};

class InferenceMemory {
 public:
  explicit InferenceMemory(const MemoryInputs& in)
      : in_(in),
        profile_(*in.profile),
        task_(in.request->task),
        cp_(in.layout->cp),
        capacity_(static_cast<double>(in.request->cluster.device.capacity_bytes)),
        chunk_(static_cast<double>(in.request->prefill_chunk > 0 && in.request->engine->own_kernels
                                       ? in.request->prefill_chunk
                                       : in.profile->chunk_tokens)),
        most_sequences_(in.profile->max_sequences > 0 ? static_cast<double>(in.profile->max_sequences) : 1e12) {}

  MemoryPlan plan() const {
    MemoryPlan plan;
    plan.batch_per_replica = in_.batch_per_replica;
    Load load{static_cast<double>(in_.batch_per_replica), static_cast<double>(in_.request->input),
              static_cast<double>(in_.request->output)};
    plan.concurrent = concurrent(load);
    if (task_ == Task::kServe) {
      // Users beyond what fits wait; when none are given, as many as fit run.
      const double most = std::max(1.0, static_cast<double>(plan.concurrent));
      load.sequences = std::min(in_.request->batch ? std::min(load.sequences, most) : most, most_sequences_);
    }
    double worst = -1;
    for (int stage = 0; stage < in_.layout->pp; ++stage) {
      const StageSums sums(in_, stage);
      const double needed = needed_total(sums, load);
      if (needed <= worst) continue;
      worst = needed;
      plan.stage = stage;
      describe(sums, load, needed, plan);
    }
    plan.over_category = first_over(plan.bytes);
    plan.chunk_tokens = static_cast<std::int64_t>(pass_tokens(load));
    plan.max_context = longest(load);
    plan.host_bytes = in_.weights->host_bytes;
    return plan;
  }

 private:
  void describe(const StageSums& sums, const Load& load, double needed, MemoryPlan& plan) const {
    plan.bytes = breakdown(sums, load);
    const double caches = cache_bytes(sums, load), have = room(sums, load);
    plan.fits = needed <= capacity_ && caches <= have;
    plan.over_bytes = plan.fits ? 0 : to_bytes(std::max({needed - capacity_, caches - have, 1.0}));
    plan.kv_bytes_per_token = token_bytes(sums);
    plan.kv_bytes_per_sequence = sums.cache_fixed;
    plan.kv_room_bytes = to_bytes(have);
    plan.timeline = {{{"weights", sums.weights},
                      {"prefill", sums.weights + to_bytes(prefill(sums, load).total())},
                      {"decode", sums.weights + to_bytes(decode(sums, load).total())},
                      {}}};
    plan.moments = 3;
  }

  double tokens_of(double context) const { return round_up(context, static_cast<double>(profile_.block_tokens)) / cp_; }

  double cache_bytes_at(const StageSums& sums, double sequences, double context) const {
    double bytes = sums.cache_fixed;
    const double tokens = tokens_of(context);
    for (const StageSums::Growth& growth : sums.growing())
      bytes += growth.row_bytes * (growth.ratio == 1 ? tokens : std::max(1.0, std::floor(tokens / growth.ratio)));
    return bytes * sequences;
  }
  double cache_bytes(const StageSums& sums, const Load& load) const {
    return cache_bytes_at(sums, load.sequences, load.context());
  }

  double token_bytes(const StageSums& sums) const {
    double bytes = 0;
    for (const StageSums::Growth& growth : sums.growing()) bytes += growth.row_bytes / growth.ratio;
    return bytes / cp_;
  }

  /// Tokens of the largest prefill pass. A server's scheduler fills its step; others split a batch's prompts at most.
  double pass_tokens(const Load& load) const {
    const double all = std::max(load.sequences * load.input, 1.0);
    if (chunk_ <= 0) return std::ceil(all / cp_);
    return std::ceil((task_ == Task::kServe ? chunk_ : std::min(chunk_, all)) / cp_);
  }

  Moment prefill(const StageSums& sums, const Load& load) const {
    const double tokens = pass_tokens(load), outputs = profile_.all_logits ? tokens : std::min(tokens, load.sequences);
    const bool grows = profile_.pool == CachePool::kAsNeeded;
    // Keys and values of one layer repeated for every query head live beside its attention, not beside its
    // feed-forward.
    const double repeated =
        in_.prefill->hidden.at(tokens, outputs) + load.sequences * load.input * in_.prefill->expand_bytes_per_context;
    const double later =
        in_.later != nullptr && load.sequences * load.input > tokens * cp_ ? in_.later->at(tokens, outputs) : 0;
    return {cache_bytes_at(sums, load.sequences, grows ? load.input : load.context()),
            std::max({in_.prefill->at(tokens, outputs), repeated, later})};
  }

  Moment decode(const StageSums& sums, const Load& load) const {
    const double copies = load.sequences * load.context() *
                          (in_.decode->expand_bytes_per_context + in_.decode->cache_layer_bytes_per_context);
    return {cache_bytes(sums, load), in_.decode->at(load.sequences, load.sequences) + copies};
  }

  Moment peak(const StageSums& sums, const Load& load) const {
    const Moment a = prefill(sums, load), b = decode(sums, load);
    return a.total() > b.total() ? a : b;
  }

  /// What is not in the framework's allocator.
  double outside() const {
    return in_.context_bytes + in_.communicators * static_cast<double>(profile_.communicator_bytes);
  }

  double overhead(double activations) const {
    const double graphs =
        in_.context_bytes > 0
            ? profile_.graph_bytes_per_layer * static_cast<double>(in_.request->model->spec().layers) / in_.layout->pp
            : 0;
    return outside() + graphs + profile_.fragmentation * activations;
  }

  double needed_total(const StageSums& sums, const Load& load) const {
    const Moment moment = peak(sums, load);
    return static_cast<double>(sums.weights) + moment.total() + in_.workspace_bytes + overhead(moment.activations);
  }

  MemoryBreakdown breakdown(const StageSums& sums, const Load& load) const {
    const Moment moment = peak(sums, load);
    MemoryBreakdown bytes{.weights = sums.weights,
                          .kv = to_bytes(moment.kv),
                          .activations = to_bytes(moment.activations),
                          .workspace = to_bytes(in_.workspace_bytes),
                          .overhead = to_bytes(overhead(moment.activations)),
                          .capacity = in_.request->cluster.device.capacity_bytes};
    bytes.allocated = bytes.weights + bytes.kv + bytes.activations + bytes.workspace;
    double reserved = static_cast<double>(bytes.allocated + bytes.overhead) - outside();
    // Servers take the room for caches at the start, used or not.
    if (profile_.pool >= CachePool::kFractionOfDevice)
      reserved = std::max(reserved, reserved - moment.kv + room(sums, load));
    bytes.reserved = to_bytes(reserved);
    bytes.total = to_bytes(reserved + outside());
    return bytes;
  }

  /// What this engine has for caches on a stage.
  double room(const StageSums& sums, const Load& load) const {
    Load bounded = load;
    bounded.sequences = std::min(load.sequences, most_sequences_);
    const double activations = std::max(prefill(sums, bounded).activations, decode(sums, bounded).activations);
    const auto weights = static_cast<double>(sums.weights);
    const double rest = weights + activations + in_.workspace_bytes + overhead(activations);
    switch (profile_.pool) {
      case CachePool::kFractionOfDevice:
        return profile_.fraction * capacity_ - rest;
      case CachePool::kFractionStatic:
        return std::min(profile_.fraction * capacity_ - weights, capacity_ - rest);
      case CachePool::kFractionOfFree:
        return profile_.fraction * (capacity_ - rest);
      default:
        return capacity_ - rest;
    }
  }

  /// Sequences of the load's length that fit at once on every stage; activations are sized for one step of the engine.
  std::int64_t concurrent(const Load& load) const {
    double most = 1e12;
    for (int stage = 0; stage < in_.layout->pp; ++stage) {
      const StageSums sums(in_, stage);
      Load step = load;
      if (!in_.request->batch) step.sequences = std::min(most_sequences_, 256.0);
      most = std::min(most, room(sums, step) / std::max(cache_bytes_at(sums, 1, load.context()), 1.0));
    }
    return static_cast<std::int64_t>(std::max(0.0, std::floor(most)));
  }

  bool fits(const Load& load) const {
    for (int stage = 0; stage < in_.layout->pp; ++stage) {
      const StageSums sums(in_, stage);
      if (!(needed_total(sums, load) <= capacity_) || !(cache_bytes(sums, load) <= room(sums, load))) return false;
    }
    return true;
  }

  /// The longest input + output at this batch. Users of a server wait for room, so that one sequence must fit.
  std::int64_t longest(const Load& at) const {
    const auto with = [&](std::int64_t context) {
      Load load = at;
      if (task_ == Task::kServe) load.sequences = 1;
      load.output = std::min(at.output, static_cast<double>(context));
      load.input = static_cast<double>(context) - load.output;
      return fits(load);
    };
    std::int64_t low = 0, high = std::int64_t{1} << 32;
    while (low + 1 < high) {
      const std::int64_t middle = low + (high - low) / 2;
      (with(middle) ? low : high) = middle;
    }
    return low;
  }

  const MemoryInputs& in_;
  const MemoryProfile& profile_;
  Task task_;
  double cp_, capacity_, chunk_, most_sequences_;
};

}  // namespace

MemoryPlan plan_inference_memory(const MemoryInputs& inputs) { return InferenceMemory(inputs).plan(); }

}  // namespace fathom::plan
