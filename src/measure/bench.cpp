#include "measure/bench.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/clock.h"
#include "measure/kernels.h"
#include "measure/trace.h"
#include "model/sizes.h"
#include "plan/calibration.h"
#include "weights/synth.h"

namespace fathom::measure {
namespace {

double quantile(std::vector<double> sorted, double q) {
  if (sorted.empty()) return 0;
  std::sort(sorted.begin(), sorted.end());
  return sorted[static_cast<std::size_t>(std::lround(q * static_cast<double>(sorted.size() - 1)))];
}

struct Timing {
  double prefill_seconds = 0;
  std::vector<double> steps;
};

// Arbitrary tokens: time does not depend on them, except through the routing of experts, for which they are spread over
// the vocabulary.
std::int32_t some_token(std::int64_t step, std::int64_t sequence, std::int64_t vocabulary) {
  return static_cast<std::int32_t>((step * 15485863 + sequence * 32452843 + 3) % vocabulary);
}

/// `generate` steps of all sequences at once, each step's tokens those that the one before chose.
Result<std::vector<double>> decode_chosen(engine::Engine& engine, std::span<const engine::SlotTokens> first,
                                          std::int64_t generate) {
  const std::vector<tensor::SamplingRow> greedy(first.size());
  std::vector<engine::SlotTokens> parts(first.begin(), first.end());
  std::vector<std::int32_t> next(first.size());
  std::vector<double> steps;
  double started = now_seconds();
  FATHOM_TRY_VOID(engine.begin(parts, greedy));
  for (std::int64_t g = 0; g < generate; ++g) {
    const bool another = g + 1 < generate;
    if (another && engine.runs_ahead()) FATHOM_TRY_VOID(engine.begin_next(greedy));
    FATHOM_TRY(const auto chosen, engine.take_chosen());
    const double ended = now_seconds();
    steps.push_back(ended - started);
    started = ended;
    if (!another || engine.runs_ahead()) continue;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      next[i] = std::max(chosen[i], 0);
      parts[i].ids = std::span(&next[i], 1);
    }
    FATHOM_TRY_VOID(engine.begin(parts, greedy));
  }
  return steps;
}

// One run of `batch` sequences: prompts one after the other, then `generate` steps of all at once.
Result<Timing> run_once(engine::Engine& engine, std::int64_t batch, std::int64_t prompt, std::int64_t generate) {
  const std::int64_t vocabulary = engine.spec().vocabulary;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(prompt));
  Timing timing;
  double started = now_seconds();
  for (std::int64_t s = 0; s < batch; ++s) {
    for (std::size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<std::int32_t>((static_cast<std::int64_t>(i) * 7919 + s * 104729 + 17) % vocabulary);
    engine.reset(s);
    FATHOM_TRY(const auto logits, engine.prefill(s, ids));
    (void)logits;
  }
  timing.prefill_seconds = now_seconds() - started;
  std::vector<std::int32_t> next(static_cast<std::size_t>(batch));
  std::vector<engine::SlotTokens> parts;
  for (std::int64_t s = 0; s < batch; ++s) parts.push_back({s, std::span(&next[static_cast<std::size_t>(s)], 1)});
  const auto choose_step = [&](std::int64_t g) {
    for (std::int64_t s = 0; s < batch; ++s) next[static_cast<std::size_t>(s)] = some_token(g, s, vocabulary);
  };
  if (engine.chooses()) {
    choose_step(0);
    FATHOM_TRY(timing.steps, decode_chosen(engine, parts, generate));
    return timing;
  }
  for (std::int64_t g = 0; g < generate; ++g) {
    choose_step(g);
    started = now_seconds();
    FATHOM_TRY_VOID(engine.step(parts, engine::Logits::kLast));
    timing.steps.push_back(now_seconds() - started);
  }
  return timing;
}

/// Tokens a second with weights in host memory, where all on the device would give `resident`.
double decode_rate(const Session& session, std::int64_t batch, double resident) {
  if (!session.offload) return resident;
  return static_cast<double>(batch) / plan::offload_seconds(session.offload->problem, session.offload->plan, batch,
                                                            static_cast<double>(batch) / resident);
}
double prefill_rate(const Session& session, std::int64_t prompt, double resident) {
  if (!session.offload) return resident;
  const std::int64_t chunk = session.engine->options().prefill_chunk;
  double seconds = 0;
  for (std::int64_t at = 0; at < prompt; at += chunk) {
    const std::int64_t tokens = std::min(chunk, prompt - at);
    seconds += plan::offload_seconds(session.offload->problem, session.offload->plan, tokens,
                                     static_cast<double>(tokens) / resident);
  }
  return static_cast<double>(prompt) / seconds;  // prompts come one after the other
}

/// Times kernels, predicts and runs, again and again: other programs' load comes and goes within seconds, and what is
/// compared shall have seen the same of it.
class Rows {
 public:
  Rows(const hardware::Machine& machine, const SessionOptions& session, const BenchOptions& options, KernelMeter* meter)
      : machine_(machine), session_(session), options_(options), meter_(meter) {}

