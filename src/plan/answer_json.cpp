// The contract's answer as JSON, written by hand: it is the inner loop of a batch.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "base/units.h"
#include "plan/answer.h"
#include "plan/answer_text.h"
#include "plan/engine_profile.h"
#include "plan/json_line.h"

namespace fathom::plan {
namespace {

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}
  void open() { out_ += '{', first_ = true; }
  void open(std::string_view name) { key(name), open(); }
  void close() { out_ += '}', first_ = false; }
  void open_list(std::string_view name) { key(name), out_ += '[', first_ = true; }
  void item() {
    if (!first_) out_ += ',';
    first_ = false;
  }
  void close_list() { out_ += ']', first_ = false; }
  void key(std::string_view name) {
    if (!first_) out_ += ',';
    first_ = false;
    out_ += '"';
    out_ += name;
    out_ += "\":";
  }
  void raw(std::string_view name, std::string_view value) { key(name), out_ += value; }
  void text(std::string_view name, std::string_view value) { key(name), append_json_string(out_, value); }
  void flag(std::string_view name, bool value) { raw(name, value ? "true" : "false"); }
  void count(std::string_view name, std::int64_t value) { key(name), append_json_number(out_, value); }
  void bytes(std::string_view name, Bytes value) {
    key(name), append_json_number(out_, static_cast<std::uint64_t>(value));
  }
  void number(std::string_view name, const std::optional<double>& value) {
    key(name), value ? append_json_number(out_, rounded(*value)) : void(out_ += "null");
  }
  void range(std::string_view name, const std::optional<Range>& value) {
    if (!value) return raw(name, "null");
    open(name);
    number("value", value->value);
    number("low", value->low);
    number("high", value->high);
    close();
  }

 private:
  /// Six digits say all that such a figure knows, and keep lines short.
  static double rounded(double value) {
    const float narrow = static_cast<float>(value);
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.6g", static_cast<double>(narrow));
    return std::strtod(buffer, nullptr);
  }
  std::string& out_;
  bool first_ = true;
};

void write_layout(Writer& w, const Candidate& c) {
  const Layout& l = c.layout;
  w.open("layout");
  const std::pair<std::string_view, std::int64_t> sizes[] = {{"tp", l.tp},    {"pp", l.pp},
                                                             {"dp", l.dp},    {"dp_attention", l.dp_attention},
                                                             {"ep", l.ep},    {"expert_tp", l.expert_tp},
                                                             {"cp", l.cp},    {"vp", l.vp},
                                                             {"zero", l.zero}};
  for (const auto& [name, size] : sizes) w.count(name, size);
  w.text("offload", offload_name(l.offload));
  w.text("recompute", recompute_name(l.recompute));
  if (l.recompute == Recompute::kFull && l.recompute_share < 1) w.number("recompute_share", l.recompute_share);
  w.count("micro_batch", l.micro_batch);
  w.count("micro_batches", l.micro_batches);
  w.text("weights", c.weights->name);
  if (c.kv != nullptr)
    w.text("kv", c.kv->name);
  else
    w.raw("kv", "null");
  w.count("batch", c.batch);
  w.close();
}

void write_memory(Writer& w, const MemoryBreakdown& m) {
  w.open("memory");
  const std::pair<std::string_view, Bytes> parts[] = {{"weights", m.weights},         {"kv", m.kv},
                                                      {"activations", m.activations}, {"gradients", m.gradients},
                                                      {"optimizer", m.optimizer},     {"workspace", m.workspace},
                                                      {"overhead", m.overhead},       {"allocated", m.allocated},
                                                      {"reserved", m.reserved},       {"total", m.total},
                                                      {"capacity", m.capacity}};
  for (const auto& [name, bytes] : parts) w.bytes(name, bytes);
  w.close();
}

