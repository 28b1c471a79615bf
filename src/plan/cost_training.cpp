#include "plan/cost_training.h"

#include <algorithm>
#include <cmath>

namespace fathom::plan {
namespace {

/// Ranks of a group that are `stride` devices apart: how many share a domain.
double within_domain(const Rates& r, double ranks, double stride) {
  return std::clamp(std::floor(r.domain / std::max(stride, 1.0)), 1.0, ranks);
}

/// Reduce-scatter or all-gather of `bytes` over ranks that lie `stride` apart. Between domains each device has its own
/// port.
double gather_over(const Rates& r, double ranks, double stride, double bytes, bool& network) {
  if (ranks <= 1 || bytes <= 0) return 0;
  const double inside = within_domain(r, ranks, stride), outside = ranks / inside;
  double seconds = inside > 1 ? all_gather_seconds(r.intra, static_cast<int>(inside), bytes) : 0;
  if (outside > 1) {
    network = true;
    seconds = std::max(seconds, all_gather_seconds(r.inter, static_cast<int>(std::ceil(outside)), bytes / inside));
  }
  return seconds;
}

class TrainPricer {
 public:
  explicit TrainPricer(const TrainModel& m) : m_(m), r_(m.rates), l_(m.layout), s_(m.engine->training) {}

  TrainResult price() {
    const double forward = pass(m_.forward, false), backward = pass(m_.backward, true);
    double again = 0;
    if (l_.recompute == Recompute::kFull) again = l_.recompute_share * pass(m_.forward, false, true);
    if (l_.recompute == Recompute::kSelective) again = selected_again();
    const double micro = forward + backward + again + 2 * s_.layer_host * m_.stage_layers * r_.host;
    const double batches = static_cast<double>(std::max<std::int64_t>(l_.micro_batches, 1));
    const double pp = l_.pp, vp = std::max(l_.vp, 1);
    const double bubbles = (pp - 1) / vp;
    double sharded = 0;
    if (l_.zero >= 3) sharded = gathers(forward, backward + again);
    double step = (batches + bubbles) * (micro + sharded);
    step += sends(batches, pp, vp);
    step += gradients(backward + again, batches) + optimizer();
    step += s_.step_host * r_.host;
    part(result_.parts, BoundBy::kHost) += s_.step_host * r_.host;
    result_.step = step;
    return result_;
  }

 private:
  /// `again`: layers alone, and what is exchanged is exchanged once.
  double pass(const Program& program, bool backward, bool again = false) {
    Load load{.tokens = m_.tokens,
              .outputs = m_.tokens,
              .sequences = m_.tokens * l_.cp / m_.sequence,
              .visible = (m_.sequence + 1) / 2,
              .keys = m_.sequence / l_.cp,
              .replicas = static_cast<double>(l_.ep),
              .balanced = true};
    double seconds = 0;
    const double batches = static_cast<double>(std::max<std::int64_t>(l_.micro_batches, 1));
    for (const Kernel& k : program.kernels) {
      const double repeats = static_cast<double>(k.repeats);
      if ((m_.adapters && k.weight_gradient) || (again && k.is_head)) continue;
      if (k.kind == Kernel::Kind::kReduce || k.kind == Kernel::Kind::kGather) {
        if (k.backward) continue;  // backward exchanges what forward does; priced with the forward records
        seconds += (backward ? 0 : again ? 1 : 2) * exchange(k) * repeats;
        continue;
      }
      double one = 0;
      Parts parts{};
      if (k.sequence && s_.sequence_parallel && l_.tp > 1) {
        Load thin = load;
        thin.tokens /= l_.tp, thin.outputs /= l_.tp;
        one = kernel_seconds(k, thin, r_, l_, &parts);
      } else {
        one = kernel_seconds(k, load, r_, l_, &parts);
      }
      for (std::size_t i = 0; i < parts.size(); ++i) result_.parts[i] += parts[i] * batches;
      if (k.kind == Kernel::Kind::kElementwise) one *= s_.elementwise_passes;
      seconds += one * repeats;
      if (m_.adapters && k.kind == Kernel::Kind::kProduct && !k.is_head && k.weight_elements > 0)
        seconds += adapter(k, backward) * repeats;
      if (k.kind == Kernel::Kind::kAttention && l_.cp > 1) seconds += context_exchange(k) * repeats;
    }
    return seconds;
  }

