#include <algorithm>
#include <cmath>

#include "plan/cost_measured.h"

namespace fathom::plan {
namespace {

/// Compute and streaming overlap, but not fully.
double blend(double a, double b, double power) {
  const double high = std::max(a, b), low = std::min(a, b);
  if (low < 0.05 * high) return high;
  const double r = low / high;
  return power == 3 ? high * std::cbrt(1 + r * r * r) : high * std::pow(1 + std::pow(r, power), 1 / power);
}

void charge(Parts* parts, BoundBy bound, double seconds) {
  if (parts != nullptr) part(*parts, bound) += seconds;
}

double product_seconds(const Kernel& k, const Load& load, const Rates& r, Parts* parts) {
  const double rate = k.unpacks ? r.unpack_product : r.product[static_cast<std::size_t>(k.precision)];
  const double flops = k.flops.at(load.tokens, load.outputs);
  if (flops <= 0) return 0;
  const double weights = k.weight_bytes / (r.stream * (k.unpacks ? r.unpack_share : 1));
  double streamed = weights + k.bytes.at(load.tokens, load.outputs) / r.stream;
  if (k.weight_gradient) streamed += k.weight_elements * 6 / r.stream;  // added to what is there
  const double compute = flops / (rate * (k.weight_gradient ? r.gradient_product : 1));
  const double floor = r.product_floor + (static_cast<double>(k.launches) - 1) * r.small_floor;
  const double busy = blend(streamed, compute, r.blend);
  charge(parts, streamed > compute && weights > 0.5 * streamed ? BoundBy::kWeights : BoundBy::kCompute,
         busy * static_cast<double>(k.repeats));
  const double casts = k.apart.at(load.tokens, load.outputs) / r.elementwise;
  charge(parts, BoundBy::kLaunch, floor * static_cast<double>(k.repeats));
  charge(parts, BoundBy::kCompute, casts * static_cast<double>(k.repeats));
  return floor + busy + casts;
}

double attention_seconds(const Kernel& k, const Load& load, const Rates& r, Parts* parts) {
  double visible = load.visible, keys = load.keys;
  if (k.window > 0) visible = std::min(visible, k.window), keys = std::min(keys, load.decode ? k.window : keys);
  visible /= k.ratio, keys /= k.ratio;
  if (k.top_k > 0) visible = std::min(visible, k.top_k), keys = load.decode ? std::min(keys, k.top_k) : keys;
  const double flops = k.row_flops * visible * load.tokens * (k.backward ? 2.5 : 1);
  const double rate = load.decode
                          ? r.decode_attention
                          : r.attention * keys / (keys + r.attention_half) * (k.backward ? r.attention_backward : 1);
  const double cache = load.sequences * keys * k.row_bytes;
  const double streamed = load.decode ? cache / (k.latent ? r.latent_stream : r.cache_stream) +
                                            k.bytes.at(load.tokens, load.outputs) / r.elementwise
                                      : (cache + k.bytes.at(load.tokens, load.outputs)) / r.stream;
  const double compute = rate > 0 ? flops / rate : 0;
  const double floor = static_cast<double>(k.launches) * (load.decode ? r.small_floor : r.product_floor);
  const double busy = blend(streamed, compute, r.blend);
  charge(parts, load.decode && streamed > compute ? BoundBy::kKv : BoundBy::kCompute,
         busy * static_cast<double>(k.repeats));
  charge(parts, BoundBy::kLaunch, floor * static_cast<double>(k.repeats));
  return floor + busy;
}

double experts_seconds(const Kernel& k, const Load& load, const Rates& r, const Layout& layout, Parts* parts) {
  const double tokens = load.tokens * load.replicas;
  if (tokens <= 0) return 0;
  const double chance = k.experts_per_token / k.experts_total;
  // Routing is correlated between tokens: fewer experts are hit than independent draws would.
  double hit = 1 - std::exp(tokens * r.expert_independence * std::log1p(-std::min(chance, 0.999999)));
  hit = std::max(hit, std::min(1.0, chance));
  const double local = k.experts_here;
  const bool spread = layout.ep > 1 && !load.balanced;
  const double spill = spread ? 1 + r.expert_spill * std::sqrt(std::max(0.0, 1 - hit) / std::max(local * hit, 0.05))
                              : 1;  // the fullest of a group
  const double read = std::min(1.0, hit * std::min(spill, 3.0));
  const double imbalance = spread ? 1 + r.expert_imbalance * std::min(1.0, tokens / 512) : 1;
  const double assigned = tokens * k.experts_per_token * local / k.experts_total * imbalance;
  const double rate =
      (k.unpacks ? r.unpack_product : r.product[static_cast<std::size_t>(k.precision)]) * r.expert_share;
  const double compute = assigned * k.expert_flops / (rate * (k.weight_gradient ? r.gradient_product : 1));
  const double stream = r.expert_stream * (k.unpacks ? r.unpack_share : 1);
  // Gathered replicas' rows are all there; sent to their experts, a row is there once for each of them.
  const double copies = load.balanced ? k.experts_per_token : load.replicas;
  double streamed = k.weight_bytes * read / stream + k.bytes.at(load.tokens, load.outputs) * copies / r.stream;
  if (k.weight_gradient) streamed += k.weight_elements * 6 / r.stream;
  const double floor = r.product_floor * 2 + (static_cast<double>(k.launches) - 2) * r.small_floor;
  const double busy = blend(streamed, compute, r.blend);
  charge(parts, streamed > compute ? BoundBy::kWeights : BoundBy::kCompute, busy * static_cast<double>(k.repeats));
  charge(parts, BoundBy::kLaunch, floor * static_cast<double>(k.repeats));
  return floor + busy;
}

double reduce_seconds(const Kernel& k, const Load& load, const Rates& r, const Layout& layout, Parts* parts) {
  const double bytes = k.bytes.at(load.tokens, load.outputs);
  double seconds = 0;
  bool network = false;
  const auto reduce = [&](int ranks) {
    if (ranks <= r.domain) return all_reduce_seconds(r.intra, ranks, bytes);
    network = true;
    return all_reduce_seconds(r.intra, r.domain, bytes) +
           all_reduce_seconds(r.inter, (ranks + r.domain - 1) / r.domain, bytes / r.domain);
  };
  if (k.group == tensor::Group::kExpert && layout.dp_attention > 1) {
    // Rows of all replicas are gathered before the experts and summed back after them.
    const int ranks = layout.tp * layout.dp_attention;
    network = ranks > r.domain;
    const LinkRates& link = network ? r.inter : r.intra;
    seconds = 2 * all_gather_seconds(link, ranks, bytes * load.replicas);
  } else {
    seconds = reduce(k.group == tensor::Group::kExpert ? layout.tp * layout.dp_attention : layout.tp);
  }
  charge(parts, network ? BoundBy::kNetwork : BoundBy::kCommunication, seconds * static_cast<double>(k.repeats));
  return seconds;
}

}  // namespace

double kernel_seconds(const Kernel& k, const Load& load, const Rates& r, const Layout& layout, Parts* parts) {
  switch (k.kind) {
    case Kernel::Kind::kProduct:
      return product_seconds(k, load, r, parts);
    case Kernel::Kind::kAttention:
    case Kernel::Kind::kIndexer:
      return attention_seconds(k, load, r, parts);
    case Kernel::Kind::kExperts:
      return experts_seconds(k, load, r, layout, parts);
    case Kernel::Kind::kReduce:
    case Kernel::Kind::kGather:
      return reduce_seconds(k, load, r, layout, parts);
    case Kernel::Kind::kElementwise:
      break;
  }
  const double floor = static_cast<double>(k.launches) * r.small_floor,
               busy = k.bytes.at(load.tokens, load.outputs) / r.elementwise;
  charge(parts, BoundBy::kLaunch, floor * static_cast<double>(k.repeats));
  charge(parts, BoundBy::kCompute, busy * static_cast<double>(k.repeats));
  return floor + busy;
}

namespace {

double program_seconds(const StepModel& m, const Program& program, const Load& shared, const Load& bound,
                       bool bound_only, Parts* parts) {
  double seconds = 0;
  for (const Kernel& k : program.kernels) {
    if (bound_only && !k.phase_bound) continue;
    seconds +=
        kernel_seconds(k, k.phase_bound ? bound : shared, m.rates, m.layout, parts) * static_cast<double>(k.repeats);
  }
  return seconds;
}

}  // namespace

double device_seconds(const StepModel& m, const StepShape& s, Parts* parts) {
  if (m.measured != nullptr) return measured_seconds(m, s, parts);
  const double decode_tokens = s.decodes * s.decode_tokens;
  Load decode{.tokens = decode_tokens,
              .outputs = decode_tokens,
              .sequences = s.decodes,
              .visible = s.context,
              .keys = s.context,
              .replicas = static_cast<double>(m.layout.dp_attention),
              .decode = true};
  double seconds = 0;
  if (s.prompt_tokens > 0) {
    Load prompt{.tokens = s.prompt_tokens,
                .outputs = s.prompt_outputs,
                .sequences = s.prompt_tokens / std::max(s.prompt_length, 1.0),
                .visible = s.prompt_past + (s.prompt_length + 1) / 2,
                .keys = s.prompt_past + s.prompt_length,
                .replicas = static_cast<double>(m.layout.dp_attention)};
    Load shared = prompt;
    shared.tokens += decode_tokens;
    shared.outputs += decode_tokens;
    seconds += program_seconds(m, m.prefill, shared, prompt, false, parts);
    if (s.decodes > 0) seconds += program_seconds(m, m.decode, decode, decode, true, parts);
  } else if (s.decodes > 0) {
    seconds += program_seconds(m, m.decode, decode, decode, false, parts);
  }
  if (m.layout.pp > 1) {
    const bool network = m.layout.tp * m.layout.pp * m.layout.dp_attention > m.rates.domain;
    const double sends = (m.layout.pp - 1) * send_seconds(network ? m.rates.inter : m.rates.intra,
                                                          (s.prompt_tokens + decode_tokens) * m.hidden_bytes);
    charge(parts, network ? BoundBy::kNetwork : BoundBy::kCommunication, sends);
    seconds += sends;
  }
  return seconds;
}

double step_seconds(const StepModel& m, const StepShape& s, Parts* parts) {
  if (m.measured != nullptr) return measured_seconds(m, s, parts) + measured_step(m, s, parts);
  const EngineProfile& e = *m.engine;
  double device = device_seconds(m, s, parts);
  const bool replayed =
      e.lowering.graphs && s.prompt_tokens == 0 && s.decodes <= static_cast<double>(e.lowering.graph_batch);
  if (!replayed) {
    const double launching = (s.prompt_tokens > 0 ? m.prefill : m.decode).launches * e.host.launch * m.rates.host *
                             (m.packed ? e.packed_launch : 1);
    if (launching > device) {
      charge(parts, BoundBy::kHost, launching - device);
      device = launching;
    }
  }
  // Work a sequence is in the way of the next step even where the rest overlaps: outputs must be known and sent.
  const double each =
      (e.host.sequence * (s.decodes + s.prompt_outputs) + e.host.prompt_token * s.prompt_tokens) * m.rates.host;
  const double step = (m.offline && e.offline_step > 0 ? e.offline_step : e.host.step) * m.rates.host;
  const double exposed = each + (e.host.overlapped ? std::max(0.0, step - device) : step);
  charge(parts, BoundBy::kHost, exposed);
  return device + exposed;
}

}  // namespace fathom::plan
