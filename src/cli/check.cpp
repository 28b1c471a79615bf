// fathom check: what this machine is, what it can do with DeepSeek, and the proof.
#include "measure/check.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "base/i18n.h"
#include "base/json.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "hardware/probe.h"
#include "measure/kernels.h"
#include "weights/synth.h"

namespace fathom::cli {
namespace {

struct CheckFlags {
  bool no_run = false, all = false;
  std::int64_t prompt = 256, generate = 48;
};
CheckFlags check_flags;

std::string speed_text(const measure::TaskVerdict& v) {
  const auto number = [](double x) {
    return x >= 100 ? fmt::format("{:.0f}", x) : x >= 10 ? fmt::format("{:.1f}", x) : fmt::format("{:.2f}", x);
  };
  if (v.speed.value <= 0) return tr("cli.check.speed_unknown");
  return fmt::format("{} ({}–{})", number(v.speed.value), number(v.speed.low), number(v.speed.high));
}

std::string task_text(plan::Task task) { return tr("cli.check.task_" + std::string(plan::task_name(task))); }

void print_machine(const hardware::Machine& m) {
  const std::string bandwidth =
      m.read_bandwidth() ? fmt::format("{:.1f} GB/s", *m.read_bandwidth() / kGB) : tr("cli.check.not_measured");
  std::puts(styled(Style::kBold, tr("cli.check.machine")).c_str());
  std::puts(tr("cli.check.cpu", {{"model", m.cpu.model}, {"threads", std::to_string(m.cpu.usable_threads)}}).c_str());
  std::puts(tr("cli.check.memory", {{"usable", format_bytes(m.usable_memory_bytes())},
                                    {"total", format_bytes(m.memory.limit_bytes.value_or(m.memory.total_bytes))},
                                    {"bandwidth", bandwidth}})
                .c_str());
  if (m.gpus.empty()) std::puts(tr("cli.check.no_gpu").c_str());
  for (const auto& gpu : m.gpus)
    std::puts(tr("cli.check.gpu", {{"name", gpu.name}, {"memory", format_bytes(gpu.memory_total_bytes)}}).c_str());
}

void print_survey(const std::vector<measure::ModelVerdict>& verdicts) {
  std::puts("");
  std::puts(styled(Style::kBold, tr("cli.check.can")).c_str());
  Table yes({{tr("cli.check.col_model")},
             {tr("cli.check.col_params"), Align::kRight},
             {tr("cli.check.col_task")},
             {tr("cli.check.col_weights")},
             {tr("cli.check.col_engine")},
             {tr("cli.check.col_context"), Align::kRight},
             {tr("cli.check.col_speed"), Align::kRight},
             {tr("cli.check.col_sure")}});
  Table no({{tr("cli.check.col_model")},
            {tr("cli.check.col_params"), Align::kRight},
            {tr("cli.check.col_task")},
            {tr("cli.check.col_missing"), Align::kRight},
            {tr("cli.check.col_way")}});
  for (const auto& model : verdicts) {
    std::string name = model.id.substr(model.id.find('/') + 1);
    if (!model.same.empty()) name += fmt::format(" (+{})", model.same.size());
    for (const auto& v : model.tasks) {
      if (v.weights.empty()) continue;
      if (v.fits) {
        yes.add_row(
            {name, format_count(model.parameters), task_text(v.task), v.weights, v.engine, std::to_string(v.context),
             speed_text(v),
             v.speed.value > 0 ? tr("cli.check.tier_" + std::string(plan::provenance_name(v.provenance))) : ""});
        continue;
      }
      const std::string missing = v.needed > v.capacity ? format_bytes(v.needed - v.capacity) : "";
      const std::string way =
          v.rented.empty()
              ? tr("cli.check.no_way")
              : tr("cli.check.rent", {{"machine", v.rented}, {"price", fmt::format("{:.2f}", v.rented_usd_per_hour)}});
      if (check_flags.all || v.task == plan::Task::kChat || v.task == plan::Task::kQlora)
        no.add_row({name, format_count(model.parameters), task_text(v.task), missing, way});
    }
  }
  std::fputs(yes.render().c_str(), stdout);
  const auto calibrated = [&]() -> std::string {
    for (const auto& model : verdicts)
      for (const auto& v : model.tasks)
        if (v.fits && !v.calibrated.empty()) return v.calibrated;
    return "";
  }();
  if (!calibrated.empty()) std::puts(tr("cli.check.calibrated", {{"date", calibrated}}).c_str());
  std::puts("");
  std::puts(styled(Style::kBold, tr("cli.check.cannot")).c_str());
  std::fputs(no.render().c_str(), stdout);
  if (!check_flags.all) std::puts(tr("cli.check.more").c_str());
}

std::string compare_line(const char* key, const measure::Beside& b, const std::string& predicted,
                         const std::string& measured) {
  return tr(key, {{"predicted", predicted},
                  {"measured", measured},
                  {"error", b.error() ? fmt::format("{:+.1f}", 100 * *b.error()) : "-"}});
}

void print_proof(const measure::BenchReport& report) {
  const auto& row = report.rows.front();
  const auto rate = [](double x) { return fmt::format("{:.1f}", x); };
  const auto mib = [](double x) { return fmt::format("{:.0f} MiB", x / static_cast<double>(kMiB)); };
  std::puts("");
  std::puts(
      styled(Style::kBold, tr("cli.check.proof", {{"parameters", format_count(static_cast<double>(report.parameters))},
                                                  {"device", report.device}}))
          .c_str());
  const auto& [memory, decode, prefill] =
      std::tie(row.memory_bytes, row.decode_tokens_per_second, row.prefill_tokens_per_second);
  std::puts(
      compare_line("cli.check.proof_memory", memory, mib(memory.predicted.value_or(0)), mib(memory.measured)).c_str());
  std::puts(compare_line("cli.check.proof_prefill", prefill, prefill.predicted ? rate(*prefill.predicted) : "-",
                         rate(prefill.measured))
                .c_str());
  std::puts(compare_line("cli.check.proof_decode", decode, decode.predicted ? rate(*decode.predicted) : "-",
                         rate(decode.measured))
                .c_str());
}

Json beside_report(const measure::Beside& b) {
  return {{"predicted", b.predicted ? Json(*b.predicted) : Json()},
          {"measured", b.measured},
          {"error", b.error() ? Json(*b.error()) : Json()}};
}

Json verdict_json(const measure::ModelVerdict& model) {
  Json tasks = Json::array();
  for (const auto& v : model.tasks)
    tasks.push_back(
        {{"task", plan::task_name(v.task)},
         {"fits", v.fits},
         {"weights", v.weights},
         {"engine", v.engine},
         {"context", v.context},
         {"tokens_per_second",
          v.speed.value > 0 ? Json{{"value", v.speed.value}, {"low", v.speed.low}, {"high", v.speed.high}} : Json()},
         {"provenance", v.speed.value > 0 ? Json(plan::provenance_name(v.provenance)) : Json()},
         {"calibrated", v.calibrated.empty() ? Json() : Json(v.calibrated)},
         {"needed_bytes", v.needed},
         {"capacity_bytes", v.capacity},
         {"why_not", v.why.empty() ? Json() : Json(v.why)},
         {"cheapest_rented", v.rented.empty() ? Json() : Json(v.rented)},
         {"usd_per_hour", v.rented.empty() ? Json() : Json(v.rented_usd_per_hour)}});
  return {{"model", model.id},
          {"same_shape", model.same},
          {"parameters", model.parameters},
          {"parameters_active", model.active},
          {"tasks", tasks}};
}

}  // namespace

void setup_check(FlagSet& verb) {
  verb.flag("--no-run", check_flags.no_run, tr("cli.check.no_run"));
  verb.flag("--all", check_flags.all, tr("cli.check.all"));
  verb.option("--prompt", check_flags.prompt, tr("cli.check.prompt")).within(1, 4096);
  verb.option("--generate", check_flags.generate, tr("cli.check.generate")).within(1, 4096);
}

Result<int> run_check(const Common& common) {
  if (!common.json) std::puts(tr("cli.check.measuring").c_str());
  hardware::ProbeOptions probe;
  probe.effort = hardware::Effort::kDefault;
  const hardware::Machine machine = hardware::probe(probe);
  if (!common.json) print_machine(machine);
  FATHOM_TRY(const auto kernels, measure::cpu_kernels());
  Progress bar(tr("cli.check.planning"), 1000);
  FATHOM_TRY(const auto verdicts, measure::survey(machine, kernels, [&](std::size_t done, std::size_t total) {
               bar.update(1000 * done / total);
             }));
  if (!common.json) print_survey(verdicts);
  std::optional<measure::BenchReport> report;
  if (!check_flags.no_run) {
    measure::SessionOptions session{.model = std::string(weights::kDefaultModel)};
    FATHOM_TRY(
        report,
        measure::bench(
            session,
            {.prompts = {check_flags.prompt}, .batches = {1}, .generate = check_flags.generate, .repetitions = 7},
            machine));
  }
  if (!common.json) {
    if (report) print_proof(*report);
    return kExitOk;
  }
  Json models = Json::array();
  for (const auto& verdict : verdicts) models.push_back(verdict_json(verdict));
  Json json = {{"machine", Json::parse(hardware::machine_to_json(machine), nullptr, false)}, {"models", models}};
  if (report) {
    const auto& row = report->rows.front();
    json["proof"] = {{"model", report->model},
                     {"synthetic_weights", report->synthetic},
                     {"device", report->device},
                     {"prefill_tokens_per_second", beside_report(row.prefill_tokens_per_second)},
                     {"decode_tokens_per_second", beside_report(row.decode_tokens_per_second)},
                     {"memory_bytes", beside_report(row.memory_bytes)}};
  }
  std::puts(dump_json(json, 2).c_str());
  return kExitOk;
}

}  // namespace fathom::cli