  /// Two thin products beside a frozen one: streaming of what goes in and out, and their launches.
  double adapter(const Kernel& k, bool backward) {
    const double factor = backward ? 2 : 1;
    return factor * s_.adapter_passes *
           (2 * r_.product_floor + r_.small_floor + k.bytes.at(m_.tokens, 0) / r_.elementwise);
  }

  /// Selective recompute: attention alone, or every second product and all between products where these are what is not
  /// kept.
  double selected_again() {
    Load load{.tokens = m_.tokens,
              .outputs = m_.tokens,
              .sequences = m_.tokens * l_.cp / m_.sequence,
              .visible = (m_.sequence + 1) / 2,
              .keys = m_.sequence / l_.cp,
              .replicas = static_cast<double>(l_.ep),
              .balanced = true};
    double seconds = 0;
    for (const Kernel& k : m_.forward.kernels) {
      double share = k.kind == Kernel::Kind::kAttention ? 1 : 0;
      if (m_.keeps_every_second_product)
        share = k.is_head || k.kind == Kernel::Kind::kAttention                        ? 0
                : k.kind == Kernel::Kind::kProduct || k.kind == Kernel::Kind::kExperts ? 0.5
                : k.kind == Kernel::Kind::kElementwise                                 ? s_.elementwise_passes
                                                                                       : 0;
      if (share > 0) seconds += share * kernel_seconds(k, load, r_, l_, nullptr) * static_cast<double>(k.repeats);
    }
    return seconds;
  }

  double context_exchange(const Kernel& k) {
    const double bytes = m_.tokens * k.row_bytes * l_.cp;
    bool network = false;
    return 0.5 * gather_over(r_, l_.cp, l_.tp, bytes, network);
  }

  double exchange(const Kernel& k) {
    const double bytes = k.bytes.at(m_.tokens, m_.tokens);
    double seconds = 0;
    bool network = false;
    if (k.group == tensor::Group::kExpert) {
      if (l_.ep > 1) {
        // Each token's row goes to its experts' ranks and comes back; rows for one domain travel once.
        const double stride = 1, inside = within_domain(r_, l_.ep, stride), outside = std::max(1.0, l_.ep / inside);
        const double copies = std::min(experts_per_token(), static_cast<double>(l_.ep));
        seconds = 2 * all_to_all_seconds(r_.intra, static_cast<int>(inside), bytes * std::max(1.0, copies));
        if (outside > 1) {
          network = true;
          const double crossing = std::min(copies, 4.0) * (outside - 1) / outside;
          seconds = std::max(seconds,
                             2 * (r_.inter.direct_seconds + bytes * crossing / r_.inter.all_to_all_bytes_per_second));
        }
        seconds *= 1 - s_.expert_overlap;
      }
      if (l_.expert_tp > 1) seconds += all_reduce_seconds(r_.intra, l_.expert_tp, bytes) * (1 - s_.tensor_overlap);
    } else if (l_.tp > r_.domain) {
      network = true;
      seconds = all_reduce_seconds(r_.inter, l_.tp, bytes);
    } else {
      seconds = all_reduce_seconds(r_.intra, l_.tp, bytes) * (1 - s_.tensor_overlap);
    }
    part(result_.parts, network ? BoundBy::kNetwork : BoundBy::kCommunication) +=
        2 * seconds * static_cast<double>(k.repeats) * static_cast<double>(l_.micro_batches);
    return seconds;
  }

