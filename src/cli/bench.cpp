// fathom bench: speed and memory, each beside what was predicted.
#include "measure/bench.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "base/i18n.h"
#include "base/json.h"
#include "base/strings.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/offload_flags.h"
#include "cli/rank_flags.h"
#include "cli/verbs.h"

namespace fathom::cli {
namespace {

struct BenchFlags {
  measure::SessionOptions session;
  measure::BenchOptions bench;
};
BenchFlags bench_flags;

Json beside_json(const measure::Beside& b) {
  return {{"measured", b.measured},
          {"predicted", b.predicted ? Json(*b.predicted) : Json()},
          {"error", b.error() ? Json(*b.error()) : Json()}};
}

Json memory_json(const engine::EngineMemory& m) {
  return {{"weights", m.weights},
          {"weights_arena", m.weights_arena},
          {"kv", m.cache},
          {"activations", m.activations},
          {"activations_peak", m.activations_peak},
          {"constants", m.constants},
          {"workspace", m.workspace},
          {"ring", m.ring},
          {"host", m.host},
          {"total", m.total()}};
}

void print_json(const measure::BenchReport& r) {
  Json rows = Json::array();
  for (const auto& row : r.rows)
    rows.push_back({{"batch", row.batch},
                    {"prompt", row.prompt},
                    {"generate", row.generate},
                    {"prefill_tokens_per_second", beside_json(row.prefill_tokens_per_second)},
                    {"decode_tokens_per_second", beside_json(row.decode_tokens_per_second)},
                    {"decode_step_ms", {{"mean", row.mean_ms}, {"p50", row.p50_ms}, {"p99", row.p99_ms}}},
                    {"memory_bytes", beside_json(row.memory_bytes)}});
  Json ranks = Json::array();
  for (const auto& rank : r.ranks)
    ranks.push_back({{"planned_bytes", memory_json(rank.planned)}, {"allocated_bytes", memory_json(rank.allocated)}});
  const Json layout = {{"tp", r.spread.tp}, {"pp", r.spread.pp}, {"dp_attention", r.spread.dp}, {"ep", r.spread.ep}};
  const Json json = {
      {"model", r.model},
      {"device", r.device},
      {"layout", layout},
      {"ranks", ranks},
      {"synthetic_weights", r.synthetic},
      {"parameters", r.parameters},
      {"load_seconds", r.load_seconds},
      {"calibrated", r.calibrated.empty() ? Json() : Json(r.calibrated)},
      {"planned_bytes", memory_json(r.planned)},
      {"allocated_bytes", memory_json(r.allocated)},
      {"weight_read_gb_per_second", r.weight_read_gb_per_second > 0 ? Json(r.weight_read_gb_per_second) : Json()},
      {"best_read_gb_per_second", r.best_read_gb_per_second ? Json(*r.best_read_gb_per_second) : Json()},
      {"offload", offload_json(r.offload)},
      {"device_used_bytes", r.device_bytes ? Json(*r.device_bytes) : Json()},
      {"rows", rows}};
  std::puts(dump_json(json, 2).c_str());
}

std::string beside_text(const measure::Beside& b, const char* format) {
  const std::string measured = fmt::format(fmt::runtime(format), b.measured);
  if (!b.predicted) return measured;
  return fmt::format("{} / {} ({:+.1f} %)", measured, fmt::format(fmt::runtime(format), *b.predicted),
                     100 * b.error().value_or(0));
}

void print_text(const measure::BenchReport& r) {
  std::puts(
      tr("cli.bench.title",
         {{"model", r.model}, {"parameters", format_count(static_cast<double>(r.parameters))}, {"device", r.device}})
          .c_str());
  if (r.synthetic) std::puts(tr("cli.bench.synthetic").c_str());
  std::puts(tr("cli.bench.memory", {{"weights", format_bytes(r.allocated.weights_arena)},
                                    {"kv", format_bytes(r.allocated.cache)},
                                    {"activations", format_bytes(r.allocated.activations)},
                                    {"workspace", format_bytes(r.allocated.workspace)},
                                    {"total", format_bytes(r.allocated.total())},
                                    {"planned", format_bytes(r.planned.total())}})
                .c_str());
  if (r.offload) std::puts(measure::offload_text(*r.offload).c_str());
  if (r.offload)
    std::puts(tr("cli.offload.held", {{"host", format_bytes(r.allocated.host)},
                                      {"planned", format_bytes(r.planned.host)},
                                      {"ring", format_bytes(r.allocated.ring)},
                                      {"device", format_bytes(r.device_bytes.value_or(r.allocated.total()))}})
                  .c_str());
  if (!r.ranks.empty()) {
    std::vector<std::string> memory;
    for (const auto& rank : r.ranks) memory.push_back(format_bytes(rank.allocated.total()));
    std::puts(tr("cli.bench.ranks", {{"ranks", std::to_string(r.ranks.size())},
                                     {"spread", measure::spread_text(r.spread)},
                                     {"memory", join(memory)}})
                  .c_str());
  }
  std::puts(tr("cli.bench.beside").c_str());
  if (!r.calibrated.empty())
    std::puts(tr(r.here ? "cli.bench.calibrated_here" : "cli.bench.calibrated", {{"date", r.calibrated}}).c_str());
  const auto right = Align::kRight;
  Table table({{tr("cli.bench.col_batch"), right},
               {tr("cli.bench.col_prompt"), right},
               {tr("cli.bench.col_prefill"), right},
               {tr("cli.bench.col_decode"), right},
               {tr("cli.bench.col_mean"), right},
               {"p50", right},
               {"p99 ms", right},
               {tr("cli.bench.col_memory"), right}});
  for (const auto& row : r.rows) {
    measure::Beside mib{row.memory_bytes.measured / static_cast<double>(kMiB), {}};
    if (row.memory_bytes.predicted) mib.predicted = *row.memory_bytes.predicted / static_cast<double>(kMiB);
    table.add_row(
        {std::to_string(row.batch), std::to_string(row.prompt), beside_text(row.prefill_tokens_per_second, "{:.1f}"),
         beside_text(row.decode_tokens_per_second, "{:.1f}"), fmt::format("{:.2f}", row.mean_ms),
         fmt::format("{:.2f}", row.p50_ms), fmt::format("{:.2f}", row.p99_ms), beside_text(mib, "{:.0f} MiB")});
  }
  std::fputs(table.render().c_str(), stdout);
  if (r.weight_read_gb_per_second > 0 && r.best_read_gb_per_second)
    std::puts(tr("cli.bench.read",
                 {{"rate", fmt::format("{:.1f}", r.weight_read_gb_per_second)},
                  {"best", fmt::format("{:.1f}", *r.best_read_gb_per_second)},
                  {"share", fmt::format("{:.0f}", 100 * r.weight_read_gb_per_second / *r.best_read_gb_per_second)}})
                  .c_str());
}

}  // namespace

void setup_bench(FlagSet& verb) {
  verb.option("MODEL", bench_flags.session.model, tr("cli.bench.model"));
  verb.option("--prompt", bench_flags.bench.prompts, tr("cli.bench.prompt")).list().within(1, 1 << 24);
  verb.option("--generate", bench_flags.bench.generate, tr("cli.bench.generate")).within(1, 1 << 24);
  verb.option("--batch", bench_flags.bench.batches, tr("cli.bench.batch")).list().within(1, 1 << 16);
  verb.option("--repeat", bench_flags.bench.repetitions, tr("cli.bench.repeat")).within(1, 1000);
  verb.option("--device", bench_flags.session.device, tr("cli.bench.device"));
  verb.option("--dtype", bench_flags.session.weights, tr("cli.bench.dtype"));
  verb.option("--kv,--cache-dtype", bench_flags.session.kv, tr("cli.bench.kv"));
  verb.option("--threads", bench_flags.session.threads, tr("cli.bench.threads")).within(1, 4096);
  verb.option("--layers", bench_flags.session.layers, tr("cli.bench.layers"));
  verb.option("--seed", bench_flags.session.seed, tr("cli.bench.seed"));
  verb.option("--chunk", bench_flags.session.engine.prefill_chunk, tr("cli.bench.chunk")).within(1, 1 << 20);
  verb.flag("--random-weights", bench_flags.session.random_weights, tr("cli.bench.random"));
  verb.option("--trace", bench_flags.bench.trace, tr("cli.bench.trace"));
  verb.flag("--mmap", bench_flags.session.mmap, tr("cli.bench.mmap"));
  add_rank_flags(verb, bench_flags.session.ranks);
  add_offload_flags(verb, bench_flags.session.offload);
}

Result<int> run_bench(const Common& common) {
  FATHOM_TRY(const hardware::Machine machine, measure::known_machine());
  std::unique_ptr<Progress> bar;
  bench_flags.session.progress = [&](Bytes done, Bytes total) {
    if (!bar) bar = std::make_unique<Progress>(tr("cli.bench.loading"), total);
    bar->update(done);
    return true;
  };
  FATHOM_TRY(const measure::BenchReport report, measure::bench(bench_flags.session, bench_flags.bench, machine));
  bar.reset();
  if (report.followed) return kExitOk;
  if (common.json)
    print_json(report);
  else
    print_text(report);
  return kExitOk;
}

}  // namespace fathom::cli