  Result<BenchRow> measure(const Session& session, std::int64_t batch, std::int64_t prompt) {
    engine::Engine& engine = *session.engine;
    std::vector<double> prefill, steps, predicted_prefill, predicted_decode;
    // Pages and clocks; a device's libraries also choose their ways for every shape that they first see.
    const std::int64_t first = engine.backend().host_addressable() ? std::min<std::int64_t>(prompt, 16) : prompt;
    FATHOM_TRY(const Timing warm_up, run_once(engine, batch, first, 2));
    (void)warm_up;
    for (int r = 0; r < std::max(options_.repetitions, 1); ++r) {
      std::optional<plan::KernelRates> kernels;
      if (meter_ != nullptr)
        kernels = meter_->measure({.tokens = prompt, .batch = batch, .context = prompt + options_.generate / 2});
      // Ranks on one CPU share what a plan gives to one: there is nothing to predict them by.
      if (session.spread.ranks() == 1 || session_.device == "cuda") {
        FATHOM_TRY(const auto plan,
                   predict(machine_, session.spec, session.spec.quantization.empty() ? session_.weights : "native",
                           {batch, prompt, options_.generate, session_.engine.prefill_chunk}, session_.device != "cuda",
                           kernels, layout_of(session.spread)));
        calibrated = plan.best.time.calibrated, here = plan.best.time.provenance == plan::ProvenanceTier::kMeasuredHere;
        if (plan.best.time.prefill_tokens_per_second)
          predicted_prefill.push_back(prefill_rate(session, prompt, *plan.best.time.prefill_tokens_per_second));
        if (plan.best.time.decode_tokens_per_second)
          predicted_decode.push_back(decode_rate(session, batch, *plan.best.time.decode_tokens_per_second));
      }
      FATHOM_TRY(const Timing timing, run_once(engine, batch, prompt, options_.generate));
      prefill.push_back(timing.prefill_seconds);
      steps.insert(steps.end(), timing.steps.begin(), timing.steps.end());
    }
    BenchRow row{.batch = batch,
                 .prompt = prompt,
                 .generate = options_.generate,
                 .prefill_tokens_per_second = {},
                 .decode_tokens_per_second = {},
                 .memory_bytes = {}};
    row.prefill_tokens_per_second.measured = static_cast<double>(batch * prompt) / quantile(prefill, 0.5);
    row.mean_ms = 1e3 * std::accumulate(steps.begin(), steps.end(), 0.0) / static_cast<double>(steps.size());
    row.p50_ms = 1e3 * quantile(steps, 0.5);
    row.p99_ms = 1e3 * quantile(steps, 0.99);
    row.decode_tokens_per_second.measured = static_cast<double>(batch) * 1e3 / row.p50_ms;
    if (!predicted_prefill.empty()) row.prefill_tokens_per_second.predicted = quantile(predicted_prefill, 0.5);
    if (!predicted_decode.empty()) row.decode_tokens_per_second.predicted = quantile(predicted_decode, 0.5);
    return row;
  }
  std::string calibrated;  // of the last prediction
  bool here = false;

 private:
  const hardware::Machine& machine_;
  const SessionOptions& session_;
  const BenchOptions& options_;
  KernelMeter* meter_;
};

/// For a CPU that is not calibrated, with plain weights; nothing otherwise.
Result<std::optional<KernelMeter>> meter_for(const SessionOptions& session, const hardware::Machine& machine) {
  if (session.device != "cpu") return std::nullopt;
  FATHOM_TRY(const plan::Cluster host, plan::machine_cluster(machine, true));
  if (host.device.calibration != nullptr &&
      host.device.calibration->threads == (session.threads > 0 ? session.threads : host.device.cores))
    return std::nullopt;
  FATHOM_TRY(const auto spec, weights::find_model_spec(session.model));
  tensor::WeightFormat format = spec.plain_format;
  if (session.weights != "native") {
    const auto dtype = parse_dtype(session.weights);
    if (!dtype) return std::nullopt;  // open_session says what is wrong with it
    format = *dtype == DType::f32   ? tensor::WeightFormat::f32
             : *dtype == DType::f16 ? tensor::WeightFormat::f16
                                    : tensor::WeightFormat::bf16;
  } else if (spec.linear_format != spec.plain_format || spec.expert_format != spec.plain_format) {
    return std::nullopt;
  }
  FATHOM_TRY(const KernelShapes shapes, shapes_of(spec, format));
  FATHOM_TRY(auto meter, KernelMeter::create(session.device, session.isa, session.threads, shapes));
  return meter;
}

}  // namespace

