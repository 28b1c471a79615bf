#include "plan/cost_model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <unordered_map>

#include "plan/cost_measured.h"
#include "plan/cost_ranges.h"
#include "plan/cost_serving.h"
#include "plan/cost_training.h"
#include "plan/memory_profile.h"

namespace fathom::plan {
namespace {

constexpr double kMs = 1e3;

// ---------------------------------------------------------------- lowering

LowerInputs lower_inputs(const CostInputs& in, const EngineProfile& engine, const Rates& rates, Phase phase) {
  LowerInputs lower;
  lower.engine = &engine;
  lower.weights = in.weights;
  lower.bytes = in.share->bytes.get();
  lower.kv = in.kv;
  lower.rates = &rates;
  lower.phase = phase;
  lower.adapters = has_adapters(in.request->task);
  lower.compute = in.request->compute;
  return lower;
}

Program lower_inference(const ModelTrace& trace, const LowerInputs& lower) {
  Program program;
  lower_trace(trace.embed, 1, lower, false, program);
  for (const KindTrace& kind : trace.kinds)
    lower_trace(kind.forward, static_cast<double>(kind.layers), lower, false, program);
  lower_trace(trace.head, 1, lower, true, program);
  return program;
}

void lower_stage(const ModelTrace& trace, const Layout& layout, int stage, const LowerInputs& lower,
                 TrainModel& model) {
  const std::vector<std::int64_t> counts = trace.stage_counts(layout, stage);
  if (stage == 0)
    lower_trace(trace.embed, 1, lower, false, model.forward),
        lower_trace(trace.embed_backward, 1, lower, false, model.backward);
  for (std::size_t i = 0; i < trace.kinds.size(); ++i) {
    lower_trace(trace.kinds[i].forward, static_cast<double>(counts[i]), lower, false, model.forward);
    lower_trace(trace.kinds[i].backward, static_cast<double>(counts[i]), lower, false, model.backward);
    model.stage_layers += static_cast<double>(counts[i]);
  }
  if (stage == layout.pp - 1)
    lower_trace(trace.head, 1, lower, true, model.forward),
        lower_trace(trace.head_backward, 1, lower, true, model.backward);
}

// ---------------------------------------------------------------- tasks

BoundBy largest(const Parts& parts) {
  return static_cast<BoundBy>(std::max_element(parts.begin(), parts.end()) - parts.begin());
}

/// Tokens that a decode step yields and what its drafts cost, for multi-token prediction.
struct Speculation {
  double tokens = 1, drafted = 1, cost = 1;
};
Speculation speculation(int drafts, double layers) {
  constexpr double kAccepted =
      0.8;  // of drafted tokens, each given the one before it (DeepSeek-V3 report: 85-90 % of first drafts)
  Speculation s;
  double chance = 1;
  for (int i = 0; i < drafts; ++i) s.tokens += chance *= kAccepted;
  s.drafted = 1 + drafts;
  s.cost = 1 + drafts / std::max(layers, 1.0);
  return s;
}

struct Context {
  const CostInputs& in;
  const EngineProfile& engine;
  ProvenanceTier tier;
  bool calibrated = false;
  bool known() const {
    return engine.measured || calibrated || (engine.own_kernels && in.request->cluster.device.kernels);
  }
  Range range(double value, Metric metric) const { return with_range(value, metric, tier, known()); }
};

void estimate_chat(const Context& c, const StepModel& model, TimeEstimate& out) {
  const PlanRequest& r = *c.in.request;
  const double replicas = static_cast<double>(model.layout.dp) * model.layout.dp_attention;
  const double batch = static_cast<double>(c.in.batch), sequences = std::max(1.0, std::ceil(batch / replicas));
  const double input = static_cast<double>(r.input), output = static_cast<double>(r.output);
  const StaticBatch result = static_batch(model, sequences, input, output);
  const Speculation s = speculation(r.mtp_drafts, static_cast<double>(r.model->spec().layers));
  const double step = result.decode_step * s.cost / s.tokens;
  const double first = result.prefill > 0 ? result.prefill : result.decode_step;
  out.ttft_ms = c.range(first * kMs, Metric::kPrefill);
  if (input > 0) out.prefill_tokens_per_second = batch * input / first;
  if (output > 0) {
    out.tpot_ms = c.range(step * kMs, Metric::kDecode);
    out.decode_tokens_per_second = batch / step;
  }
  out.bound_by = largest(output > 0 ? result.decode_parts : result.prefill_parts);
}

void estimate_serve(const Context& c, const StepModel& model, TimeEstimate& out) {
  const PlanRequest& r = *c.in.request;
  const double replicas = static_cast<double>(model.layout.dp) * model.layout.dp_attention;
  Loop loop;
  loop.users = std::max(1.0, static_cast<double>(c.in.batch) / replicas);
  loop.input = static_cast<double>(r.input);
  loop.output = std::max(1.0, static_cast<double>(r.output));
  if (c.in.concurrent > 0) {
    // Where pages are taken as outputs grow, sequences are on average half through theirs.
    const double grown = c.engine.reserves_output ? 1 : (loop.input + loop.output) / (loop.input + 0.6 * loop.output);
    loop.capacity = static_cast<double>(c.in.concurrent) * grown;
  }
  const LoopResult result = solve_loop(model, loop);
  const Speculation s = speculation(r.mtp_drafts, static_cast<double>(r.model->spec().layers));
  const double tpot = result.tpot * s.cost / s.tokens;
  out.ttft_ms = c.range(result.ttft * kMs, Metric::kTtft);
  out.tpot_ms = c.range(tpot * kMs, Metric::kTpot);
  const double rate =
      result.requests_per_second * replicas *
      (result.tpot > 0 ? (result.ttft + result.tpot * loop.output) / (result.ttft + tpot * loop.output) : 1);
  out.prefill_tokens_per_second = rate * loop.input;
  out.decode_tokens_per_second = rate * loop.output;
  out.output_tokens_per_second_per_gpu = rate * loop.output / model.layout.devices();
  out.bound_by = largest(result.parts);
}

void fill_stage_weights(const CostInputs& in, int stage, TrainModel& m) {
  const ShareWeights& share = *in.share;
  double units = 0;
  const auto add = [&](const PartWeights& part) {
    m.dense_parameters += static_cast<double>(part.elements);
    m.expert_parameters += static_cast<double>(part.expert_elements);
    m.gathered_bytes += static_cast<double>(part.stored);
    units += static_cast<double>(part.adapter_units);
  };
  for (const LayerSpan& span : stage_layers(in.request->model->spec().layers, in.layout.pp, in.layout.vp, stage))
    add(share.before[static_cast<std::size_t>(span.last)] - share.before[static_cast<std::size_t>(span.first)]);
  if (stage == 0) add(share.embedding);
  if (stage == in.layout.pp - 1) add(share.head);
  m.adapter_parameters = units * static_cast<double>(in.request->lora_rank);
}

/// Forward FLOPs of one token of the whole model on one rank, attention included.
double forward_flops(const ModelTrace& trace, double sequence) {
  double flops = 0;
  const auto add = [&](const meta::Trace& part, double repeats) {
    for (const meta::OpRecord& op : part.ops) {
      if (op.kind == meta::OpKind::kLinear || op.kind == meta::OpKind::kGroupedLinear ||
          op.kind == meta::OpKind::kExperts)
        flops += op.flops.at(1, 1) * repeats;
      if (op.kind == meta::OpKind::kAttention) {
        double visible = (sequence + 1) / 2;
        if (op.window > 0) visible = std::min(visible, static_cast<double>(op.window));
        visible /= static_cast<double>(std::max<std::int64_t>(op.ratio, 1));
        if (op.top_k > 0) visible = std::min(visible, static_cast<double>(op.top_k));
        flops += 2.0 * op.heads * (op.key_dim + op.shared_key_dim + op.value_dim) * visible * repeats;
      }
    }
  };
  for (const KindTrace& kind : trace.kinds) add(kind.forward, static_cast<double>(kind.layers));
  add(trace.head, 1);
  return flops;
}

void estimate_training(const Context& c, const Rates& rates, TimeEstimate& out) {
  const CostInputs& in = c.in;
  const PlanRequest& r = *in.request;
  const Layout& l = in.layout;
  const double seq = static_cast<double>(r.seq);
  const LowerInputs lower = lower_inputs(in, c.engine, rates, Phase::kTrain);
  const auto memory = memory_profile_of(r);
  const bool alternate = memory && std::find((*memory)->selective_keeps.begin(), (*memory)->selective_keeps.end(),
                                             "every_second_linear") != (*memory)->selective_keeps.end();
  TrainResult slowest;
  for (int stage = 0; stage < l.pp; stage += std::max(1, l.pp - 1)) {
    TrainModel m;
    lower_stage(*in.train, l, stage, lower, m);
    m.rates = rates;
    m.layout = l;
    m.engine = &c.engine;
    m.adapters = has_adapters(r.task);
    m.keeps_every_second_product = alternate;
    m.lora_rank = static_cast<double>(r.lora_rank);
    m.tokens = static_cast<double>(l.micro_batch) * seq / l.cp;
    m.sequence = seq;
    m.hidden = static_cast<double>(r.model->spec().hidden);
    fill_stage_weights(in, stage, m);
    const TrainResult result = train_step(m);
    if (result.step > slowest.step) slowest = result;
  }
  const double tokens = static_cast<double>(l.micro_batch * l.micro_batches) * seq * l.dp;
  const double per_device = tokens / slowest.step / l.devices();
  out.step_ms = c.range(slowest.step * kMs, Metric::kTrain);
  out.train_tokens_per_second_per_gpu = per_device;
  const hardware::Precision precision = r.compute.value_or(hardware::Precision::bf16);
  const double peak = r.cluster.device.peak_flops[static_cast<std::size_t>(precision)].value_or(0);
  const double flops = 3 * forward_flops(*in.train, seq) * l.tp;  // of one token, the model whole
  if (peak > 0) out.mfu = flops * per_device / peak;
  out.bound_by = largest(slowest.parts);
}

TimeEstimate estimate_with(const Context& c, const Rates& rates, const StepModel* model) {
  TimeEstimate out;
  out.provenance = c.tier;
  if (c.calibrated) out.calibrated = calibration_for(*c.in.request)->date;
  if (!c.known()) {
    out.engine_fell_back = true;
    out.provenance = std::max(out.provenance, ProvenanceTier::kMeasuredSibling);
  }
  if (is_training(c.in.request->task))
    estimate_training(c, rates, out);
  else if (c.in.request->task == Task::kServe)
    estimate_serve(c, *model, out);
  else
    estimate_chat(c, *model, out);
  return out;
}

UnitProgram group_inference(const CostInputs& in, const ModelTrace& trace, const LowerInputs& lower,
                            const Calibration& calibration) {
  UnitProgram program;
  add_units(trace.embed, 1, lower, in.layout, calibration, false, program);
  for (const KindTrace& kind : trace.kinds)
    add_units(kind.forward, static_cast<double>(kind.layers), lower, in.layout, calibration, false, program);
  add_units(trace.head, 1, lower, in.layout, calibration, true, program);
  return program;
}

std::shared_ptr<const MeasuredPasses> measured_passes(const CostInputs& in, const EngineProfile& engine,
                                                      const Rates& rates,
                                                      const std::shared_ptr<const Calibration>& calibration) {
  auto passes = std::make_shared<MeasuredPasses>();
  passes->calibration = calibration;
  passes->prefill = group_inference(in, *in.prefill, lower_inputs(in, engine, rates, Phase::kPrefill), *calibration);
  passes->decode = group_inference(in, *in.decode, lower_inputs(in, engine, rates, Phase::kDecode), *calibration);
  passes->resume =
      in.resume != nullptr
          ? group_inference(in, *in.resume, lower_inputs(in, engine, rates, Phase::kContinue), *calibration)
          : passes->prefill;
  passes->logit_bytes = 4 * static_cast<double>(in.request->model->spec().vocabulary);
  passes->chunk = static_cast<double>(in.request->prefill_chunk > 0 ? in.request->prefill_chunk : engine.prefill_chunk);
  return passes;
}

StepModel make_step_model(const CostInputs& in, const EngineProfile& engine, const Rates& rates) {
  StepModel model;
  model.prefill = lower_inference(*in.prefill, lower_inputs(in, engine, rates, Phase::kPrefill));
  model.decode = lower_inference(*in.decode, lower_inputs(in, engine, rates, Phase::kDecode));
  model.rates = rates;
  model.layout = in.layout;
  model.engine = &engine;
  model.offline = in.request->task == Task::kChat;
  model.packed = in.weights->unpacks;
  model.hidden_bytes = static_cast<double>(in.request->model->spec().hidden) * 2;
  return model;
}

// ---------------------------------------------------------------- what is kept between calls

struct RatesKey {
  const hardware::Accelerator* accelerator;
  const EngineProfile* engine;
  double bandwidth, peak, intra, inter, host;
  int domain, per_node;
  bool probed;
  std::optional<KernelRates> kernels;
  const Calibration* calibration;
  bool operator==(const RatesKey&) const = default;
};
struct RatesEntry {
  RatesKey key;
  std::uint64_t number;
  Rates rates;
  ProvenanceTier tier;
  std::shared_ptr<const Calibration> calibration;
};

const RatesEntry& kept_rates(const PlanRequest& r) {
  thread_local std::vector<std::unique_ptr<RatesEntry>> kept;
  thread_local std::uint64_t made = 0;
  const Device& d = r.cluster.device;
  const RatesKey key{d.accelerator,
                     r.engine,
                     d.bandwidth_bytes_per_second,
                     d.peak_flops[static_cast<std::size_t>(hardware::Precision::bf16)].value_or(0),
                     r.cluster.intra.bytes_per_second,
                     r.cluster.inter.bytes_per_second,
                     r.cluster.host.bytes_per_second,
                     r.cluster.domain,
                     r.cluster.devices_per_node,
                     d.probed,
                     d.kernels,
                     calibration_for(r).get()};
  for (const auto& entry : kept)
    if (entry->key == key) return *entry;
  if (kept.size() > 64) kept.clear();
  const auto tables = curve_tables();
  FATHOM_CHECK(tables.has_value(), "the tables were read when the request was parsed");
  const Curves curves = find_curves(**tables, r.cluster);
  const bool here = r.engine->own_kernels && (d.kernels || (key.calibration != nullptr && key.calibration->here));
  const ProvenanceTier tier = here                         ? ProvenanceTier::kMeasuredHere
                              : key.calibration != nullptr ? ProvenanceTier::kMeasuredSame
                                                           : curves.tier;
  kept.push_back(std::make_unique<RatesEntry>(
      RatesEntry{key, ++made, make_rates(r.cluster, curves, *r.engine), tier, calibration_for(r)}));
  return *kept.back();
}

struct ModelKey {
  std::uint64_t prefill, decode, share;  // serials: a model may be forgotten and its addresses come again
  const void *kv, *weights;
  std::uint64_t rates;
  std::int64_t chunk;
  int compute;
  bool offline;
  bool operator==(const ModelKey&) const = default;
};
struct ModelKeyHash {
  std::size_t operator()(const ModelKey& k) const {
    std::size_t h = static_cast<std::size_t>(k.compute) * 131 + static_cast<std::size_t>(k.chunk) * 17 + k.rates * 2 +
                    (k.offline ? 1 : 0);
    for (const std::uint64_t n : {k.prefill, k.decode, k.share}) h = h * 0x9E3779B97F4A7C15ULL + n;
    for (const void* p : {k.kv, k.weights}) h = h * 0x9E3779B97F4A7C15ULL + (reinterpret_cast<std::size_t>(p) >> 4);
    return h;
  }
};

StepModel& kept_model(const CostInputs& in, const RatesEntry& rates) {
  thread_local std::unordered_map<ModelKey, std::unique_ptr<StepModel>, ModelKeyHash> kept;
  const ModelKey key{in.prefill->serial,
                     in.decode->serial,
                     in.share->serial,
                     in.kv,
                     in.weights,
                     rates.number,
                     in.request->prefill_chunk,
                     in.request->compute ? static_cast<int>(*in.request->compute) : -1,
                     in.request->task == Task::kChat};
  if (kept.size() > 4096) kept.clear();
  std::unique_ptr<StepModel>& model = kept[key];
  if (model == nullptr) {
    model = std::make_unique<StepModel>(make_step_model(in, *in.request->engine, rates.rates));
    if (rates.calibration != nullptr)
      model->measured = measured_passes(in, *in.request->engine, rates.rates, rates.calibration);
  }
  model->layout = in.layout;
  return *model;
}

}  // namespace

WeightBytes weight_bytes(const model::WeightTable& share, const WeightFormatRule& rule) {
  WeightBytes sums;
  std::array<double, model::kWeightClassCount> elements{};
  const auto all = formats();
  if (!all) return sums;  // cannot be: the rule came from there
  std::int64_t layers = 0;
  for (const model::WeightEntry& entry : share.entries())
    if (entry.part == model::WeightPart::kMain) layers = std::max<std::int64_t>(layers, entry.layer + 1);
  for (model::WeightEntry entry : share.entries()) {
    if (entry.vector || (entry.part != model::WeightPart::kMain && entry.cls != model::WeightClass::kMtp)) continue;
    entry.tied_to = -1;  // a tied head streams its table all the same
    const auto cls = static_cast<std::size_t>(entry.cls);
    sums.per_element[cls] += static_cast<double>(entry_bytes(**all, rule, entry, layers, false));
    elements[cls] += static_cast<double>(entry.elements());
  }
  for (std::size_t i = 0; i < elements.size(); ++i)
    if (elements[i] > 0) sums.per_element[i] /= elements[i];
  return sums;
}

std::shared_ptr<const Calibration> calibration_for(const PlanRequest& request) {
  const Device& device = request.cluster.device;
  return request.engine->own_kernels && !is_training(request.task) && !device.kernels ? device.calibration : nullptr;
}

TimeEstimate estimate_time(const CostInputs& inputs) {
  const RatesEntry& rates = kept_rates(*inputs.request);
  const Context context{inputs, *inputs.request->engine, rates.tier,
                        rates.calibration != nullptr && !is_training(inputs.request->task)};
  return estimate_with(context, rates.rates, is_training(inputs.request->task) ? nullptr : &kept_model(inputs, rates));
}

TimeEstimate estimate_time(const CostInputs& inputs, const Curves& curves, const EngineProfile& engine) {
  const Rates rates = make_rates(inputs.request->cluster, curves, engine);
  const Context context{inputs, engine, curves.tier, false};
  if (is_training(inputs.request->task)) return estimate_with(context, rates, nullptr);
  const StepModel model = make_step_model(inputs, engine, rates);
  return estimate_with(context, rates, &model);
}

}  // namespace fathom::plan
