#include "plan/model_tracing.h"

#include <algorithm>
#include <array>

#include "backends/meta/meta_ops.h"
#include "train/tape.h"

namespace fathom::plan {
namespace {

using meta::MetaOps;
using tensor::Shape;
using tensor::Tensor;

/// Memory of the caller that is never followed. Blocks of another number lie elsewhere, so that views of one cache can
/// be told from those of two.
Tensor fake(DType dtype, Shape shape, std::size_t number = 0) {
  return tensor::make_tensor(reinterpret_cast<void*>(std::uintptr_t{1} << 16 | number << 48), dtype, shape);
}

constexpr std::int64_t kTraceContext = std::int64_t{1}
                                       << 20;  // rows that a sequence's caches have room for; divides into all rings

/// The tokens that a phase is traced with.
struct TraceBatch {
  std::vector<tensor::Sequence> sequences;
  tensor::Batch batch;
  meta::TraceUnits units;

  TraceBatch(Phase phase, std::int64_t only_tokens) {
    std::int64_t tokens = meta::kTraceTokens, outputs = meta::kTraceOutputs;
    units = meta::kPrefillUnits;
    if (phase == Phase::kDecode) {
      tokens = meta::kTraceSequences;
      units = meta::kDecodeUnits;
    }
    if (only_tokens > 0) {
      tokens = only_tokens;
      outputs = 1;
      units = {};
    }
    if (phase == Phase::kDecode) {
      for (std::int64_t i = 0; i < tokens; ++i)
        sequences.push_back({.slot = static_cast<std::int32_t>(i),
                             .first_token = static_cast<std::int32_t>(i),
                             .tokens = 1,
                             .past = 4095});
    } else {
      sequences.push_back({.slot = 0,
                           .first_token = 0,
                           .tokens = static_cast<std::int32_t>(tokens),
                           .past = phase == Phase::kContinue ? 4096 : 0});
    }
    batch.tokens = tokens;
    batch.sequences = sequences;
    batch.sequence_table = fake(DType::i32, {static_cast<std::int64_t>(sequences.size()), 4});
    batch.ids = fake(DType::i32, {tokens});
    batch.positions = fake(DType::i32, {tokens});
    if (phase == Phase::kPrefill || phase == Phase::kContinue) batch.output_rows = fake(DType::i32, {outputs});
  }
};

struct FakeCaches {
  model::CacheSet set;
  FakeCaches(const model::CacheSpec& spec, std::int64_t slots) {
    set.spec = &spec;
    for (const model::CacheTensor& tensor : spec.tensors) {
      const std::int64_t rows = tensor.rows_for(kTraceContext);
      set.rows_per_slot.push_back(rows);
      set.tensors.push_back(
          fake(tensor.state ? DType::f32 : DType::bf16, {slots * rows, tensor.width}, set.tensors.size() + 1));
    }
  }
};

std::vector<std::int16_t> classes_by_parameter(const model::WeightTable& table) {
  std::vector<std::int16_t> classes(static_cast<std::size_t>(table.parameters()), -1);
  for (const model::WeightEntry& entry : table.entries())
    for (std::int64_t i = 0; i < entry.experts && entry.first_parameter >= 0 && entry.tied_to < 0; ++i)
      classes[static_cast<std::size_t>(entry.first_parameter + i)] = static_cast<std::int16_t>(entry.cls);
  return classes;
}

meta::GroupSizes groups_of(const model::Sharding& sharding) {
  meta::GroupSizes groups;
  groups.size[static_cast<std::size_t>(tensor::Group::kTensor)] = sharding.tp;
  groups.size[static_cast<std::size_t>(tensor::Group::kExpert)] = sharding.ep * sharding.expert_tp;
  return groups;
}

/// Everything that one pass on meta needs, alive as long as it.
struct MetaPass {
  TraceBatch batch;
  FakeCaches caches;
  std::vector<std::int16_t> classes;
  model::WeightSet weights;
  MetaOps ops;
  meta::MetaCollectives comm;
  model::Pass pass;