Result<BenchReport> bench(SessionOptions session_options, const BenchOptions& options,
                          const hardware::Machine& machine) {
  FATHOM_CHECK(!options.prompts.empty() && !options.batches.empty() && options.generate >= 1);
  const std::int64_t longest = *std::max_element(options.prompts.begin(), options.prompts.end());
  session_options.engine.slots = *std::max_element(options.batches.begin(), options.batches.end());
  session_options.engine.context = longest + options.generate;
  session_options.work = {.prompt = longest, .generate = options.generate};
  FATHOM_TRY(const Launch launch, find_launch(session_options.ranks, session_options.device));
  std::optional<KernelMeter> meter;
  if (launch.count == 1) {
    FATHOM_TRY(meter, meter_for(session_options, machine));
  }
  const Bytes before = resident_bytes();
  session_options.trace = !options.trace.empty();
  FATHOM_TRY(Session session, open_session(session_options, launch));
  if (session.engine == nullptr) {
    FATHOM_TRY_VOID(finish_trace(session.tracer, launch, options.trace));
    return BenchReport{.followed = true};
  }
  engine::Engine& engine = *session.engine;
  BenchReport report{.model = session.name,
                     .device = engine.backend().description(),
                     .synthetic = session.synthetic,
                     .planned = engine.planned(),
                     .allocated = {},
                     .best_read_gb_per_second = {},
                     .rows = {}};
  report.load_seconds = session.load_seconds;
  FATHOM_TRY(const auto sized, model::size_model(session.spec));
  report.parameters = sized.sizes.parameters_main;
  report.spread = session.spread;
  report.ranks = engine.ranks();
  // What the process holds is that of its ranks: of all, when they are its threads.
  Bytes planned = 0;
  for (const auto& rank : report.ranks) planned += rank.planned.total() + rank.planned.host;
  if (report.ranks.empty() || launch.process != nullptr) planned = report.planned.total() + report.planned.host;
  Rows rows(machine, session_options, options, meter ? &*meter : nullptr);
  double fastest_step = 0;
  for (const std::int64_t batch : options.batches)
    for (const std::int64_t prompt : options.prompts) {
      FATHOM_TRY(BenchRow row, rows.measure(session, batch, prompt));
      // On a device of its own memory what was taken there counts, on the host what the process has.
      const bool own_memory = !engine.backend().host_addressable();
      row.memory_bytes = {
          static_cast<double>(own_memory ? engine.allocated().total() : resident_bytes()),
          static_cast<double>((own_memory ? 0 : before) + (own_memory ? report.planned.total() : planned))};
      if (batch == 1 && (fastest_step == 0 || row.p50_ms < fastest_step)) fastest_step = row.p50_ms;
      report.rows.push_back(row);
    }
  report.calibrated = rows.calibrated, report.here = rows.here;
  report.allocated = engine.allocated();
  report.offload = session.offload;
  if (const auto device = engine.backend().device_memory()) report.device_bytes = device->total - device->free;
  if (machine.read_bandwidth() && engine.backend().host_addressable())
    report.best_read_gb_per_second = *machine.read_bandwidth() / kGB;
  if (fastest_step > 0 && session.spec.routing.experts == 0 && launch.count == 1) {
    // An embedding row is one read; everything else is read whole every step.
    const double embedding =
        static_cast<double>(sized.sizes.parameters_embedding) / static_cast<double>(sized.sizes.parameters_main);
    const bool tied = session.spec.tied_embeddings;
    report.weight_read_gb_per_second =
        static_cast<double>(report.planned.weights) * (tied ? 1 : 1 - embedding) / (fastest_step * 1e-3) / kGB;
  }
  session.engine.reset();  // other ranks are let go
  FATHOM_TRY_VOID(finish_trace(session.tracer, launch, options.trace));
  return report;
}

}  // namespace fathom::measure