  double experts_per_token() const {
    for (const Kernel& k : m_.forward.kernels)
      if (k.kind == Kernel::Kind::kExperts) return k.experts_per_token;
    return 1;
  }

  /// ZeRO 3: weights gathered for both passes, gradients scattered, hidden behind the passes as far as they reach.
  double gathers(double forward, double backward) {
    bool network = false;
    const double ranks = l_.dp * l_.cp, stride = l_.tp;
    const double gather = gather_over(r_, ranks, stride, m_.gathered_bytes, network);
    const double scatter =
        m_.adapters ? 0 : gather_over(r_, ranks, stride, (m_.dense_parameters + m_.expert_parameters) * 4, network);
    const double exposed =
        std::max(gather - s_.gather_overlap * forward, (1 - s_.gather_overlap) * gather) +
        std::max(gather + scatter - s_.gradient_overlap * backward, (1 - s_.gradient_overlap) * (gather + scatter));
    part(result_.parts, network ? BoundBy::kNetwork : BoundBy::kCommunication) +=
        exposed * static_cast<double>(l_.micro_batches);
    return exposed;
  }

  double sends(double batches, double pp, double vp) {
    if (pp <= 1) return 0;
    const bool network = static_cast<double>(l_.tp * l_.cp * l_.dp) * pp > r_.domain;
    const double one =
        send_seconds(network ? r_.inter : r_.intra, m_.tokens * m_.hidden * 2 / (s_.sequence_parallel ? l_.tp : 1));
    const double exposed = (2 * batches * vp * (1 - s_.pipeline_overlap) + 2 * (pp - 1)) * one;
    part(result_.parts, network ? BoundBy::kNetwork : BoundBy::kCommunication) += exposed;
    return exposed;
  }

  double gradients(double backward, double batches) {
    if (l_.zero >= 3) return 0;
    bool network = false;
    const double dense = m_.adapters ? m_.adapter_parameters : m_.dense_parameters,
                 experts = m_.adapters ? 0 : m_.expert_parameters;
    const double ranks = l_.dp * l_.cp,
                 expert_ranks = std::max(1.0, ranks * l_.tp / (static_cast<double>(l_.ep) * l_.expert_tp));
    const double scatter =
        gather_over(r_, ranks, l_.tp, dense * 4, network) + gather_over(r_, expert_ranks, l_.ep, experts * 4, network);
    const double gather =
        gather_over(r_, ranks, l_.tp, dense * 2, network) + gather_over(r_, expert_ranks, l_.ep, experts * 2, network);
    const double room = s_.gradient_overlap * backward * std::min(batches, 1.0 * std::max(l_.pp, 1));
    const double exposed = std::max(scatter - room, (1 - s_.gradient_overlap) * scatter) +
                           std::max(gather - s_.gather_overlap * backward / 2, (1 - s_.gather_overlap) * gather);
    part(result_.parts, network ? BoundBy::kNetwork : BoundBy::kCommunication) += exposed;
    return exposed;
  }

  double optimizer() {
    const double ranks = l_.zero >= 1 ? static_cast<double>(l_.dp) * l_.cp : 1;
    const double mine =
        m_.adapters ? m_.adapter_parameters
                    : (m_.dense_parameters + m_.expert_parameters * std::min(1.0, static_cast<double>(l_.ep))) / ranks;
    // Gradient, master copy and two moments are read, all but the gradient written, and the new weight.
    double seconds = mine * 30 * s_.optimizer_passes / r_.elementwise;
    if (l_.offload != Offload::kNone && r_.host_link > 0) seconds += mine * 6 / r_.host_link;
    part(result_.parts, BoundBy::kWeights) += seconds;
    return seconds;
  }

  const TrainModel& m_;
  const Rates& r_;
  const Layout& l_;
  const TrainingSchedule& s_;
  TrainResult result_;
};

}  // namespace

TrainResult train_step(const TrainModel& model) { return TrainPricer(model).price(); }

}  // namespace fathom::plan
