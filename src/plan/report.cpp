// The report of a plan for a person: what fits, where the memory goes, how fast, how sure, and what else there is.
#include <cmath>

#include "base/i18n.h"
#include "base/strings.h"
#include "base/terminal.h"
#include "base/units.h"
#include "plan/answer_text.h"
#include "plan/engine_profile.h"

namespace fathom::plan {
namespace {

std::string number(double value, int digits = 3) {
  char buffer[48];
  const double magnitude = std::abs(value);
  const int decimals = magnitude >= 100 || digits == 0 ? 0 : magnitude >= 10 ? 1 : magnitude >= 1 ? 2 : 3;
  std::snprintf(buffer, sizeof buffer, "%.*f", decimals, value);
  std::string text = buffer;
  // Thousands apart: 1 234 567.
  const std::size_t point = std::min(text.find('.'), text.size());
  for (std::size_t at = point; at > 3 + (text[0] == '-' ? 1U : 0U); at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string milliseconds(double ms) { return format_seconds(ms / 1e3); }

std::string range_text(const Range& range) {
  return tr(
      "plan.report.range",
      {{"value", milliseconds(range.value)}, {"low", milliseconds(range.low)}, {"high", milliseconds(range.high)}});
}

std::string devices_text(const PlanRequest& request) {
  const std::string name =
      request.cluster.device.name.empty() ? request.cluster.device.id : request.cluster.device.name;
  return request.cluster.devices == 1 ? name : std::to_string(request.cluster.devices) + " × " + name;
}

std::string load_text(const PlanRequest& request, const Candidate& best) {
  const TextArgs args{{"batch", std::to_string(best.batch)},
                      {"input", std::to_string(request.input)},
                      {"output", std::to_string(request.output)},
                      {"seq", std::to_string(request.seq)},
                      {"global", std::to_string(best.layout.micro_batch * best.layout.micro_batches * best.layout.dp)},
                      {"optimizer", std::string(optimizer_name(request.optimizer))}};
  return tr(is_training(request.task)      ? "plan.report.load_training"
            : request.task == Task::kServe ? "plan.report.load_serve"
                                           : "plan.report.load_chat",
            args);
}

class Report {
 public:
  Report(const PlanRequest& request, const PlanAnswer& answer)
      : request_(request), answer_(answer), best_(answer.best) {}

  std::string text() {
    headline();
    memory();
    speed();
    others();
    front();
    ways_out();
    return std::move(out_);
  }

 private:
  void line(const std::string& text) { out_ += text + "\n"; }
  void title(const char* key) { out_.append("\n").append(styled(Style::kBold, tr(key))).append("\n"); }

  void headline() {
    line(styled(Style::kBold, request_.model->name() + " · " +
                                  tr("plan.task." + std::string(task_name(request_.task))) + " · " +
                                  devices_text(request_) + " · " + request_.engine->name));
    line(load_text(request_, best_));
    const MemoryPlan& memory = best_.memory;
    if (memory.fits) {
      const auto limit =
          std::min<std::int64_t>(memory.max_context, std::max<std::int64_t>(request_.model->spec().max_context, 1));
      line(styled(Style::kGreen,
                  tr("plan.report.fits", {{"free", format_bytes(memory.bytes.capacity -
                                                                std::min(memory.bytes.capacity, memory.bytes.total))},
                                          {"capacity", format_bytes(memory.bytes.capacity)}})));
      line(tr(is_training(request_.task)   ? "plan.report.max_seq"
              : limit < memory.max_context ? "plan.report.max_context_model"
                                           : "plan.report.max_context",
              {{"context", std::to_string(limit)}}));
      if (request_.task == Task::kServe)
        line(tr("plan.report.concurrent",
                {{"count", std::to_string(memory.concurrent * best_.layout.dp * best_.layout.dp_attention)}}));
    } else {
      line(styled(Style::kRed, tr("plan.report.does_not_fit")));
      line(why_not(request_, best_));
    }
    line(tr("plan.report.layout", {{"layout", layout_text(best_.layout, is_training(request_.task))},
                                   {"weights", best_.weights->name},
                                   {"kv", best_.kv != nullptr ? best_.kv->name : "-"}}));
    if (answer_.searched) line(tr("plan.report.searched", {{"count", std::to_string(answer_.layouts_seen)}}));
  }

  void memory() {
    const MemoryBreakdown& m = best_.memory.bytes;
    title(best_.layout.devices() > 1 ? "plan.report.memory_fullest" : "plan.report.memory");
    Table table({{tr("plan.report.column.category"), Align::kLeft},
                 {tr("plan.report.column.size"), Align::kRight},
                 {tr("plan.report.column.share"), Align::kRight}});
    const std::pair<MemoryCategory, Bytes> rows[] = {
        {MemoryCategory::kWeights, m.weights},         {MemoryCategory::kKv, m.kv},
        {MemoryCategory::kActivations, m.activations}, {MemoryCategory::kGradients, m.gradients},
        {MemoryCategory::kOptimizer, m.optimizer},     {MemoryCategory::kWorkspace, m.workspace},
        {MemoryCategory::kOverhead, m.overhead}};
    const auto share = [&](Bytes bytes) {
      return number(100.0 * static_cast<double>(bytes) / static_cast<double>(std::max<Bytes>(m.capacity, 1))) + " %";
    };
    for (const auto& [category, bytes] : rows)
      if (bytes > 0)
        table.add_row({tr("plan.category." + std::string(category_name(category))), format_bytes(bytes), share(bytes)});
    table.add_row({tr("plan.report.total"), format_bytes(m.total), share(m.total)});
    table.add_row({tr("plan.report.capacity"), format_bytes(m.capacity), ""});
    out_ += table.render();
    if (best_.memory.host_bytes > 0) line(tr("plan.report.host", {{"size", format_bytes(best_.memory.host_bytes)}}));
    if (!is_training(request_.task) && best_.memory.kv_bytes_per_token > 0)
      line(tr("plan.report.kv_per_token",
              {{"bytes", number(best_.memory.kv_bytes_per_token)},
               {"fixed", format_bytes(static_cast<Bytes>(best_.memory.kv_bytes_per_sequence))}}));
  }

  void speed() {
    const TimeEstimate& t = best_.time;
    title("plan.report.speed");
    Table table({{tr("plan.report.column.figure"), Align::kLeft}, {tr("plan.report.column.value"), Align::kLeft}});
    const auto row = [&](const char* key, const std::string& value) { table.add_row({tr(key), value}); };
    if (t.ttft_ms) row("plan.report.ttft", range_text(*t.ttft_ms));
    if (t.tpot_ms) row("plan.report.tpot", range_text(*t.tpot_ms));
    if (t.step_ms) row("plan.report.step", range_text(*t.step_ms));
    if (t.prefill_tokens_per_second) row("plan.report.prefill", number(*t.prefill_tokens_per_second) + " tokens/s");
    if (t.decode_tokens_per_second) row("plan.report.decode", number(*t.decode_tokens_per_second) + " tokens/s");
    if (t.output_tokens_per_second_per_gpu)
      row("plan.report.output", number(*t.output_tokens_per_second_per_gpu) + " tokens/s");
    if (t.train_tokens_per_second_per_gpu)
      row("plan.report.train", number(*t.train_tokens_per_second_per_gpu) + " tokens/s");
    if (t.mfu) row("plan.report.mfu", number(100 * *t.mfu) + " %");
    row("plan.report.bound_by", tr("plan.bound." + std::string(bound_name(t.bound_by))));
    const std::string provenance = tr("plan.provenance." + std::string(provenance_name(t.provenance)));
    row("plan.report.provenance",
        t.calibrated.empty() ? provenance
                             : tr("plan.report.calibrated", {{"provenance", provenance}, {"date", t.calibrated}}));
    out_ += table.render();
    if (t.engine_fell_back) line(tr("plan.report.fell_back", {{"engine", request_.engine->name}}));
    if (!best_.memory.fits) line(tr("plan.report.if_it_fitted"));
  }

  std::vector<std::string> row_of(const Candidate& c) const {
    const TimeEstimate& t = c.time;
    std::vector<std::string> row{layout_text(c.layout, is_training(request_.task)), format_bytes(c.memory.bytes.total)};
    if (is_training(request_.task)) {
      row.push_back(t.train_tokens_per_second_per_gpu ? number(*t.train_tokens_per_second_per_gpu) : "-");
      row.push_back(t.mfu ? number(100 * *t.mfu) + " %" : "-");
      return row;
    }
    row.push_back(std::to_string(c.batch));
    row.push_back(t.ttft_ms ? milliseconds(t.ttft_ms->value) : "-");
    row.push_back(t.tpot_ms ? milliseconds(t.tpot_ms->value) : "-");
    row.push_back(t.output_tokens_per_second_per_gpu ? number(*t.output_tokens_per_second_per_gpu)
                  : t.decode_tokens_per_second       ? number(*t.decode_tokens_per_second / c.layout.devices())
                                                     : "-");
    return row;
  }

  void candidates(const std::vector<Candidate>& list, const char* name) {
    if (list.empty()) return;
    title(name);
    std::vector<Column> columns{{tr("plan.report.column.layout"), Align::kLeft},
                                {tr("plan.report.column.memory"), Align::kRight}};
    if (is_training(request_.task)) {
      for (const char* key : {"plan.report.column.train", "plan.report.column.mfu"})
        columns.push_back({tr(key), Align::kRight});
    } else {
      for (const char* key : {"plan.report.column.users", "plan.report.column.ttft", "plan.report.column.tpot",
                              "plan.report.column.output"})
        columns.push_back({tr(key), Align::kRight});
    }
    Table table(std::move(columns));
    for (const Candidate& candidate : list) table.add_row(row_of(candidate));
    out_ += table.render();
  }

  void others() { candidates(answer_.runners_up, "plan.report.runners_up"); }
  void front() { candidates(answer_.pareto, "plan.report.pareto"); }

  void offload() {
    if (!answer_.offload) return;
    const OffloadAnswer& o = *answer_.offload;
    title("plan.report.offload");
    const TextArgs args{{"count", std::to_string(o.plan.layers.size())},
                        {"layers", std::to_string(o.problem.layers.size())},
                        {"moved", format_bytes(o.plan.moved_bytes)},
                        {"places", format_bytes(o.plan.place_bytes * static_cast<Bytes>(o.plan.places))},
                        {"tokens", std::to_string(o.plan.host_tokens)},
                        {"link", format_bytes(static_cast<Bytes>(o.problem.rates.link))},
                        {"host", format_bytes(static_cast<Bytes>(o.problem.rates.host_stream))},
                        {"ttft", milliseconds(o.ttft_ms)},
                        {"tpot", milliseconds(o.tpot_ms)}};
    line(tr(o.plan.experts ? "plan.report.offload_experts" : "plan.report.offload_layers", args));
    line(tr(o.plan.host_tokens == 0 ? "plan.report.offload_streams"
            : o.plan.places == 0    ? "plan.report.offload_computes"
                                    : "plan.report.offload_both",
            args));
    line(tr("plan.report.offload_times", args));
  }

  void ways_out() {
    if (best_.memory.fits) return;
    offload();
    title("plan.report.ways_out");
    if (answer_.ways_out.empty()) line(tr("plan.report.no_way_out"));
    for (const WayOut& way : answer_.ways_out) line(std::string("  - ").append(way_out_text(request_, way)));
  }

  const PlanRequest& request_;
  const PlanAnswer& answer_;
  const Candidate& best_;
  std::string out_;
};

}  // namespace

std::string report_text(const PlanRequest& request, const PlanAnswer& answer) { return Report(request, answer).text(); }

}  // namespace fathom::plan
