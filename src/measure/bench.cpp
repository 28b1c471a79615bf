#include "measure/bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "model/sizes.h"
#include "weights/synth.h"

namespace fathom::measure {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double quantile(std::vector<double> sorted, double q) {
  if (sorted.empty()) return 0;
  std::sort(sorted.begin(), sorted.end());
  return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1) + 0.5)];
}

struct Timing { double prefill_seconds = 0; std::vector<double> steps; };

// One run of `batch` sequences: prompts one after the other, then `generate` steps of all at once. Tokens are arbitrary: time does not
// depend on them, except through the routing of experts, for which they are spread over the vocabulary.
Result<Timing> run_once(engine::Engine& engine, std::int64_t batch, std::int64_t prompt, std::int64_t generate) {
  const std::int64_t vocabulary = engine.spec().vocabulary;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(prompt));
  Timing timing;
  double started = now();
  for (std::int64_t s = 0; s < batch; ++s) {
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>((static_cast<std::int64_t>(i) * 7919 + s * 104729 + 17) % vocabulary);
    engine.reset(s);
    FATHOM_TRY(const auto logits, engine.prefill(s, ids));
    (void)logits;
  }
  timing.prefill_seconds = now() - started;
  std::vector<std::int32_t> next(static_cast<std::size_t>(batch));
  std::vector<engine::SlotTokens> parts;
  for (std::int64_t g = 0; g < generate; ++g) {
    parts.clear();
    for (std::int64_t s = 0; s < batch; ++s) {
      next[static_cast<std::size_t>(s)] = static_cast<std::int32_t>((g * 15485863 + s * 32452843 + 3) % vocabulary);
      parts.push_back({s, std::span(&next[static_cast<std::size_t>(s)], 1)});
    }
    started = now();
    FATHOM_TRY(const auto logits, engine.step(parts, engine::Logits::kLast));
    (void)logits;
    timing.steps.push_back(now() - started);
  }
  return timing;
}

Result<BenchRow> measure_row(engine::Engine& engine, const BenchOptions& options, std::int64_t batch, std::int64_t prompt) {
  std::vector<double> prefill, steps;
  FATHOM_TRY(const Timing warm_up, run_once(engine, batch, std::min<std::int64_t>(prompt, 16), 2));  // pages and clocks
  (void)warm_up;
  for (int r = 0; r < std::max(options.repetitions, 1); ++r) {
    FATHOM_TRY(const Timing timing, run_once(engine, batch, prompt, options.generate));
    prefill.push_back(timing.prefill_seconds);
    steps.insert(steps.end(), timing.steps.begin(), timing.steps.end());
  }
  BenchRow row{.batch = batch, .prompt = prompt, .generate = options.generate, .prefill_tokens_per_second = {}, .decode_tokens_per_second = {}, .memory_bytes = {}};
  row.prefill_tokens_per_second.measured = static_cast<double>(batch * prompt) / quantile(prefill, 0.5);
  row.mean_ms = 1e3 * std::accumulate(steps.begin(), steps.end(), 0.0) / static_cast<double>(steps.size());
  row.p50_ms = 1e3 * quantile(steps, 0.5);
  row.p99_ms = 1e3 * quantile(steps, 0.99);
  row.decode_tokens_per_second.measured = static_cast<double>(batch) * 1e3 / row.mean_ms;
  return row;
}

}  // namespace

Result<BenchReport> bench(SessionOptions session_options, const BenchOptions& options, const hardware::Machine& machine) {
  FATHOM_CHECK(!options.prompts.empty() && !options.batches.empty() && options.generate >= 1);
  const std::int64_t longest = *std::max_element(options.prompts.begin(), options.prompts.end());
  session_options.engine.slots = *std::max_element(options.batches.begin(), options.batches.end());
  session_options.engine.context = longest + options.generate;
  const Bytes before = resident_bytes();
  FATHOM_TRY(Session session, open_session(session_options));
  engine::Engine& engine = *session.engine;
  BenchReport report{.model = session.name, .device = engine.backend().description(), .synthetic = session.synthetic, .planned = engine.planned(), .allocated = {}, .best_read_gb_per_second = {}, .rows = {}};
  report.load_seconds = session.load_seconds;
  FATHOM_TRY(const auto sized, model::size_model(session.spec));
  report.parameters = sized.sizes.parameters_main;
  const bool on_cpu = session_options.device != "cuda";
  double fastest_step = 0;
  for (const std::int64_t batch : options.batches)
    for (const std::int64_t prompt : options.prompts) {
      FATHOM_TRY(const auto plan, predict(machine, session.spec, session_options.weights, {batch, prompt, options.generate}, on_cpu));
      FATHOM_TRY(BenchRow row, measure_row(engine, options, batch, prompt));
      row.prefill_tokens_per_second.predicted = plan.best.time.prefill_tokens_per_second;
      row.decode_tokens_per_second.predicted = plan.best.time.decode_tokens_per_second;
      row.memory_bytes = {static_cast<double>(resident_bytes()), static_cast<double>(before + report.planned.total())};
      if (batch == 1 && (fastest_step == 0 || row.p50_ms < fastest_step)) fastest_step = row.p50_ms;
      report.rows.push_back(std::move(row));
    }
  report.allocated = engine.allocated();
  if (machine.read_bandwidth()) report.best_read_gb_per_second = *machine.read_bandwidth() / kGB;
  if (fastest_step > 0 && session.spec.routing.experts == 0) {
    // An embedding row is one read; everything else is read whole every step.
    const double embedding = static_cast<double>(sized.sizes.parameters_embedding) / static_cast<double>(sized.sizes.parameters_main);
    const bool tied = session.spec.tied_embeddings;
    report.weight_read_gb_per_second = static_cast<double>(report.planned.weights) * (tied ? 1 : 1 - embedding) / (fastest_step * 1e-3) / kGB;
  }
  return report;
}

}  // namespace fathom::measure
