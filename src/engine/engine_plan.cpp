#include <algorithm>
#include <cstring>
#include <numeric>

#include "backends/meta/meta_ops.h"
#include "engine/engine_parts.h"

namespace fathom::engine {
namespace {
using tensor::Batch;
using tensor::Group;
using tensor::make_tensor;
using tensor::Sequence;
using tensor::Tensor;
using tensor::Value;

meta::GroupSizes group_sizes(const Spread& spread, int rank) {
  const tensor::GroupMembers members = groups_of(spread, rank);
  meta::GroupSizes groups;
  for (std::size_t g = 0; g < tensor::kGroupCount; ++g) {
    const std::vector<int>& ranks = members.ranks[g];
    groups.size[g] = static_cast<int>(ranks.size());
    groups.rank[g] = static_cast<int>(std::find(ranks.begin(), ranks.end(), rank) - ranks.begin());
  }
  return groups;
}

/// The replicas' counts when this one has `mine`, the most that it may, and all together have `most`.
std::vector<std::int64_t> beside(std::int64_t mine, std::int64_t most, const Spread& spread, int rank) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(spread.dp), 0);
  counts[static_cast<std::size_t>((spread.replica(rank) + 1) % spread.dp)] = most - mine;
  counts[static_cast<std::size_t>(spread.replica(rank))] = mine;
  return counts;
}

// The pass of each kind with the most tokens, run on meta: its buffers' lives become offsets.
tensor::ArenaPlan trace_pass(model::Architecture& architecture, const model::WeightSet& weights,
                             const EngineOptions& run, DType activations, PassKind kind, const CacheLayout& layout,
                             const Spread& spread, int rank) {
  const EngineOptions options = local_options(run, spread);
  std::vector<Sequence> sequences;
  std::int64_t tokens = 0;
  if (kind == PassKind::kDecode) {
    for (std::int64_t s = 0; s < options.slots; ++s)
      sequences.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(s), 1, 1});
    tokens = options.slots;
  } else {
    // Many sequences in one pass need a row more of some tables than one long one: entries are rounded up for each.
    const std::int64_t count = std::min(options.slots, options.prefill_chunk);
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t share = (options.prefill_chunk - tokens) / (count - s);
      sequences.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(tokens),
                           static_cast<std::int32_t>(share), kind == PassKind::kContinue ? 1 : 0});
      tokens += share;
    }
  }
  meta::MetaOptions meta_options;
  meta_options.activations = activations;
  meta::MetaOps ops(meta_options);
  meta::MetaCollectives comm(ops, group_sizes(spread, rank));
  std::byte* const nowhere = nullptr;
  const model::CacheSet cache = view_cache(architecture.cache(), options, layout, nowhere);
  Batch batch{.tokens = tokens,
              .sequences = sequences,
              .sequence_table = {},
              .ids = make_tensor(nowhere, DType::i32, {tokens}),
              .positions = make_tensor(nowhere, DType::i32, {tokens}),
              .output_rows = make_tensor(nowhere, DType::i32, {std::min(tokens, logit_rows(options))})};
  const std::vector<std::int64_t> replica_tokens =
      beside(tokens, std::max(tokens, kind == PassKind::kDecode ? run.slots : run.prefill_chunk), spread, rank);
  const std::vector<std::int64_t> replica_rows =
      beside(batch.output_rows.dim(0), std::max(batch.output_rows.dim(0), logit_rows(run)), spread, rank);
  model::Pass pass{
      .ops = ops, .comm = comm, .weights = weights, .cache = &cache, .batch = batch, .replica_tokens = replica_tokens};
  {
    const Value logits = collect_logits(pass, architecture.forward(pass), architecture.spec().vocabulary, replica_rows);
  }
  pass.rotary.clear();
  pass.shared.clear();
  const meta::Trace trace = ops.take();
  std::vector<tensor::Lifetime> lives;
  std::vector<std::int64_t> index(trace.buffers.size(), -1);
  std::uint32_t clock = 0;
  for (const meta::MemoryEvent& event : trace.events) {
    if (event.allocate) {
      index[event.buffer] = static_cast<std::int64_t>(lives.size());
      lives.push_back({.bytes = aligned(static_cast<Bytes>(trace.buffers[event.buffer].bytes.fixed)),
                       .first = clock,
                       .last = clock});
    } else {
      lives[static_cast<std::size_t>(index[event.buffer])].last = clock;
    }
    ++clock;
  }
  return tensor::plan_arena(lives);
}

Status check_options(const model::Architecture& architecture, const EngineOptions& options) {
  if (!architecture.runnable()) return fail_unsupported("model.v41_not_runnable");
  if (options.context < 1 || options.context > architecture.spec().max_context)
    return fail("engine.context_range", {{"context", std::to_string(options.context)},
                                         {"max", std::to_string(architecture.spec().max_context)}});
  FATHOM_CHECK(options.slots >= 1 && options.prefill_chunk >= options.slots);
  return {};
}

}  // namespace

EngineOptions local_options(const EngineOptions& options, const Spread& spread) {
  EngineOptions local = options;
  local.slots = (options.slots + spread.dp - 1) / spread.dp;
  return local;
}

CacheLayout lay_out_cache(const model::CacheSpec& spec, const EngineOptions& options) {
  CacheLayout layout;
  for (const model::CacheTensor& t : spec.tensors) {
    const DType type = t.type(options.cache_dtype);
    const Bytes bytes = static_cast<Bytes>(options.slots * t.rows_for(options.context) * t.row_elements(type)) *
                        static_cast<Bytes>(dtype_bytes(type));
    layout.offsets.push_back(layout.total);
    layout.total += aligned(bytes);
  }
  return layout;
}

