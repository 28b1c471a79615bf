#include "plan/activations.h"

#include <algorithm>
#include <functional>

namespace fathom::plan {
namespace {

using meta::OpKind;
using meta::OpRecord;
using meta::Rate;
using meta::Trace;

Rate operator+(Rate a, const Rate& b) { return a += b; }

void add_candidate(meta::Peak& peak, const Rate& rate) {
  const auto covers = [](const Rate& a, const Rate& b) {
    return a.per_token >= b.per_token && a.per_output >= b.per_output && a.fixed >= b.fixed;
  };
  for (const Rate& other : peak.candidates)
    if (covers(other, rate)) return;
  std::erase_if(peak.candidates, [&](const Rate& other) { return covers(rate, other); });
  peak.candidates.push_back(rate);
}

/// Walks a trace with its memory: `visit(op, live)` sees what is alive while op runs.
void walk(const Trace& trace, const std::function<void(const OpRecord&, const Rate&)>& visit, Rate* held = nullptr) {
  std::vector<char> mine(trace.buffers.size(), 0);
  Rate live;
  std::size_t next = 0;
  const auto play = [&](std::size_t until) {
    for (; next < trace.events.size() && trace.events[next].after_op <= until; ++next) {
      const meta::MemoryEvent& event = trace.events[next];
      if (event.allocate) mine[event.buffer] = 1;
      if (mine[event.buffer]) live += trace.buffers[event.buffer].bytes * (event.allocate ? 1.0 : -1.0);
    }
  };
  for (std::size_t i = 0; i < trace.ops.size(); ++i) {
    play(i);
    visit(trace.ops[i], live);
  }
  play(trace.ops.size());
  if (held != nullptr) *held = live;
}

double element_bytes(const MemoryProfile& profile) { return profile.activation_bytes; }

/// What an engine has alive during an op beside what the trace shows.
Rate extra_bytes(const OpRecord& op, const MemoryProfile& profile) {
  const Rate output = op.rows * static_cast<double>(op.n);
  switch (op.kind) {
    case OpKind::kSwiglu:
    case OpKind::kGelu:
      return op.in_place && !profile.reuses_gate ? output * element_bytes(profile) : Rate{};
    case OpKind::kRmsNorm:
    case OpKind::kLayerNorm:
      return output * profile.norm_bytes;
    case OpKind::kExperts: {
      // Rows gathered for their experts, their hidden rows and results: every choice of every token may land here.
      const double slot = static_cast<double>(op.n + 3 * op.expert_intermediate) * element_bytes(profile);
      return op.rows * (slot * static_cast<double>(op.experts_per_token));
    }
    default:
      return {};
  }
}

meta::Peak lowered_peak(const Trace& trace, const MemoryProfile& profile) {
  meta::Peak peak;
  walk(trace, [&](const OpRecord& op, const Rate& live) { add_candidate(peak, live + extra_bytes(op, profile)); });
  return peak;
}

// ---------------------------------------------------------------- training

const SavedByOp& rule_of(OpKind kind, const MemoryProfile& profile) {
  static const SavedByOp nothing{}, inputs{true, 0, 0};
  switch (kind) {
    case OpKind::kLinear:
    case OpKind::kGroupedLinear:
      return profile.linear;
    case OpKind::kRmsNorm:
    case OpKind::kLayerNorm:
      return profile.norm;
    case OpKind::kRope:
      return profile.rope;
    case OpKind::kAttention:
      return profile.attention;
    case OpKind::kSwiglu:
    case OpKind::kGelu:
      return profile.activation;
    case OpKind::kAdd:
      return profile.residual;
    case OpKind::kExperts:
      return profile.experts;
    case OpKind::kCompress:
    case OpKind::kRoute:
    case OpKind::kHyperMix:
    case OpKind::kHyperMerge:
      return inputs;
    default:
      return nothing;
  }
}

class LayerSaves {
 public:
  LayerSaves(const Trace& trace, std::uint32_t input, const model::ModelSpec& spec, const MemoryProfile& profile,
             bool fp8_products)
      : trace_(trace),
        profile_(profile),
        hidden_bytes_(static_cast<double>(spec.hidden) * 2),
        product_scale_(fp8_products ? profile.fp8_input_bytes / 2 : 1.0),
        mine_(trace.buffers.size(), 0),
        input_(input) {
    for (const meta::MemoryEvent& event : trace.events)
      if (event.allocate) mine_[event.buffer] = 1;
  }

  SavedActivations all() const {
    SavedActivations saved;
    every_op(saved.none, saved.none_replicated);
    const bool alternate = std::find(profile_.selective_keeps.begin(), profile_.selective_keeps.end(),
                                     "every_second_linear") != profile_.selective_keeps.end();
    if (alternate)
      every_second_linear(saved.selective);
    else
      saved.selective = saved.none, saved.selective_replicated = saved.none_replicated;
    saved.full = trace_.buffers[input_].bytes;
    saved.backward = backward();
    return saved;
  }

 private:
  void keep(std::uint32_t buffer, double scale, std::vector<double>& kept) const {
    if (buffer != 0 && (mine_[buffer] || buffer == input_)) kept[buffer] = std::max(kept[buffer], scale);
  }

  void add(Rate& total, Rate& replicated, const Rate& bytes) const {
    (bytes.per_token == hidden_bytes_ ? replicated : total) += bytes;
  }

