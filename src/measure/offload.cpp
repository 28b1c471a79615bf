#include "measure/offload.h"

#include <algorithm>
#include <set>

#include "backends/backends.h"
#include "backends/cpu/cpu_backend.h"
#include "base/i18n.h"
#include "base/math.h"
#include "base/strings.h"
#include "hardware/probe.h"
#include "measure/offload_rates.h"
#include "measure/predict.h"

namespace fathom::measure {
namespace {

using model::WeightClass;
using model::WeightEntry;

constexpr Bytes kForDriver = 256 * kMiB;  // kernels that it loads when they are first launched, recorded passes
constexpr Bytes kSlack = 64 * kKiB;       // what units lose to alignment

/// Which entries of a layer can leave the device: large matrices, which ops are given whole.
bool can_leave(const WeightEntry& entry, const weights::StoragePolicy& storage, bool experts) {
  if (entry.layer < 0 || entry.vector || entry.tied_to >= 0 || !storage.wants(entry)) return false;
  if (entry.cls == WeightClass::kRoutedExpert) return true;
  return !experts && (entry.cls == WeightClass::kAttention || entry.cls == WeightClass::kDenseFfn ||
                      entry.cls == WeightClass::kSharedExpert);
}

/// A unit a layer, of the layers named, ascending.
weights::HostUnits units_of(const model::WeightTable& table, const weights::StoragePolicy& storage,
                            const std::vector<int>& layers, bool experts) {
  weights::HostUnits host;
  for (const int layer : layers) {
    std::vector<model::WeightId> unit;
    for (std::size_t i = 0; i < table.entries().size(); ++i)
      if (table.entries()[i].layer == layer && can_leave(table.entries()[i], storage, experts))
        unit.push_back(static_cast<model::WeightId>(i));
    host.units.push_back(std::move(unit));
  }
  return host;
}

/// Layers of this rank, by their numbers in the model.
std::vector<int> layers_of(const model::WeightTable& table) {
  std::set<int> layers;
  for (const WeightEntry& entry : table.entries())
    if (entry.layer >= 0 && entry.part == model::WeightPart::kMain) layers.insert(entry.layer);
  return {layers.begin(), layers.end()};
}

Status set_sizes(const OffloadInputs& in, const std::vector<int>& layers, plan::OffloadCase& problem) {
  problem.layers.resize(layers.size());
  for (const bool experts : {false, true}) {
    FATHOM_TRY(const weights::WeightPlan all,
               weights::plan_weights(in.architecture->weights(), in.storage,
                                     units_of(in.architecture->weights(), in.storage, layers, experts)));
    for (std::size_t l = 0; l < layers.size(); ++l)
      (experts ? problem.layers[l].experts : problem.layers[l].all) = all.residence.units[l].bytes;
  }
  for (const WeightEntry& entry : in.architecture->weights().entries())
    if (entry.cls == WeightClass::kRoutedExpert && entry.part == model::WeightPart::kMain) {
      problem.experts = static_cast<double>(entry.experts);
      problem.expert_flops = 6.0 * static_cast<double>(entry.rows) * static_cast<double>(entry.cols);
    }
  const model::ModelSpec& spec = in.architecture->spec();
  problem.experts_total = static_cast<double>(spec.routing.experts);
  problem.experts_per_token = static_cast<double>(spec.routing.top_k);
  return {};
}

/// What the planner says of the passes with all weights on the device; left at 0 where it knows nothing.
void set_resident_seconds(const OffloadInputs& in, plan::OffloadCase& problem) {
  hardware::ProbeOptions probe;
  probe.effort = hardware::Effort::kNone;
  probe.measure_disks = false;
  const Workload work{.batch = problem.decode_tokens,
                      .prompt = problem.prefill_tokens,
                      .generate = std::max<std::int64_t>(in.work.generate, 1)};
  const std::string weights = in.architecture->spec().quantization.empty() ? in.weights : "native";
  const auto answer = predict(hardware::probe(probe), in.architecture->spec(), weights, work,
                              in.backend->host_addressable(), {}, layout_of(in.seat->spread));
  if (!answer) return;
  const plan::TimeEstimate& time = answer->best.time;
  if (time.ttft_ms) problem.prefill_seconds = time.ttft_ms->value / 1e3 / static_cast<double>(problem.decode_tokens);
  if (time.tpot_ms) problem.decode_seconds = time.tpot_ms->value / 1e3;
}

/// What a run may take of the device from now on; nothing: there is no limit.
Result<std::optional<Bytes>> room_on(const tensor::Backend& backend, const OffloadWishes& wishes) {
  std::optional<Bytes> room;
  const auto less = [](Bytes a, Bytes b) { return a > b ? a - b : 0; };
  const auto device = backend.device_memory();
  if (device) room = less(device->free, kForDriver);
  if (wishes.memory.empty() || wishes.memory == "least") return room;
  Bytes asked = 0;
  if (!parse_bytes(wishes.memory, asked)) return fail("measure.gpu_memory", {{"text", printable(wishes.memory)}});
  // What is in use already counts, as it would on a card of that size.
  const Bytes left = device ? less(asked, device->total - device->free + kForDriver) : asked;
  return std::min(left, room.value_or(left));
}

int host_threads(const OffloadInputs& in) {
  if (in.threads > 0) return in.threads;
  const int usable = cpu::default_threads();
  if (in.backend->host_addressable()) return usable;
  // One waits for the device, one is the driver's.
  return std::max(1, usable > 4 ? usable - 2 : usable - 1);
}

Result<engine::EngineMemory> memory_with(const OffloadInputs& in, const weights::HostUnits& units) {
  FATHOM_TRY(const weights::WeightPlan weights, weights::plan_weights(in.architecture->weights(), in.storage, units));
  FATHOM_TRY(const engine::EnginePlan plan,
             engine::plan_engine(*in.architecture, weights, in.engine, in.backend->ops().activation_dtype(),
                                 in.seat->spread, in.seat->rank));
  engine::EngineMemory memory = plan.memory;
  if (!in.backend->sample({})) memory.sampling = 0;
  return memory;
}

/// Units and options for what `report` says.
Result<engine::EngineMemory> apply(const OffloadInputs& in, const std::vector<int>& layers, const OffloadReport& report,
                                   OffloadChoice& choice) {
  std::vector<int> moved;
  for (const int index : report.plan.layers) moved.push_back(layers[static_cast<std::size_t>(index)]);
  choice.units = units_of(in.architecture->weights(), in.storage, moved, report.plan.experts);
  choice.units.places = report.plan.places;
  choice.options.host_tokens = report.plan.host_tokens;
  return memory_with(in, choice.units);
}

plan::OffloadCase case_of(const OffloadInputs& in) {
  plan::OffloadCase problem;
  problem.prefill_tokens = std::clamp<std::int64_t>(in.work.prompt, 1, in.engine.prefill_chunk);
  problem.decode_tokens = std::max<std::int64_t>(in.engine.slots, 1);
  const std::int64_t chunks = ceil_div(in.work.prompt, in.engine.prefill_chunk);
  problem.prefill_passes = static_cast<double>(problem.decode_tokens) * static_cast<double>(chunks);
  problem.decode_passes = static_cast<double>(in.work.generate);
  return problem;
}

Result<OffloadChoice> choose(const OffloadInputs& in, const OffloadWishes& wishes, plan::OffloadWish wish,
                             const engine::EngineMemory& resident, Bytes room, bool limited) {
  OffloadChoice choice;
  OffloadReport report{.needed = engine::reserved_bytes(resident), .room = room, .problem = case_of(in), .plan = {}};
  plan::OffloadCase& problem = report.problem;
  const Bytes rest = report.needed - tensor::Backend::reserved_bytes(resident.weights_arena);
  if (limited && rest > room)
    return fail_environment("measure.offload_rest", {{"rest", format_bytes(rest)}, {"room", format_bytes(room)}});
  const std::vector<int> layers = layers_of(in.architecture->weights());
  FATHOM_TRY_VOID(set_sizes(in, layers, problem));
  problem.everything = wishes.memory == "least";
  problem.beside = !in.backend->host_addressable();
  if (limited && !problem.everything) problem.over = report.needed + kSlack - room;
  set_resident_seconds(in, problem);
  const bool may_compute = wish == plan::OffloadWish::kAuto || wish == plan::OffloadWish::kCpuExperts;
  std::shared_ptr<tensor::Backend> host;
  if (may_compute && problem.experts > 0) {
    report.host_threads = host_threads(in);
    FATHOM_TRY(host, backends::make_backend("cpu", {.threads = report.host_threads, .isa = in.isa}));
  }
  FATHOM_TRY(problem.rates,
             measure_offload_rates(*in.backend, host.get(), experts_of(*in.architecture, in.storage), problem));
  report.compared = host != nullptr;
  FATHOM_TRY(report.plan, plan::plan_offload(problem, wish));
  if (report.plan.host_tokens > 0)
    choice.options.host = std::move(host);
  else
    report.host_threads = 0;
  choice.options.threads = report.host_threads;
  FATHOM_TRY(const engine::EngineMemory memory, apply(in, layers, report, choice));
  FATHOM_CHECK(!limited || problem.everything || engine::reserved_bytes(memory) <= room,
               "offload that does not free what it should");
  FATHOM_TRY_VOID(in.backend->reserve(engine::reserved_bytes(memory)));
  choice.report = std::move(report);
  return choice;
}

}  // namespace

Result<OffloadChoice> prepare_memory(const OffloadInputs& in, const OffloadWishes& wishes) {
  FATHOM_TRY(const plan::OffloadWish wish, plan::parse_offload_wish(wishes.way));
  FATHOM_TRY(const std::optional<Bytes> room, room_on(*in.backend, wishes));
  if (in.mmap) {
    if (!wishes.memory.empty()) return fail("measure.offload_mmap");
    return OffloadChoice{};
  }
  FATHOM_TRY(const engine::EngineMemory resident, memory_with(in, {}));
  const Bytes needed = engine::reserved_bytes(resident);
  const bool fits = !room || needed <= *room;
  if (fits && wishes.memory != "least") {
    FATHOM_TRY_VOID(in.backend->reserve(needed));
    return OffloadChoice{};
  }
  if (wish == plan::OffloadWish::kNone) {
    if (!fits)
      return fail_environment("measure.offload_none",
                              {{"needed", format_bytes(needed)}, {"room", format_bytes(*room)}});
    FATHOM_TRY_VOID(in.backend->reserve(needed));
    return OffloadChoice{};
  }
  return choose(in, wishes, wish, resident, room.value_or(0), room.has_value());
}

std::string offload_text(const OffloadReport& r) {
  const plan::OffloadPlan& plan = r.plan;
  const auto seconds = [](double s) { return format_seconds(s); };
  TextArgs args{{"count", std::to_string(plan.layers.size())},
                {"layers", std::to_string(r.problem.layers.size())},
                {"moved", format_bytes(plan.moved_bytes)},
                {"needed", format_bytes(r.needed)},
                {"room", format_bytes(r.room)},
                {"places", format_bytes(plan.place_bytes * static_cast<Bytes>(plan.places))},
                {"link", format_bytes(static_cast<Bytes>(r.problem.rates.link))},
                {"host", format_bytes(static_cast<Bytes>(r.problem.rates.host_stream))},
                {"threads", std::to_string(r.host_threads)},
                {"tokens", std::to_string(plan.host_tokens)},
                {"decode_tokens", std::to_string(r.problem.decode_tokens)},
                {"prefill_tokens", std::to_string(r.problem.prefill_tokens)},
                {"decode_streamed", seconds(plan.decode.streamed)},
                {"decode_host", seconds(plan.decode.on_host)},
                {"prefill_streamed", seconds(plan.prefill.streamed)},
                {"prefill_host", seconds(plan.prefill.on_host)}};
  std::vector<std::string> sentences{
      tr(r.problem.everything ? "measure.offload.asked" : "measure.offload.why", args),
      tr(plan.experts ? "measure.offload.experts" : "measure.offload.whole_layers", args),
      tr(plan.host_tokens == 0 ? "measure.offload.streams"
         : plan.places == 0    ? "measure.offload.computes"
                               : "measure.offload.both",
         args)};
  if (plan.experts && r.compared) sentences.push_back(tr("measure.offload.times", args));
  return join(sentences, language() == Language::kChinese ? "" : " ");
}

}  // namespace fathom::measure