model::CacheSet view_cache(const model::CacheSpec& spec, const EngineOptions& options, const CacheLayout& layout,
                           std::byte* base) {
  model::CacheSet set{.spec = &spec, .tensors = {}, .rows_per_slot = {}};
  for (std::size_t i = 0; i < spec.tensors.size(); ++i) {
    const model::CacheTensor& t = spec.tensors[i];
    const std::int64_t rows = t.rows_for(options.context);
    set.rows_per_slot.push_back(rows);
    const DType type = t.type(options.cache_dtype);
    set.tensors.push_back(make_tensor(base + layout.offsets[i], type, {options.slots * rows, t.row_elements(type)}));
  }
  return set;
}

Bytes table_bytes(const EngineOptions& o) {
  const auto i32 = [](std::int64_t n) { return aligned(static_cast<Bytes>(n) * 4); };
  return i32(o.prefill_chunk) * 2 + i32(logit_rows(o)) + i32(4 * o.slots);
}

std::vector<Tensor> place_constants(const model::Architecture& architecture, std::byte* base, Bytes& used) {
  std::vector<Tensor> tensors;
  for (const std::vector<float>& values : architecture.constants()) {
    if (base != nullptr) std::memcpy(base + used, values.data(), values.size() * sizeof(float));
    tensors.push_back(
        make_tensor(base == nullptr ? nullptr : base + used, DType::f32, {static_cast<std::int64_t>(values.size())}));
    used += aligned(values.size() * sizeof(float));
  }
  return tensors;
}

Value collect_logits(model::Pass& pass, Value logits, std::int64_t vocabulary, std::span<const std::int64_t> rows) {
  tensor::Collectives& comm = pass.comm;
  const std::int64_t total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0}),
                     own = rows[static_cast<std::size_t>(comm.rank(Group::kAttention))];
  if (total == 0) return {};
  const int stages = comm.size(Group::kPipeline), parts = comm.size(Group::kTensor);
  const bool speaks = comm.rank(Group::kTensor) == 0 && comm.rank(Group::kAttention) == 0;
  if (comm.rank(Group::kPipeline) < stages - 1) {
    if (comm.rank(Group::kPipeline) > 0 || !speaks) return {};
    Value out = tensor::allocate(pass.ops, DType::f32, {total, vocabulary});
    comm.receive(Group::kPipeline, stages - 1, out);
    return out;
  }
  if (logits->dim(1) < vocabulary) {  // each rank has some columns
    const std::int64_t width = logits->dim(1);
    Value beside = tensor::allocate(pass.ops, logits->dtype, {own * parts, width});
    comm.all_gather(Group::kTensor, logits, beside);
    logits = tensor::allocate(pass.ops, beside->dtype, {own, vocabulary});
    for (int i = 0; i < parts; ++i)
      pass.ops.copy({.x = beside->rows(own * i, own), .out = logits->columns(width * i, width)});
  }
  if (comm.size(Group::kAttention) > 1) {
    Value all = tensor::allocate(pass.ops, logits->dtype, {total, vocabulary});
    comm.all_gather_rows(Group::kAttention, logits, rows, all);
    logits = std::move(all);
  }
  if (stages > 1 && speaks) comm.send(Group::kPipeline, 0, logits);
  return logits;
}

Bytes reserved_bytes(const EngineMemory& memory) {
  Bytes all = 0;
  for (const Bytes bytes :
       {memory.weights_arena, memory.ring, std::max<Bytes>(memory.cache, 1), std::max<Bytes>(memory.activations, 1),
        std::max<Bytes>(memory.constants, 1), memory.sampling})
    all += tensor::Backend::reserved_bytes(bytes);
  return all;
}

Result<EnginePlan> plan_engine(model::Architecture& architecture, const weights::WeightPlan& weights,
                               const EngineOptions& options, DType activation_dtype, const Spread& spread, int rank) {
  FATHOM_TRY_VOID(check_options(architecture, options));
  EnginePlan plan;
  Bytes constants = 0;
  architecture.bind_constants(place_constants(architecture, nullptr, constants));
  const model::WeightSet shapes(architecture.weights());
  const EngineOptions local = local_options(options, spread);
  const CacheLayout layout = lay_out_cache(architecture.cache(), local);
  for (const PassKind kind : {PassKind::kPrefill, PassKind::kContinue, PassKind::kDecode}) {
    tensor::ArenaPlan& arena = plan.arenas[static_cast<std::size_t>(kind)];
    arena = trace_pass(architecture, shapes, options, activation_dtype, kind, layout, spread, rank);
    plan.memory.activations = std::max(plan.memory.activations, arena.total);
    plan.memory.activations_peak = std::max(plan.memory.activations_peak, arena.live_peak);
  }
  plan.memory.weights = weights.tensor_bytes;
  plan.memory.weights_arena = weights.arena_bytes;
  plan.memory.ring = weights.residence.ring_bytes();
  plan.memory.host = weights.residence.host_bytes;
  if (chooses_tokens(spread, rank))
    plan.memory.sampling = static_cast<Bytes>(options.slots) *
                           static_cast<Bytes>((architecture.spec().vocabulary + 31) / 32) * sizeof(std::uint32_t);
  plan.memory.cache = layout.total;
  plan.memory.constants = constants + table_bytes(local);
  return plan;
}

}  // namespace fathom::engine
