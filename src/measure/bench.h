// Bench: prefill and decode, timed, each beside what the planner said a moment before.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "measure/predict.h"
#include "measure/session.h"

namespace fathom::measure {

struct BenchOptions {
  std::vector<std::int64_t> prompts{128};
  std::vector<std::int64_t> batches{1};
  std::int64_t generate = 64;
  int repetitions = 1;  // the median counts
  Path trace;           // "": none
};

/// Predicted value beside the measured one; error = measured / predicted - 1.
struct Beside {
  double measured = 0;
  std::optional<double> predicted;
  std::optional<double> error() const {
    return predicted && *predicted > 0 ? std::optional<double>(measured / *predicted - 1) : std::nullopt;
  }
};

struct BenchRow {
  std::int64_t batch = 1, prompt = 0, generate = 0;
  Beside prefill_tokens_per_second, decode_tokens_per_second;  // of the whole batch
  double mean_ms = 0, p50_ms = 0, p99_ms = 0;                  // of a decode step
  Beside memory_bytes;  // what the process holds afterwards (nothing is given back between), against what it held
                        // before plus the plan
};

struct BenchReport {
  std::string model, device;
  bool synthetic = false;
  std::uint64_t parameters = 0;
  double load_seconds = 0;
  engine::Spread spread;
  std::optional<OffloadReport> offload;
  std::optional<Bytes>
      device_bytes;        // in use on the device after the runs, as its driver tells, with what other programs use
  std::string calibrated;  // the day on which the predictions' figures were measured; "": not calibrated
  bool here = false;       // on this machine
  bool followed = false;   // this process followed another's rank 0, which has the report
  engine::EngineMemory planned, allocated;        // of rank 0
  std::vector<engine::Engine::RankMemory> ranks;  // of all, when there are several
  double weight_read_gb_per_second =
      0;  // of the fastest decode at batch 1: weights read a second; 0 with routed experts
  std::optional<double> best_read_gb_per_second;  // of this machine, as probed
  std::vector<BenchRow> rows;
};

/// Opens the session itself (options.engine is set from the workload). Errors: those of open_session; prompts that do
/// not fit.
Result<BenchReport> bench(SessionOptions session, const BenchOptions& options, const hardware::Machine& machine);

}  // namespace fathom::measure
