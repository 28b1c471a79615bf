// PlanAnswer: everything that the contract answers with.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "plan/layout.h"
#include "plan/memory.h"
#include "plan/offload_answer.h"

namespace fathom::plan {

/// 90 % of measurements should fall within low … high.
struct Range {
  double value = 0, low = 0, high = 0;
};

enum class BoundBy : std::uint8_t { kWeights, kKv, kCompute, kCommunication, kLaunch, kHost, kNetwork };
std::string_view bound_name(BoundBy bound);

/// Where a figure comes from, best first.
enum class ProvenanceTier : std::uint8_t { kMeasuredHere, kMeasuredSame, kMeasuredSibling, kDefault };
std::string_view provenance_name(ProvenanceTier tier);

/// What the cost model answers for one layout. Absent: does not apply to the task.
struct TimeEstimate {
  std::optional<Range> ttft_ms, tpot_ms, step_ms;
  std::optional<double> prefill_tokens_per_second, decode_tokens_per_second;  // of the whole batch
  std::optional<double> output_tokens_per_second_per_gpu;                     // serve
  std::optional<double> train_tokens_per_second_per_gpu, mfu;
  BoundBy bound_by = BoundBy::kWeights;
  ProvenanceTier provenance = ProvenanceTier::kDefault;
  bool engine_fell_back = false;  // the engine has no data of its own: ranges are wider
  std::string calibrated;         // the day on which this engine's kernels were timed on the device; "": they were not
};

/// One layout with what it gives.
struct Candidate {
  Layout layout;
  const WeightFormatRule* weights = nullptr;
  const KvFormat* kv = nullptr;
  std::int64_t batch = 1;  // users or sequences that the figures are for
  MemoryPlan memory;
  TimeEstimate time;
};

/// The nearest thing that does fit.
struct WayOut {
  enum class Kind : std::uint8_t {
    kSmallerWeights,
    kSmallerKv,
    kLessContext,
    kSmallerBatch,
    kMoreDevices,
    kOtherLayout,
    kOtherModel,
    kOtherHardware,
    kOffload,
    kRecompute
  };
  Kind kind = Kind::kSmallerWeights;
  std::string what;  // the value to use: "int4", "16384", "2", a model's id
  Bytes total = 0;   // memory on the fullest device then
};

struct PlanAnswer {
  Candidate best;
  std::vector<Candidate> runners_up;     // ranked, without best
  std::vector<Candidate> pareto;         // latency against throughput a device, of those that fit
  std::vector<WayOut> ways_out;          // when best does not fit
  std::optional<OffloadAnswer> offload;  // with weights in host memory; when best does not fit, of a report
  bool searched = false;
  std::size_t layouts_seen = 0;
};

/// How much to look for: the best alone (a line of a batch), or also runners-up, the Pareto front and ways out (a
/// report).
enum class PlanScope : std::uint8_t { kBest, kReport };

/// Chooses and estimates. Errors: a layout that cannot be, a model that cannot be split so.
Result<PlanAnswer> make_plan(const PlanRequest& request, PlanScope scope = PlanScope::kBest);

/// Memory and time of one layout at one batch (empty: the request's).
Result<Candidate> evaluate_layout(const PlanRequest& request, const Layout& layout,
                                  std::optional<std::int64_t> batch = {});

/// One line of JSON exactly as the contract says, without a newline, appended to `out`.
void append_answer_json(const PlanRequest& request, const PlanAnswer& answer, std::string& out);
/// The same with what a report adds: runners_up, pareto, ways_out, timeline, searched, layouts_seen.
void append_report_json(const PlanRequest& request, const PlanAnswer& answer, std::string& out);

}  // namespace fathom::plan
