#include "measure/ranks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/mpi/mpi_transport.h"
#include "backends/threads/threads_transport.h"
#include "base/strings.h"
#include "hardware/probe.h"
#include "plan/answer.h"
#include "plan/engine_profile.h"
#include "plan/request.h"

namespace fathom::measure {
namespace {

int product(const RankWishes& w) { return w.tp.value_or(1) * w.pp.value_or(1) * w.dp.value_or(1); }

tl::unexpected<Error> product_error(const RankWishes& w, int count) {
  std::vector<std::string> parts;
  const std::pair<const char*, std::optional<int>> sizes[] = {{"tp", w.tp}, {"pp", w.pp}, {"dp", w.dp}};
  for (const auto& [name, size] : sizes)
    if (size) parts.push_back(std::string(name) + " " + std::to_string(*size));
  return fail("ranks.product", {{"sizes", parts.empty() ? "-" : join(parts, " · ")}, {"ranks", std::to_string(count)}});
}

/// The devices that the ranks are: GPUs of this machine, or shares of its processors.
Result<plan::Cluster> cluster_of(const SpreadWork& work, int count) {
  hardware::ProbeOptions options;
  options.effort = hardware::Effort::kNone;
  options.measure_disks = false;
  const hardware::Machine machine = hardware::probe(options);
  FATHOM_TRY(plan::Cluster cluster, plan::machine_cluster(machine, work.device != "cuda"));
  cluster.devices = count;
  if (!cluster.device.is_cpu()) {
    cluster.domain = std::max(cluster.domain, std::min(count, cluster.devices_per_node));
    return cluster;
  }
  plan::Device& device = cluster.device;
  device.capacity_bytes /= static_cast<Bytes>(count);
  device.bandwidth_bytes_per_second /= count;
  for (auto& flops : device.peak_flops)
    if (flops) *flops /= count;
  device.cores = std::max(1, device.cores / count);
  cluster.devices_per_node = cluster.domain = count;
  cluster.intra = {"", device.bandwidth_bytes_per_second / 4, 5e-6};
  return cluster;
}

Result<engine::Spread> plan_spread(const RankWishes& w, const model::ModelSpec& spec, const SpreadWork& work,
                                   int count) {
  plan::PlanRequest request;
  FATHOM_TRY(request.model, plan::plan_model_from_config(spec.config_json));
  FATHOM_TRY(request.cluster, cluster_of(work, count));
  request.task = plan::Task::kChat;
  FATHOM_TRY(request.engine, plan::find_engine("fathom"));
  FATHOM_TRY(request.weights, plan::find_weight_format(work.weights == "f16"   ? "fp16"
                                                       : work.weights == "f32" ? "fp32"
                                                                               : work.weights));
  request.layout = {.tp = w.tp, .pp = w.pp, .dp = 1, .dp_attention = w.dp, .ep = w.ep, .cp = 1};
  request.batch = work.batch;
  request.input = work.prompt;
  request.output = work.generate;
  FATHOM_TRY(const plan::PlanAnswer answer, plan::make_plan(request));
  const plan::Layout& best = answer.best.layout;
  return engine::Spread{.tp = best.tp, .pp = best.pp, .dp = best.dp_attention, .ep = best.ep};
}

Result<engine::Spread> any_spread(const RankWishes& w, const model::ModelSpec& spec, const SpreadWork& work,
                                  int count) {
  const bool experts = spec.routing.experts > 0;
  // Everything that matters was said.
  if (product(w) == count && (w.ep || !experts || count == w.pp.value_or(1)))
    return engine::Spread{
        .tp = w.tp.value_or(1), .pp = w.pp.value_or(1), .dp = w.dp.value_or(1), .ep = w.ep.value_or(1)};
  if (count % product(w) != 0 || (w.tp && w.pp && w.dp)) return product_error(w, count);
  return plan_spread(w, spec, work, count);
}

Result<engine::Spread> spread_of(const RankWishes& w, const model::ModelSpec& spec, const SpreadWork& work, int count) {
  FATHOM_TRY(const engine::Spread spread, any_spread(w, spec, work, count));
  FATHOM_TRY_VOID(engine::check_spread(spec, spread));
  return spread;
}

}  // namespace

Result<Launch> find_launch(const RankWishes& wishes, const std::string& device) {
  if (wishes.gpus > 0 && device != "cuda")
    return fail("ranks.gpus_device", {{"gpus", std::to_string(wishes.gpus)}, {"device", printable(device)}});
  const int asked = std::max(wishes.ranks, wishes.gpus);
  if (wishes.ranks > 0 && wishes.gpus > 0 && wishes.ranks != wishes.gpus)
    return fail("ranks.count", {{"there", std::to_string(wishes.gpus)}, {"asked", std::to_string(wishes.ranks)}});
  Launch launch;
  if (mpi::launched()) {
    FATHOM_TRY(launch.process, mpi::make_mpi_transport());
    launch.count = launch.process->size();
    if (asked > 0 && asked != launch.count)
      return fail("ranks.count", {{"there", std::to_string(launch.count)}, {"asked", std::to_string(asked)}});
    return launch;
  }
  launch.count =
      asked > 0 ? asked
                : std::max(product(wishes), wishes.tp || wishes.dp ? 1 : wishes.ep.value_or(1) * wishes.pp.value_or(1));
  return launch;
}

Result<engine::Spread> choose_spread(const Launch& launch, const RankWishes& wishes, const model::ModelSpec& spec,
                                     const SpreadWork& work) {
  engine::Spread spread;
  if (launch.process == nullptr) {
    FATHOM_TRY(spread, spread_of(wishes, spec, work, launch.count));
  } else {
    Result<engine::Spread> chosen =
        launch.follows() ? Result<engine::Spread>(spread) : spread_of(wishes, spec, work, launch.count);
    FATHOM_TRY_VOID(tensor::agree(*launch.process, chosen ? Status() : Status(tl::unexpected<Error>(chosen.error()))));
    std::vector<std::byte> bytes(sizeof spread);
    std::memcpy(bytes.data(), &*chosen, sizeof spread);
    FATHOM_TRY_VOID(tensor::broadcast(*launch.process, bytes));
    std::memcpy(&spread, bytes.data(), sizeof spread);
  }
  return spread;
}

std::string spread_text(const engine::Spread& spread) {
  std::vector<std::string> parts;
  const std::pair<const char*, int> sizes[] = {
      {"tp", spread.tp}, {"pp", spread.pp}, {"dp", spread.dp}, {"ep", spread.ep}};
  for (const auto& [name, size] : sizes)
    if (size > 1) parts.push_back(std::string(name) + " " + std::to_string(size));
  return join(parts, " · ");
}

plan::Layout layout_of(const engine::Spread& spread) {
  return {
      .tp = spread.tp, .pp = spread.pp, .dp_attention = spread.dp, .ep = spread.ep, .expert_tp = spread.expert_tp()};
}

model::Sharding sharding_of(const model::ModelSpec& spec, const engine::Seat& seat) {
  if (seat.alone()) return {};
  std::vector<engine::StageLayers> stages;
  for (int s = 0; s < seat.spread.pp; ++s) {
    const plan::LayerSpan span = plan::stage_layers(spec.layers, seat.spread.pp, 1, s).front();
    stages.push_back({span.first, span.last});
  }
  return engine::sharding_of(spec, seat.spread, seat.rank, stages);
}

tensor::BackendOptions backend_options(const engine::Seat& seat, int threads, const std::string& isa) {
  tensor::BackendOptions options{.threads = threads, .activation_dtype = DType::f32, .isa = isa};
  if (seat.alone()) return options;
  const int beside = seat.transport->local_size();
  options.device = seat.transport->local_rank();
  int usable = threads > 0 ? threads : cpu::default_threads();
  // A starter that bound each rank to processors of its own has divided them already.
  cpu_set_t set;
  CPU_ZERO(&set);
  const long online = ::sysconf(_SC_NPROCESSORS_ONLN);
  const bool bound = threads == 0 && !seat.transport->same_process((seat.rank + 1) % seat.spread.ranks()) &&
                     ::sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) * beside <= online;
  options.threads = std::max(1, bound ? usable : usable / beside);
  return options;
}

Result<std::unique_ptr<engine::Engine>> start_engine(const Launch& launch, const engine::Spread& spread,
                                                     const engine::PartsMaker& make) {
  if (launch.process != nullptr) return engine::start_process(spread, launch.process, make);
  if (spread.ranks() == 1) return engine::start_alone(make);
  return engine::start_threads(spread, threads::make_thread_transports(spread.ranks()), make);
}

}  // namespace fathom::measure
