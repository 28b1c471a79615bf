#include "measure/calibrate.h"

#include <algorithm>
#include <ctime>
#include <thread>

#include "backends/backends.h"
#include "backends/threads/threads_transport.h"
#include "base/clock.h"
#include "base/strings.h"
#include "hardware/probe.h"
#include "measure/calibrate_families.h"

namespace fathom::measure {
namespace {

using plan::Family;

std::string today() {
  const std::time_t time = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &parts);
  return text;
}

/// The device as plans know it.
Result<plan::Device> device_here(const CalibrateOptions& options) {
  hardware::ProbeOptions probe;
  probe.effort = hardware::Effort::kNone;
  probe.measure_disks = false;
  const hardware::Machine machine = hardware::probe(probe);
  const bool cpu = options.device != "cuda";
  FATHOM_TRY(const plan::Cluster cluster, plan::machine_cluster(machine, cpu));
  if (!cpu && cluster.device.is_cpu()) {
    std::vector<std::string> names;
    for (const auto& gpu : machine.gpus) names.push_back(gpu.name);
    return fail_unsupported("calibration.device", {{"name", names.empty() ? "cuda" : join(names)}});
  }
  return cluster.device;
}

// ---------------------------------------------------------------- between ranks

/// Seconds of an all-reduce of so many bytes, on one rank of several that all call this.
Result<double> reduce_seconds(tensor::Backend& backend, tensor::Collectives& comm, const tensor::Tensor& x,
                              std::uint64_t key) {
  constexpr double kMoved = 256e6, kRecorded = 8e6;  // bytes of a run; of the largest that steps of decoding record
  const auto bytes = static_cast<double>(x.bytes());
  const int calls = static_cast<int>(std::clamp(kMoved / bytes, 4.0, 64.0)), before = 3, runs = 5;
  std::vector<double> seconds;
  for (int i = 0; i < before + runs; ++i) {
    const double started = now_seconds();
    FATHOM_TRY(const bool called, backend.run_pass(bytes <= kRecorded ? key : 0, [&] {
      for (int c = 0; c < calls; ++c) comm.all_reduce(tensor::Group::kTensor, x);
    }));
    static_cast<void>(called);
    FATHOM_TRY_VOID(backend.synchronize());
    FATHOM_TRY_VOID(comm.status());
    if (i >= before) seconds.push_back((now_seconds() - started) / calls);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

/// What one rank does; rank 0 fills the table.
Status time_reduces(const CalibrateOptions& options, const Grid& grid,
                    const std::shared_ptr<tensor::Transport>& transport, plan::MeasuredTable* table,
                    const std::function<void()>& point) {
  auto backend = backends::make_backend(options.device,
                                        {.threads = options.threads, .device = transport->rank(), .isa = options.isa});
  FATHOM_TRY_VOID(tensor::agree(*transport, backend ? Status() : Status(tl::unexpected<Error>(backend.error()))));
  tensor::GroupMembers members;
  for (int r = 0; r < transport->size(); ++r)
    members.ranks[static_cast<std::size_t>(tensor::Group::kTensor)].push_back(r);
  auto comm = (*backend)->make_collectives(transport, members);
  FATHOM_TRY_VOID(tensor::agree(*transport, comm ? Status() : Status(tl::unexpected<Error>(comm.error()))));
  auto buffer = (*backend)->allocate_buffer(static_cast<Bytes>(grid.reduce_bytes.back()));
  FATHOM_TRY_VOID(tensor::agree(*transport, buffer ? Status() : Status(tl::unexpected<Error>(buffer.error()))));
  const auto one = [&](const std::vector<double>& at) -> Result<Point> {
    const auto elements = static_cast<std::int64_t>(at[0] / 4);
    const std::int64_t wide = std::min<std::int64_t>(elements, 4096);
    Point timed{.bytes = at[0]};
    FATHOM_TRY(
        timed.seconds,
        reduce_seconds(**backend, **comm, tensor::make_tensor((*buffer)->data(), DType::f32, {elements / wide, wide}),
                       static_cast<std::uint64_t>(at[0])));
    return timed;
  };
  plan::MeasuredTable own = make_table(Family::kAllReduce, std::to_string(transport->size()), {grid.reduce_bytes});
  const Status done = fill_table(own, one, table != nullptr ? point : nullptr);
  if (!done) transport->fail(done.error());
  FATHOM_TRY_VOID(done);
  if (table != nullptr) *table = std::move(own);
  return {};
}

/// The numbers of ranks that sums are timed between: 2, 4, 8 and so on, and all of them.
std::vector<int> numbers_of_ranks(int gpus) {
  std::vector<int> all;
  for (int n = 2; n < gpus; n *= 2) all.push_back(n);
  if (gpus > 1) all.push_back(gpus);
  return all;
}

Result<plan::MeasuredTable> reduce_table(const CalibrateOptions& options, int gpus, const Grid& grid,
                                         const std::function<void()>& point) {
  const auto ends = threads::make_thread_transports(gpus);
  plan::MeasuredTable table;
  std::vector<Status> results(ends.size());
  std::vector<std::thread> ranks;
  for (std::size_t r = 1; r < ends.size(); ++r)
    ranks.emplace_back([&, r] { results[r] = time_reduces(options, grid, ends[r], nullptr, {}); });
  results[0] = time_reduces(options, grid, ends[0], &table, point);
  for (std::thread& rank : ranks) rank.join();
  for (const Status& result : results)
    if (!result && result.error().key != "ranks.told") return tl::unexpected<Error>(result.error());
  return table;
}

}  // namespace

Result<plan::Calibration> calibrate(const CalibrateOptions& options) {
  FATHOM_TRY(const plan::Device device, device_here(options));
  const bool accelerator = options.device == "cuda";
  const Grid grid = options.quick ? quick_grid() : full_grid(accelerator);
  plan::Calibration made{.device = accelerator ? device.id : "cpu",
                         .name = device.name,
                         .date = today(),
                         .source = "fathom calibrate",
                         .threads = accelerator           ? 0
                                    : options.threads > 0 ? options.threads
                                                          : device.cores,
                         .here = true,
                         .tables = {}};
  const std::vector<int> ranks = numbers_of_ranks(options.gpus);
  std::size_t all = ranks.size() * grid.reduce_bytes.size(), done = 0;
  const std::function<void()> point = [&] {
    if (options.progress) options.progress(++done, all);
  };
  {
    FATHOM_TRY(const auto rig, Rig::make(options.device, {.threads = options.threads, .isa = options.isa}, grid));
    made.source = "fathom calibrate, " + rig->backend().description();
    all += count_points(grid, rig->backend());
    FATHOM_TRY(made.tables, time_families(*rig, grid, point));
  }
  for (const int n : ranks) {
    FATHOM_TRY(plan::MeasuredTable table, reduce_table(options, n, grid, point));
    made.tables.push_back(std::move(table));
  }
  return made;
}

Result<Path> save_calibration(plan::Calibration calibration, const Path& path) {
  const Path to = path.empty() ? plan::calibration_path(calibration.device) : path;
  std::error_code error;
  if (to.has_parent_path()) std::filesystem::create_directories(to.parent_path(), error);
  if (error) return fail_environment("base.cannot_write", {{"path", to.string()}, {"reason", error.message()}});
  if (const auto old = read_file(to, 16 << 20); old)
    if (const auto before = plan::parse_calibration(*old, to.string()); before) calibration.keep_from(*before);
  FATHOM_TRY_VOID(write_file_atomic(to, plan::calibration_json(calibration)));
  return to;
}

}  // namespace fathom::measure