  MetaPass(const model::Architecture& share, Phase phase, DType activations, std::int64_t only_tokens)
      : batch(phase, only_tokens),
        caches(share.cache(), static_cast<std::int64_t>(batch.sequences.size())),
        classes(classes_by_parameter(share.weights())),
        weights(share.weights()),
        ops({.units = batch.units,
             .activations = activations,
             .records = phase == Phase::kTrain,
             .weight_classes = classes}),
        comm(ops, groups_of(share.sharding())),
        pass{ops, comm, weights, phase == Phase::kTrain ? nullptr : &caches.set, batch.batch, {}} {}
};

}  // namespace

void bind_fake_constants(model::Architecture& share) {
  std::vector<Tensor> tensors;
  for (const std::vector<float>& values : share.constants())
    tensors.push_back(fake(DType::f32, {static_cast<std::int64_t>(values.size())}));
  share.bind_constants(std::move(tensors));
}

namespace {

/// Which kind each layer is; `visit(kind, layer)` is called for the first of each.
template <class Visit>
void each_kind(const model::Architecture& share, ModelTrace& trace, Visit&& visit) {
  std::vector<int> numbers;  // of kinds, by the architecture
  for (std::int64_t i = 0; i < share.spec().layers; ++i) {
    const int number = share.layer_kind(i);
    auto at = std::find(numbers.begin(), numbers.end(), number);
    const auto index = static_cast<std::size_t>(at - numbers.begin());
    if (at == numbers.end()) {
      numbers.push_back(number);
      KindTrace kind;
      kind.example = i;
      if (static_cast<std::size_t>(i) < share.spec().layer.size())
        kind.spec = share.spec().layer[static_cast<std::size_t>(i)];
      visit(kind, i);
      trace.kinds.push_back(std::move(kind));
    }
    ++trace.kinds[index].layers;
    trace.kind_of_layer.push_back(static_cast<std::uint8_t>(index));
  }
}

/// Cross-entropy over the logits of all tokens.
tensor::Value run_loss(tensor::Ops& ops, const Tensor& logits) {
  tensor::Value losses = allocate(ops, DType::f32, {logits.dim(0)});
  ops.cross_entropy({.logits = logits, .targets = fake(DType::i32, {logits.dim(0)}), .losses = losses});
  return losses;
}

/// Gradients of every parameter, as tensors of the caller.
train::ParameterGradients fake_gradients(const model::WeightSet& weights) {
  train::ParameterGradients gradients;
  for (const tensor::Weight& weight : weights.all())
    gradients.tensors.push_back(
        fake(DType::f32, {std::max<std::int64_t>(weight.rows, 1), std::max<std::int64_t>(weight.cols, 1)}));
  return gradients;
}

/// Forward and backward of each section by itself, on a tape over meta.
ModelTrace trace_training(const model::Architecture& share, DType activations) {
  MetaPass run(share, Phase::kTrain, activations, 0);
  const train::ParameterGradients gradients = fake_gradients(run.weights);
  train::Tape tape(run.ops, run.ops, gradients);
  model::Pass pass{tape, run.comm, run.weights, nullptr, run.batch.batch, {}};
  ModelTrace trace;
  trace.phase = Phase::kTrain;
  share.begin(pass);
  tensor::Value hidden = share.embed(pass);
  trace.embed = run.ops.take();
  trace.hidden = hidden->root;
  const auto back = [&](const Tensor& out, meta::Trace& backward) {
    tape.backward(out, fake(out.dtype, out.shape));
    backward = run.ops.take();
  };
  back(hidden, trace.embed_backward);
  tape.clear();
  each_kind(share, trace, [&](KindTrace& kind, std::int64_t layer) {
    tape.watch(hidden);
    const tensor::Value out = share.layer(pass, layer, hidden);
    kind.forward = run.ops.take();
    back(out, kind.backward);
    tape.forget(hidden);
    tape.clear();
    (void)run.ops.take();  // what was still released
  });
  (void)run.ops.take();  // the last kind's output
  tape.watch(hidden);
  {
    const tensor::Value logits = share.head(pass, hidden);
    const tensor::Value losses = run_loss(tape, logits);
    trace.head = run.ops.take();
    back(losses, trace.head_backward);
  }
  tape.forget(hidden);
  tape.clear();
  return trace;
}

}  // namespace

ModelTrace trace_model(const model::Architecture& share, Phase phase, DType activations) {
  if (phase == Phase::kTrain) return trace_training(share, activations);
  MetaPass run(share, phase, activations, 0);
  ModelTrace trace;
  trace.phase = phase;
  share.begin(run.pass);
  const tensor::Value hidden = share.embed(run.pass);
  trace.embed = run.ops.take();
  trace.hidden = hidden->root;
  each_kind(share, trace, [&](KindTrace& kind, std::int64_t layer) {
    const tensor::Value out = share.layer(run.pass, layer, hidden);
    kind.forward = run.ops.take();
  });
  (void)run.ops.take();  // the last kind's output
  const tensor::Value logits = share.head(run.pass, hidden);
  trace.head = run.ops.take();
  return trace;
}

meta::Trace trace_whole(const model::Architecture& share, Phase phase, DType activations, std::int64_t tokens) {
  MetaPass run(share, phase, activations, tokens);
  share.begin(run.pass);
  tensor::Value hidden = share.embed(run.pass);
  for (std::int64_t i = 0; i < share.spec().layers; ++i) hidden = share.layer(run.pass, i, hidden);
  const tensor::Value logits = share.head(run.pass, hidden);
  if (phase == Phase::kTrain) (void)run_loss(run.ops, logits);
  return run.ops.take();
}

std::vector<std::int64_t> ModelTrace::stage_counts(const Layout& layout, int stage) const {
  std::vector<std::int64_t> counts(kinds.size(), 0);
  for (const LayerSpan& span :
       stage_layers(static_cast<std::int64_t>(kind_of_layer.size()), layout.pp, layout.vp, stage))
    for (std::int64_t i = span.first; i < span.last; ++i) ++counts[kind_of_layer[static_cast<std::size_t>(i)]];
  return counts;
}

}  // namespace fathom::plan
