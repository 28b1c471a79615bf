#include "measure/trace.h"

#include <algorithm>

#include "base/json.h"
#include "base/strings.h"
#include "measure/kernels.h"
#include "measure/predict.h"
#include "measure/trace_ops.h"
#include "plan/engine_profile.h"

namespace fathom::measure {
namespace {

constexpr double kMicro = 1e6;

Json args_of(const TraceEvent& e) {
  Json args = Json::object();
  if (!e.pass) {
    if (e.layer >= 0) args["layer"] = e.layer;
    args["shapes"] = e.shapes;
    args["bytes"] = e.bytes;
    args["flops"] = e.flops;
  } else {
    args["tokens"] = e.tokens;
  }
  args["measured_us"] = e.seconds * kMicro;
  args["predicted_us"] = e.predicted >= 0 ? Json(e.predicted * kMicro) : Json();
  return args;
}

// Events as bytes between processes: they are text anyway.
std::vector<std::byte> pack(const std::vector<TraceEvent>& events) {
  Json all = Json::array();
  for (const TraceEvent& e : events)
    all.push_back(
        {e.name, e.shapes, e.rank, e.layer, e.pass, e.start, e.seconds, e.bytes, e.flops, e.predicted, e.tokens});
  const std::string text = dump_json(all);
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

Result<std::vector<TraceEvent>> unpack(std::span<const std::byte> bytes) {
  FATHOM_TRY(const Json all, parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "trace"));
  std::vector<TraceEvent> events;
  for (const Json& e : all)
    events.push_back({.name = e[0],
                      .shapes = e[1],
                      .rank = e[2],
                      .layer = e[3],
                      .pass = e[4],
                      .start = e[5],
                      .seconds = e[6],
                      .bytes = e[7],
                      .flops = e[8],
                      .predicted = e[9],
                      .tokens = e[10]});
  return events;
}

}  // namespace

std::unique_ptr<tensor::Backend> Tracer::wrap(std::unique_ptr<tensor::Backend> inner, int rank,
                                              const model::WeightTable& weights) {
  return make_traced_backend(*this, std::move(inner), rank, weights);
}

void Tracer::add(std::vector<TraceEvent> events) {
  const std::lock_guard lock(guard_);
  events_.insert(events_.end(), std::make_move_iterator(events.begin()), std::make_move_iterator(events.end()));
}

std::vector<TraceEvent> Tracer::events() const {
  const std::lock_guard lock(guard_);
  return events_;
}

Status Tracer::gather(tensor::Transport& transport) {
  FATHOM_TRY(const auto all, tensor::gather(transport, pack(events())));
  for (std::size_t r = 1; r < all.size(); ++r) {
    FATHOM_TRY(std::vector<TraceEvent> theirs, unpack(all[r]));
    add(std::move(theirs));
  }
  return {};
}

Status Tracer::write(const Path& path) const {
  const std::vector<TraceEvent> all = events();
  double first = 0;
  int ranks = 0;
  for (const TraceEvent& e : all)
    first = &e == &all.front() ? e.start : std::min(first, e.start), ranks = std::max(ranks, e.rank + 1);
  std::string out = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  const auto put = [&](const Json& event) { out += (out.ends_with("[\n") ? "" : ",\n") + dump_json(event); };
  for (int r = 0; r < ranks; ++r) {
    put({{"ph", "M"}, {"name", "process_name"}, {"pid", r}, {"args", {{"name", "rank " + std::to_string(r)}}}});
    put({{"ph", "M"}, {"name", "thread_name"}, {"pid", r}, {"tid", 0}, {"args", {{"name", "passes"}}}});
    put({{"ph", "M"}, {"name", "thread_name"}, {"pid", r}, {"tid", 1}, {"args", {{"name", "ops"}}}});
  }
  for (const TraceEvent& e : all)
    put({{"ph", "X"},
         {"name", e.name},
         {"cat", e.pass ? "pass" : "op"},
         {"pid", e.rank},
         {"tid", e.pass ? 0 : 1},
         {"ts", (e.start - first) * kMicro},
         {"dur", e.seconds * kMicro},
         {"args", args_of(e)}});
  return write_file_atomic(path, out + "\n]}\n");
}

Result<std::shared_ptr<Tracer>> make_tracer(const std::string& device, const engine::Spread& spread) {
  std::optional<plan::OpPricer> pricer;
  const bool cpu = device != "cuda";
  if (device != "reference") {  // of which no plan speaks
    FATHOM_TRY(const hardware::Machine machine, known_machine());
    FATHOM_TRY(plan::Cluster cluster, plan::machine_cluster(machine, cpu));
    if (cpu && cluster.device.calibration == nullptr && spread.ranks() == 1) {
      FATHOM_TRY(cluster.device.kernels, cpu_kernels());
    }
    FATHOM_TRY(const plan::EngineProfile* engine, plan::find_engine("fathom"));
    // Ranks on one processor share what a plan gives to one: nothing to predict by.
    if (!cpu || spread.ranks() == 1) {
      FATHOM_TRY(pricer, plan::OpPricer::make(cluster, *engine, layout_of(spread)));
    }
  }
  return std::make_shared<Tracer>(std::move(pricer));
}

Status finish_trace(const std::shared_ptr<Tracer>& tracer, const Launch& launch, const Path& path) {
  if (tracer == nullptr) return {};
  if (launch.process != nullptr) FATHOM_TRY_VOID(tracer->gather(*launch.process));
  return launch.follows() ? Status() : tracer->write(path);
}

}  // namespace fathom::measure
