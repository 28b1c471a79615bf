// Memory of training: states and how ZeRO, adapters and offloading cut them; what waits for backward; the loss.
// Rajbhandari et al. 2020, Korthikanti et al. 2022, Narayanan et al. 2021 for the pipeline.
#include <algorithm>
#include <cmath>

#include "plan/memory_parts.h"

namespace fathom::plan {
namespace {

/// Ranks that states of a kind are sharded over.
struct Shards {
  double dense = 1, expert = 1;
};

/// Bytes on one device.
struct States {
  double weights = 0, gradients = 0, optimizer = 0, host = 0;
};

class TrainingMemory {
 public:
  explicit TrainingMemory(const MemoryInputs& in)
      : in_(in),
        profile_(*in.profile),
        request_(*in.request),
        layout_(*in.layout),
        capacity_(static_cast<double>(in.request->cluster.device.capacity_bytes)) {
    const double ranks = static_cast<double>(layout_.dp) * layout_.cp;
    shards_ = {ranks, std::max(1.0, ranks * layout_.tp / (static_cast<double>(layout_.ep) * layout_.expert_tp))};
  }

  MemoryPlan plan() const {
    MemoryPlan plan;
    plan.batch_per_replica = layout_.micro_batch;
    double worst = -1;
    for (int stage = 0; stage < layout_.pp; ++stage) {
      const MemoryPlan one = plan_stage(stage, static_cast<double>(request_.seq));
      const auto needed = static_cast<double>(one.bytes.total);
      if (needed <= worst) continue;
      worst = needed;
      plan = one;
      plan.stage = stage;
    }
    plan.fits = worst <= capacity_;
    plan.over_bytes = plan.fits ? 0 : to_bytes(worst - capacity_);
    plan.over_category = first_over(plan.bytes);
    plan.chunk_tokens = layout_.micro_batch * request_.seq / layout_.cp;
    plan.max_context = longest();
    plan.host_bytes += in_.weights->host_bytes;
    return plan;
  }

 private:
  double tokens(double seq) const { return static_cast<double>(layout_.micro_batch) * seq / layout_.cp; }

  /// Micro-batches whose activations a stage holds at once, in whole stages' worth.
  double in_flight(int stage) const {
    const double pp = layout_.pp, vp = layout_.vp, most = static_cast<double>(layout_.micro_batches),
                 after = pp - stage;
    if (layout_.pp == 1) return 1;
    if (layout_.vp == 1) return std::min(after, most);
    return std::min(((after - 1) * 2 + (vp - 1) * pp + 1) / vp, most);
  }

  double moment_bytes() const {
    switch (request_.optimizer) {
      case Optimizer::kAdamW:
        return profile_.moment_bytes;
      case Optimizer::kAdamW8bit:
        return 2 + 2 * 4.0 / 256;  // two bytes and their scales, one a block of 256
      case Optimizer::kMuon:
        return profile_.moment_bytes / 2;
      case Optimizer::kSgd:
      case Optimizer::kAdafactor:
        return 0;
    }
    return profile_.moment_bytes;
  }

  States states(const StageSums& sums) const {
    States out;
    const bool adapters = has_adapters(request_.task);
    double dense = static_cast<double>(sums.parts.elements), expert = static_cast<double>(sums.parts.expert_elements);
    if (adapters) {
      dense = static_cast<double>(sums.parts.adapter_units) * static_cast<double>(request_.lora_rank);
      expert = 0;
    }
    const auto sharded = [&](double bytes, bool cut) {
      return (cut ? dense / shards_.dense + expert / shards_.expert : dense + expert) * bytes;
    };
    out.weights = sharded(profile_.weight_bytes, layout_.zero >= 3);
    out.gradients = sharded(profile_.gradient_bytes, layout_.zero >= 2);
    out.optimizer = sharded(profile_.master_bytes + moment_bytes(), layout_.zero >= 1);
    if (adapters) out.weights += static_cast<double>(sums.weights) / (layout_.zero >= 3 ? shards_.dense : 1);
    if (layout_.zero >= 3) {
      // Whole layers, gathered in the compute type, and one layer's gradient before it is scattered.
      const PartWeights& layer = in_.weights->largest;
      const double largest = static_cast<double>(layer.elements) + static_cast<double>(layer.expert_elements) *
                                                                       std::min(1.0, static_cast<double>(layout_.ep));
      const double compute = adapters ? static_cast<double>(layer.stored) : 2 * largest;
      const double head = sums.last ? 2 * static_cast<double>(in_.weights->head.elements) : 0;
      const double live = 2 * std::min(profile_.gathered_parameters,
                                       static_cast<double>(sums.parts.elements + sums.parts.expert_elements));
      out.weights += std::max({profile_.gathered_layers * compute, head, live});
      if (!adapters)
        out.gradients += profile_.reduce_bytes *
                         std::max(largest, sums.last ? static_cast<double>(in_.weights->head.elements) : 0.0);
    }
    offload(sums, adapters, out);
    return out;
  }

  void offload(const StageSums& sums, bool adapters, States& out) const {
    if (layout_.offload == Offload::kNone) return;
    out.host += out.optimizer;
    out.optimizer = 0;
    if (profile_.offload_takes_gradients && !adapters) {
      // The device keeps buckets of gradients on their way.
      const double kept = std::min(out.gradients, static_cast<double>(profile_.bucket_bytes));
      out.host += out.gradients - kept;
      out.gradients = kept;
    }
    if (layout_.offload != Offload::kWeights) return;
    const PartWeights& layer = in_.weights->largest;
    const double stay =
        std::min(out.weights, (profile_.gathered_layers + 1) * static_cast<double>(std::max(layer.stored, Bytes{1})) +
                                  static_cast<double>(sums.first ? in_.weights->embedding.stored : 0));
    out.host += out.weights - stay;
    out.weights = stay;
  }