  void every_op(Rate& total, Rate& replicated) const {
    std::vector<double> kept(trace_.buffers.size(), 0);
    for (const OpRecord& op : trace_.ops) {
      const SavedByOp& rule = rule_of(op.kind, profile_);
      const bool product = op.kind == OpKind::kLinear || op.kind == OpKind::kGroupedLinear;
      if (rule.input)
        for (const std::uint32_t input : op.inputs)
          if (op.kind != OpKind::kRope || input == op.output) keep(input, product ? product_scale_ : 1.0, kept);
      const Rate output = op.rows * static_cast<double>(op.n);
      add(total, replicated, output * (rule.output_copies * rule.output_bytes));
      if (op.kind == OpKind::kAttention && op.output != 0) {
        total += op.rows * (4.0 * op.heads);  // log-sum-exp, once a query head
        if (profile_.expands_heads && op.kv_heads < op.heads)
          total += op.rows * (2.0 * (op.heads - op.kv_heads) * (op.key_dim + op.value_dim));
      }
      if (op.kind == OpKind::kExperts && rule.input) {
        const double slot = static_cast<double>(2 * op.n + 3 * op.expert_intermediate) * 2.0;
        total += op.rows * (slot * static_cast<double>(op.experts_per_token));
      }
    }
    for (std::size_t i = 0; i < kept.size(); ++i)
      if (kept[i] > 0) add(total, replicated, trace_.buffers[i].bytes * kept[i]);
    if (profile_.dropout_bytes > 0) replicated += trace_.buffers[input_].bytes * (profile_.dropout_bytes / 2 * 2);
  }

  // Outputs of products number 1, 3, 5, … and of attention; the rest is computed again.
  void every_second_linear(Rate& total) const {
    total = trace_.buffers[input_].bytes;
    int number = 0;
    for (const OpRecord& op : trace_.ops) {
      const Rate output = op.rows * (static_cast<double>(op.n) * 2.0);
      if (op.kind == OpKind::kLinear && ++number % 2 == 1) total += output;
      if (op.kind == OpKind::kAttention && op.output != 0) total += output;
    }
  }

  // Gradients of an op's output and inputs live together, beside that of the residual stream.
  Rate backward() const {
    Rate worst;
    for (const OpRecord& op : trace_.ops) {
      Rate sum;
      if (op.output != 0) sum += trace_.buffers[op.output].bytes;
      for (const std::uint32_t input : op.inputs)
        if (input != 0 && mine_[input]) sum += trace_.buffers[input].bytes;
      if (sum.per_token > worst.per_token) worst = sum;
    }
    return worst + trace_.buffers[input_].bytes;
  }

  const Trace& trace_;
  const MemoryProfile& profile_;
  double hidden_bytes_, product_scale_;
  std::vector<char> mine_;
  std::uint32_t input_;
};

}  // namespace

double ActivationModel::at(double tokens, double outputs) const {
  const double between = rotary.at(tokens, outputs) + hidden.at(tokens, outputs);
  return std::max(embed.at(tokens, outputs), between + std::max(layers.at(tokens, outputs), head.at(tokens, outputs)));
}

ActivationModel make_activations(const ModelTrace& trace, const model::ModelSpec& spec, const MemoryProfile& profile,
                                 bool fp8_products) {
  ActivationModel out;
  Rate held;
  out.embed = lowered_peak(trace.embed, profile);
  walk(
      trace.embed, [](const OpRecord&, const Rate&) {}, &held);
  // The hidden state is what the layers read; the rest that stays alive are the rotary tables.
  out.hidden = trace.embed.buffers[trace.hidden].bytes;
  out.rotary = held + out.hidden * -1.0;
  out.hidden += meta::Rate{static_cast<double>(spec.hidden) * profile.held_hidden * element_bytes(profile), 0, 0};
  for (const KindTrace& kind : trace.kinds) {
    for (const Rate& rate : lowered_peak(kind.forward, profile).candidates) add_candidate(out.layers, rate);
    for (const OpRecord& op : kind.forward.ops) {
      if (op.kind != OpKind::kAttention || op.output == 0) continue;
      if (profile.expands_heads && op.kv_heads < op.heads)
        out.expand_bytes_per_context =
            static_cast<double>(op.heads) * (op.key_dim + op.value_dim) * element_bytes(profile);
      if (profile.concatenates)
        out.cache_layer_bytes_per_context = static_cast<double>(op.kv_heads) * op.key_dim * element_bytes(profile);
    }
  }
  double vocabulary = 0;
  for (const OpRecord& op : trace.head.ops) {
    if (op.kind != OpKind::kLinear) continue;
    vocabulary = static_cast<double>(op.n);
    out.logits = op.rows * vocabulary;
  }
  out.head = lowered_peak(trace.head, profile);
  const double more = std::max(profile.logit_bytes - element_bytes(profile), 0.0);
  for (Rate& rate : out.head.candidates) rate += out.logits * more;
  if (trace.phase != Phase::kTrain) return out;
  out.loss_logits_per_token = vocabulary;
  out.kind_of_layer = trace.kind_of_layer;
  for (const KindTrace& kind : trace.kinds) {
    SavedActivations saved = LayerSaves(kind.forward, trace.hidden, spec, profile, fp8_products).all();
    if (profile.follows_tape) {
      // The tape keeps what is alive between the two traces, and checkpoints by blocks.
      Rate kept;
      (void)meta::live_peak(kind.forward, &kept);
      saved.none = saved.selective = kept;
      saved.none_replicated = saved.selective_replicated = {};
      saved.backward = meta::live_peak(kind.backward).candidates.empty()
                           ? Rate{}
                           : meta::live_peak(kind.backward).candidates.front();
    }
    out.kinds.push_back(saved);
  }
  return out;
}

}  // namespace fathom::plan