void write_figures(Writer& w, const Candidate& best) {
  const TimeEstimate& time = best.time;
  write_layout(w, best);
  write_memory(w, best.memory.bytes);
  w.count("max_context", best.memory.max_context);
  w.range("ttft_ms", time.ttft_ms);
  w.range("tpot_ms", time.tpot_ms);
  w.range("step_ms", time.step_ms);
  w.number("prefill_tokens_per_second", time.prefill_tokens_per_second);
  w.number("decode_tokens_per_second", time.decode_tokens_per_second);
  w.number("output_tokens_per_second_per_gpu", time.output_tokens_per_second_per_gpu);
  w.number("train_tokens_per_second_per_gpu", time.train_tokens_per_second_per_gpu);
  w.number("mfu", time.mfu);
  w.text("bound_by", bound_name(time.bound_by));
  w.text("provenance", provenance_name(time.provenance));
}

void write_answer(Writer& w, const PlanRequest& request, const PlanAnswer& answer) {
  w.raw("id", request.id_json);
  w.flag("fits", answer.best.memory.fits);
  if (answer.best.memory.fits)
    w.raw("why_not", "null");
  else
    w.text("why_not", why_not(request, answer.best));
  write_figures(w, answer.best);
}

void write_offload(Writer& w, const OffloadAnswer& offload) {
  w.open("offload");
  w.text("what", offload.plan.experts ? "experts" : "layers");
  w.count("layers", static_cast<std::int64_t>(offload.plan.layers.size()));
  w.bytes("moved_bytes", offload.plan.moved_bytes);
  w.count("places", offload.plan.places);
  w.bytes("place_bytes", offload.plan.place_bytes);
  w.count("host_tokens", std::min<std::int64_t>(offload.plan.host_tokens, INT32_MAX));
  w.number("link_bytes_per_second", offload.problem.rates.link);
  w.number("host_bytes_per_second", offload.problem.rates.host_stream);
  w.number("ttft_ms", offload.ttft_ms);
  w.number("tpot_ms", offload.tpot_ms);
  w.close();
}

void write_list(Writer& w, std::string_view name, const std::vector<Candidate>& list) {
  w.open_list(name);
  for (const Candidate& candidate : list) {
    w.item();
    w.open();
    write_figures(w, candidate);
    w.close();
  }
  w.close_list();
}

}  // namespace

void append_answer_json(const PlanRequest& request, const PlanAnswer& answer, std::string& out) {
  Writer w(out);
  w.open();
  write_answer(w, request, answer);
  w.close();
}

void append_report_json(const PlanRequest& request, const PlanAnswer& answer, std::string& out) {
  static constexpr std::string_view kinds[] = {"smaller_weights", "smaller_kv",   "less_context", "smaller_batch",
                                               "more_devices",    "other_layout", "other_model",  "other_hardware",
                                               "offload",         "recompute"};
  const MemoryPlan& memory = answer.best.memory;
  Writer w(out);
  w.open();
  w.text("model", request.model->name());
  w.text("hardware", request.cluster.device.id);
  w.count("gpus", request.cluster.devices);
  w.text("task", task_name(request.task));
  w.text("engine", request.engine->name);
  write_answer(w, request, answer);
  w.flag("searched", answer.searched);
  w.count("layouts_seen", static_cast<std::int64_t>(answer.layouts_seen));
  w.count("concurrent", memory.concurrent);
  w.bytes("host_bytes", memory.host_bytes);
  w.open("timeline");
  for (int i = 0; i < memory.moments; ++i)
    w.bytes(memory.timeline[static_cast<std::size_t>(i)].what, memory.timeline[static_cast<std::size_t>(i)].bytes);
  w.close();
  write_list(w, "runners_up", answer.runners_up);
  write_list(w, "pareto", answer.pareto);
  w.open_list("ways_out");
  for (const WayOut& way : answer.ways_out) {
    w.item();
    w.open();
    w.text("kind", kinds[static_cast<int>(way.kind)]);
    w.text("what", way.what);
    w.bytes("total", way.total);
    w.close();
  }
  w.close_list();
  if (answer.offload)
    write_offload(w, *answer.offload);
  else
    w.raw("offload", "null");
  w.close();
}

}  // namespace fathom::plan