  /// A rate's bytes for a micro-batch; sequence parallelism cuts what every tensor rank would hold whole.
  double bytes(const meta::Rate& split, const meta::Rate& replicated, double t) const {
    return split.at(t, t) + replicated.at(t, t) / (layout_.sequence_parallel ? layout_.tp : 1);
  }

  struct Activations {
    double kept = 0, loss = 0, backward = 0;
  };

  Activations activations(int stage, double seq) const {
    const double t = tokens(seq);
    Activations out;
    double once = 0;  // what a layer holds while it is computed again
    const std::int64_t chunks = static_cast<std::int64_t>(layout_.pp) * layout_.vp,
                       all = static_cast<std::int64_t>(in_.kinds->size());
    for (std::int64_t chunk = stage; chunk < chunks; chunk += layout_.pp) {
      const LayerSpan span = chunk_layers(all, chunks, chunk);
      for (std::size_t k = 0; k < in_.train->kinds.size(); ++k) {
        const auto count =
            std::count(in_.kinds->begin() + span.first, in_.kinds->begin() + span.last, static_cast<std::uint8_t>(k));
        if (count == 0) continue;
        const SavedActivations& saved = in_.train->kinds[k];
        const double none = bytes(saved.none, saved.none_replicated, t), full = bytes({}, saved.full, t);
        const double selective = bytes(saved.selective, saved.selective_replicated, t);
        const double kept = layout_.recompute == Recompute::kNone ? none
                            : layout_.recompute == Recompute::kSelective
                                ? selective
                                : none + layout_.recompute_share * (full - none);
        out.kept += kept * static_cast<double>(count);
        if (layout_.recompute != Recompute::kNone)
          once = std::max(once, none - (layout_.recompute == Recompute::kSelective ? selective : 0));
        out.backward = std::max(out.backward, saved.backward.at(t, t));
      }
    }
    out.kept *= in_flight(stage);
    if (layout_.recompute == Recompute::kFull && layout_.offload != Offload::kNone &&
        profile_.offload_takes_checkpoints)
      out.kept = 0;
    out.backward += once;
    if (stage == layout_.pp - 1) {
      const double rows =
          profile_.loss_chunk_tokens > 0 ? std::min(t, static_cast<double>(profile_.loss_chunk_tokens)) : t;
      // Where gradients are sharded, the head's whole gradient stands beside the logits' until it is scattered.
      const double head =
          layout_.zero >= 2 && !has_adapters(request_.task) ? 2 * static_cast<double>(in_.weights->head.elements) : 0;
      out.loss =
          head + rows * in_.train->loss_logits_per_token * profile_.loss_logit_bytes + t * in_.train->hidden.per_token;
    }
    return out;
  }

  MemoryPlan plan_stage(int stage, double seq) const {
    MemoryPlan plan;
    const StageSums sums(in_, stage);
    const States state = states(sums);
    const Activations a = activations(stage, seq);
    const bool persists = profile_.gradients_persist || layout_.micro_batches > 1 || layout_.pp > 1;
    const double at_loss = a.kept + std::max(a.loss, a.backward) + (persists ? state.gradients : 0);
    const double at_end = a.backward + state.gradients;
    const bool end_counts = at_end > at_loss;
    const double live = end_counts ? a.backward : a.kept + std::max(a.loss, a.backward);
    const double gradients = end_counts || persists ? state.gradients : 0;
    const double outside = in_.context_bytes + in_.communicators * static_cast<double>(profile_.communicator_bytes);
    const double buckets = layout_.zero > 0 ? static_cast<double>(profile_.bucket_bytes) : 0;
    MemoryBreakdown& b = plan.bytes;
    b = {.weights = to_bytes(state.weights),
         .activations = to_bytes(live),
         .gradients = to_bytes(gradients),
         .optimizer = to_bytes(state.optimizer),
         .workspace = to_bytes(in_.workspace_bytes + buckets),
         .overhead = to_bytes(outside + profile_.fragmentation * (live + gradients)),
         .capacity = request_.cluster.device.capacity_bytes};
    b.allocated = b.weights + b.activations + b.gradients + b.optimizer + b.workspace;
    b.total = b.allocated + b.overhead;
    b.reserved = b.total - to_bytes(outside);
    plan.in_flight = static_cast<std::int64_t>(std::ceil(in_flight(stage)));
    plan.host_bytes = to_bytes(state.host);
    const double still = state.weights + state.optimizer + in_.workspace_bytes + buckets;
    plan.timeline = {{{"forward", to_bytes(still + a.kept + (persists ? state.gradients : 0))},
                      {"loss", to_bytes(still + at_loss)},
                      {"backward", to_bytes(still + at_end)},
                      {"step", to_bytes(still + state.gradients)}}};
    plan.moments = 4;
    return plan;
  }

  std::int64_t longest() const {
    std::int64_t low = 0, high = std::int64_t{1} << 32;
    while (low + 1 < high) {
      const std::int64_t middle = low + (high - low) / 2;
      bool fits = true;
      for (int stage = 0; stage < layout_.pp && fits; ++stage)
        fits = static_cast<double>(plan_stage(stage, static_cast<double>(middle)).bytes.total) <= capacity_;
      (fits ? low : high) = middle;
    }
    return low;
  }

  const MemoryInputs& in_;
  const MemoryProfile& profile_;
  const PlanRequest& request_;
  const Layout& layout_;
  double capacity_;
  Shards shards_;
};

}  // namespace

MemoryPlan plan_training_memory(const MemoryInputs& inputs) { return TrainingMemory(inputs).plan(); }

}  // namespace fathom::plan
