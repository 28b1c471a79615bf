#include "plan/offload.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/strings.h"

namespace fathom::plan {
namespace {

constexpr int kPlaces = 2;    // one is read, the next is filled
constexpr double kBlend = 3;  // as in docs/cost-model.md

constexpr std::pair<OffloadWish, std::string_view> kWishes[] = {{OffloadWish::kAuto, "auto"},
                                                                {OffloadWish::kNone, "none"},
                                                                {OffloadWish::kLayers, "layers"},
                                                                {OffloadWish::kExperts, "experts"},
                                                                {OffloadWish::kCpuExperts, "cpu-experts"}};

Bytes size_of(const OffloadLayer& layer, bool experts) { return experts ? layer.experts : layer.all; }

/// `count` of the layers that have something to move, evenly spread: copies then have the layers between to hide
/// behind.
OffloadPlan choose(const OffloadCase& problem, bool experts, int count, int places) {
  std::vector<int> able;
  for (int i = 0; i < static_cast<int>(problem.layers.size()); ++i)
    if (size_of(problem.layers[static_cast<std::size_t>(i)], experts) > 0) able.push_back(i);
  OffloadPlan plan{.experts = experts, .places = std::min(places, count), .prefill = {}, .decode = {}};
  for (int j = 0; j < count; ++j) {
    const int layer = able[static_cast<std::size_t>((2 * j + 1) * static_cast<int>(able.size()) / (2 * count))];
    plan.layers.push_back(layer);
    const Bytes bytes = size_of(problem.layers[static_cast<std::size_t>(layer)], experts);
    plan.moved_bytes += bytes;
    if (places > 0) plan.place_bytes = std::max(plan.place_bytes, bytes);
  }
  return plan;
}

/// The fewest layers that free enough; nothing when all of them do not.
std::optional<OffloadPlan> fewest(const OffloadCase& problem, bool experts, int places) {
  const auto able =
      static_cast<int>(std::count_if(problem.layers.begin(), problem.layers.end(),
                                     [&](const OffloadLayer& layer) { return size_of(layer, experts) > 0; }));
  for (int count = problem.everything ? able : 1; count <= able; ++count) {
    if (count == 0) break;
    OffloadPlan plan = choose(problem, experts, count, places);
    if (plan.freed() >= problem.over && plan.moved_bytes > 0) return plan;
  }
  return std::nullopt;
}

double host_seconds(const OffloadCase& problem, const OffloadPlan& plan, double tokens) {
  const double layers = static_cast<double>(plan.layers.size()), experts = std::max(problem.experts, 1.0),
               share = experts / std::max(problem.experts_total, experts);
  const double hit =
      experts * (1 - std::pow(1 - problem.experts_per_token / std::max(problem.experts_total, 1.0), tokens));
  const double bytes = static_cast<double>(plan.moved_bytes) / layers / experts * hit;
  const double many = std::log(static_cast<double>(std::max<std::int64_t>(problem.decode_tokens, 1))),
               place = many > 0 ? std::min(std::log(std::max(tokens, 1.0)) / many, 1.0) : 1;
  const double stream = bytes / (problem.rates.host_stream_one +
                                 place * (problem.rates.host_stream - problem.rates.host_stream_one)),
               compute = tokens * problem.experts_per_token * share * problem.expert_flops / problem.rates.host_flops;
  return layers * (problem.rates.handover + std::pow(std::pow(stream, kBlend) + std::pow(compute, kBlend), 1 / kBlend));
}

/// The most tokens of a pass for which the host is the faster one.
std::int64_t break_even(const OffloadCase& problem, const OffloadPlan& plan) {
  const auto resident = [&](std::int64_t tokens) {  // between the two passes whose times are known
    const double share = static_cast<double>(tokens - problem.decode_tokens) /
                         std::max(1.0, static_cast<double>(problem.prefill_tokens - problem.decode_tokens));
    return problem.decode_seconds + std::clamp(share, 0.0, 1.0) * (problem.prefill_seconds - problem.decode_seconds);
  };
  std::int64_t tokens = 0;
  for (std::int64_t next = 1; next <= std::max(problem.prefill_tokens, problem.decode_tokens); next *= 2) {
    const OffloadTimes times = offload_times(problem, plan, next, resident(next));
    if (times.on_host >= times.streamed) break;
    tokens = next;
  }
  return tokens;
}

void time_passes(const OffloadCase& problem, OffloadPlan& plan) {
  plan.prefill = offload_times(problem, plan, problem.prefill_tokens, problem.prefill_seconds);
  plan.decode = offload_times(problem, plan, problem.decode_tokens, problem.decode_seconds);
  plan.prefill_seconds = plan.on_host(problem.prefill_tokens) ? plan.prefill.on_host : plan.prefill.streamed;
  plan.decode_seconds = plan.on_host(problem.decode_tokens) ? plan.decode.on_host : plan.decode.streamed;
}

tl::unexpected<Error> too_much(const OffloadCase& problem, bool experts) {
  Bytes most = 0;
  for (const OffloadLayer& layer : problem.layers) most += size_of(layer, experts);
  return fail("plan.offload.too_much", {{"over", format_bytes(problem.over)}, {"most", format_bytes(most)}});
}

}  // namespace

std::string_view offload_wish_name(OffloadWish wish) {
  for (const auto& [value, name] : kWishes)
    if (value == wish) return name;
  return "auto";
}

Result<OffloadWish> parse_offload_wish(std::string_view name) {
  for (const auto& [value, known] : kWishes)
    if (known == name) return value;
  return fail("plan.offload.way", {{"name", printable(name)}});
}

OffloadTimes offload_times(const OffloadCase& problem, const OffloadPlan& plan, std::int64_t tokens, double resident) {
  OffloadTimes times;
  const double copies = static_cast<double>(plan.moved_bytes) / problem.rates.link;
  times.streamed = problem.beside ? std::max(copies, resident) : copies + resident;
  if (plan.experts) times.on_host = resident + host_seconds(problem, plan, static_cast<double>(tokens));
  return times;
}

double offload_seconds(const OffloadCase& problem, const OffloadPlan& plan, std::int64_t tokens, double resident) {
  const OffloadTimes times = offload_times(problem, plan, tokens, resident);
  return plan.on_host(tokens) ? times.on_host : times.streamed;
}

Result<OffloadPlan> plan_offload(const OffloadCase& problem, OffloadWish wish) {
  const bool has_experts = std::any_of(problem.layers.begin(), problem.layers.end(),
                                       [](const OffloadLayer& layer) { return layer.experts > 0; });
  if (!has_experts && (wish == OffloadWish::kExperts || wish == OffloadWish::kCpuExperts))
    return fail("plan.offload.no_experts", {{"way", std::string(offload_wish_name(wish))}});
  std::optional<OffloadPlan> best;
  double least = 0;
  const auto offer = [&](std::optional<OffloadPlan> plan, std::int64_t host_tokens) {
    if (!plan) return;
    plan->host_tokens = host_tokens < 0 ? break_even(problem, *plan) : host_tokens;
    time_passes(problem, *plan);
    const double seconds =
        problem.prefill_passes * plan->prefill_seconds + problem.decode_passes * plan->decode_seconds;
    if (best && seconds >= least) return;
    best = std::move(plan);
    least = seconds;
  };
  const bool any = wish == OffloadWish::kAuto;
  if (has_experts && (any || wish == OffloadWish::kCpuExperts)) offer(fewest(problem, true, 0), kAllTokens);
  if (has_experts && (any || wish == OffloadWish::kExperts)) offer(fewest(problem, true, kPlaces), any ? -1 : 0);
  if (wish == OffloadWish::kLayers || (any && !best)) offer(fewest(problem, false, kPlaces), 0);
  if (!best) return too_much(problem, wish == OffloadWish::kExperts || wish == OffloadWish::kCpuExperts);
  return *best;
}

}  // namespace fathom::plan
