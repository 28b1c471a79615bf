#include "engine/engine.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "backends/meta/meta_ops.h"
#include "backends/self/self_collectives.h"

namespace fathom::engine {
namespace {
using tensor::Batch;
using tensor::make_tensor;
using tensor::Sequence;
using tensor::Tensor;

Bytes aligned(Bytes bytes) { return (bytes + tensor::kArenaAlignment - 1) / tensor::kArenaAlignment * tensor::kArenaAlignment; }
std::int64_t logit_rows(const EngineOptions& options) { return options.logit_rows > 0 ? options.logit_rows : options.slots; }

// Where each cache tensor begins in one block, and how long the block is.
struct CacheLayout { std::vector<Bytes> offsets; Bytes total = 0, exact = 0; };
DType cache_type(const model::CacheTensor& t, const EngineOptions& options) {
  return t.state && options.cache_dtype != DType::f64 ? DType::f32 : options.cache_dtype;
}
CacheLayout lay_out_cache(const model::CacheSpec& spec, const EngineOptions& options) {
  CacheLayout layout;
  for (const model::CacheTensor& t : spec.tensors) {
    const Bytes bytes = static_cast<Bytes>(options.slots * t.rows_for(options.context) * t.width) * static_cast<Bytes>(dtype_bytes(cache_type(t, options)));
    layout.offsets.push_back(layout.total);
    layout.exact += bytes;
    layout.total += aligned(bytes);
  }
  return layout;
}

model::CacheSet view_cache(const model::CacheSpec& spec, const EngineOptions& options, const CacheLayout& layout, std::byte* base) {
  model::CacheSet set{.spec = &spec, .tensors = {}, .rows_per_slot = {}};
  for (std::size_t i = 0; i < spec.tensors.size(); ++i) {
    const model::CacheTensor& t = spec.tensors[i];
    const std::int64_t rows = t.rows_for(options.context);
    set.rows_per_slot.push_back(rows);
    set.tensors.push_back(make_tensor(base + layout.offsets[i], cache_type(t, options), {options.slots * rows, t.width}));
  }
  return set;
}

// Sizes of the small tables that every pass fills in: ids, positions, wanted rows, sequences.
Bytes table_bytes(const EngineOptions& o) {
  const auto i32 = [](std::int64_t n) { return aligned(static_cast<Bytes>(n) * 4); };
  return i32(o.prefill_chunk) * 2 + i32(logit_rows(o)) + i32(4 * o.slots);
}

// The pass of each kind with the most tokens, run on meta: its buffers' lives become offsets.
tensor::ArenaPlan trace_pass(model::Architecture& architecture, const model::WeightSet& weights, const EngineOptions& options, DType activations, PassKind kind, const CacheLayout& layout) {
  std::vector<Sequence> sequences;
  std::int64_t tokens = 0;
  if (kind == PassKind::kDecode) {
    for (std::int64_t s = 0; s < options.slots; ++s) sequences.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(s), 1, 1});
    tokens = options.slots;
  } else {
    // Many sequences in one pass need a row more of some tables than one long one: entries are rounded up for each.
    const std::int64_t count = std::min(options.slots, options.prefill_chunk);
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t share = (options.prefill_chunk - tokens) / (count - s);
      sequences.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(tokens), static_cast<std::int32_t>(share), kind == PassKind::kContinue ? 1 : 0});
      tokens += share;
    }
  }
  meta::MetaOptions meta_options;
  meta_options.activations = activations;
  meta::MetaOps ops(meta_options);
  const auto comm = self::make_self_collectives();
  std::byte* const nowhere = nullptr;
  const model::CacheSet cache = view_cache(architecture.cache(), options, layout, nowhere);
  Batch batch{.tokens = tokens, .sequences = sequences, .sequence_table = {}, .ids = make_tensor(nowhere, DType::i32, {tokens}), .positions = make_tensor(nowhere, DType::i32, {tokens}),
              .output_rows = make_tensor(nowhere, DType::i32, {std::min(tokens, logit_rows(options))})};
  model::Pass pass{.ops = ops, .comm = *comm, .weights = weights, .cache = &cache, .batch = batch};
  { const tensor::Value logits = architecture.forward(pass); }
  pass.rotary.clear();
  pass.shared.clear();
  const meta::Trace trace = ops.take();
  std::vector<tensor::Lifetime> lives;
  std::vector<std::int64_t> index(trace.buffers.size(), -1);
  std::uint32_t clock = 0;
  for (const meta::MemoryEvent& event : trace.events) {
    if (event.allocate) {
      index[event.buffer] = static_cast<std::int64_t>(lives.size());
      lives.push_back({.bytes = aligned(static_cast<Bytes>(trace.buffers[event.buffer].bytes.fixed)), .first = clock, .last = clock});
    } else {
      lives[static_cast<std::size_t>(index[event.buffer])].last = clock;
    }
    ++clock;
  }
  return tensor::plan_arena(lives);
}

std::vector<Tensor> place_constants(const model::Architecture& architecture, std::byte* base, Bytes& used) {
  std::vector<Tensor> tensors;
  for (const std::vector<float>& values : architecture.constants()) {
    if (base != nullptr) std::memcpy(base + used, values.data(), values.size() * sizeof(float));
    tensors.push_back(make_tensor(base == nullptr ? nullptr : base + used, DType::f32, {static_cast<std::int64_t>(values.size())}));
    used += aligned(values.size() * sizeof(float));
  }
  return tensors;
}

Status check_options(const model::Architecture& architecture, const EngineOptions& options) {
  if (!architecture.runnable()) return fail_unsupported("model.v41_not_runnable");
  if (options.context < 1 || options.context > architecture.spec().max_context)
    return fail("engine.context_range", {{"context", std::to_string(options.context)}, {"max", std::to_string(architecture.spec().max_context)}});
  FATHOM_CHECK(options.slots >= 1 && options.prefill_chunk >= options.slots);
  return {};
}

}  // namespace

Result<EnginePlan> plan_engine(model::Architecture& architecture, const weights::WeightPlan& weights, const EngineOptions& options, DType activation_dtype) {
  FATHOM_TRY_VOID(check_options(architecture, options));
  EnginePlan plan;
  Bytes constants = 0;
  architecture.bind_constants(place_constants(architecture, nullptr, constants));
  const model::WeightSet shapes(architecture.weights());
  const CacheLayout layout = lay_out_cache(architecture.cache(), options);
  for (const PassKind kind : {PassKind::kPrefill, PassKind::kContinue, PassKind::kDecode}) {
    tensor::ArenaPlan& arena = plan.arenas[static_cast<std::size_t>(kind)];
    arena = trace_pass(architecture, shapes, options, activation_dtype, kind, layout);
    plan.memory.activations = std::max(plan.memory.activations, arena.total);
    plan.memory.activations_peak = std::max(plan.memory.activations_peak, arena.live_peak);
  }
  plan.memory.weights = weights.tensor_bytes;
  plan.memory.weights_arena = weights.arena_bytes;
  plan.memory.cache = layout.total;
  plan.memory.constants = constants + table_bytes(options);
  return plan;
}

Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(std::unique_ptr<model::Architecture> architecture, std::unique_ptr<tensor::Backend> backend, weights::LoadedWeights weights, const EngineOptions& options) {
  std::unique_ptr<Engine> engine(new Engine());
  engine->options_ = options;
  engine->architecture_ = std::move(architecture);
  engine->backend_ = std::move(backend);
  engine->weights_ = std::move(weights);
  FATHOM_TRY(engine->plan_, plan_engine(*engine->architecture_, engine->weights_.plan, options, engine->backend_->ops().activation_dtype()));
  FATHOM_TRY_VOID(engine->allocate());
  return engine;
}

Status Engine::allocate() {
  const CacheLayout layout = lay_out_cache(architecture_->cache(), options_);
  FATHOM_TRY(cache_memory_, backend_->allocate_buffer(std::max<Bytes>(layout.total, 1)));
  FATHOM_TRY(arena_, backend_->allocate_buffer(std::max<Bytes>(plan_.memory.activations, 1)));
  FATHOM_TRY(constants_, backend_->allocate_buffer(std::max<Bytes>(plan_.memory.constants, 1)));
  if (!backend_->host_addressable()) {
    FATHOM_TRY(staging_, backend_->allocate_buffer(std::max<Bytes>(plan_.memory.constants, 1), tensor::Placement::kShared));
    FATHOM_TRY(logits_, backend_->allocate_buffer(static_cast<Bytes>(logit_rows(options_) * spec().vocabulary) * sizeof(float), tensor::Placement::kShared));
  }
  cache_ = view_cache(architecture_->cache(), options_, layout, cache_memory_->data());
  Bytes used = 0;
  std::vector<Tensor> constants = place_constants(*architecture_, staged(), used);
  if (staging_ != nullptr) FATHOM_TRY_VOID(backend_->upload(constants_->data(), {staging_->data(), used}));
  for (Tensor& constant : constants) constant.data = on_device(constant.data);
  architecture_->bind_constants(std::move(constants));
  tables_ = used;
  const auto table = [&](std::int64_t n) {
    const Tensor t = make_tensor(staged() + used, DType::i32, {n});
    used += aligned(static_cast<Bytes>(n) * 4);
    return t;
  };
  ids_ = table(options_.prefill_chunk);
  positions_ = table(options_.prefill_chunk);
  rows_ = table(logit_rows(options_));
  table_ = table(4 * options_.slots);
  tables_bytes_ = used - tables_;
  lengths_.assign(static_cast<std::size_t>(options_.slots), 0);
  sequences_.reserve(static_cast<std::size_t>(options_.slots));
  plan_.memory.workspace = backend_->workspace_bytes();
  return {};
}

EngineMemory Engine::allocated() const {
  EngineMemory memory = plan_.memory;
  memory.weights_arena = weights_.arena ? weights_.arena->bytes() : 0;
  memory.cache = cache_memory_->bytes();
  memory.activations = arena_->bytes();
  memory.activations_peak = backend_->activations().peak_bytes();
  memory.constants = constants_->bytes();
  memory.workspace = backend_->workspace_bytes();
  return memory;
}

Result<std::int64_t> Engine::check_tokens(std::span<const SlotTokens> tokens) const {
  std::int64_t total = 0;
  for (const SlotTokens& part : tokens) {
    FATHOM_CHECK(part.slot >= 0 && part.slot < options_.slots && !part.ids.empty());
    const auto n = static_cast<std::int64_t>(part.ids.size());
    if (length(part.slot) + n > options_.context)
      return fail("engine.context_full", {{"context", std::to_string(options_.context)}, {"needed", std::to_string(length(part.slot) + n)}, {"max", std::to_string(spec().max_context)}});
    for (const std::int32_t id : part.ids)
      if (id < 0 || id >= spec().vocabulary) return fail("engine.bad_token", {{"id", std::to_string(id)}, {"vocabulary", std::to_string(spec().vocabulary)}});
    total += n;
  }
  FATHOM_CHECK(total >= 1 && total <= options_.prefill_chunk);
  return total;
}

Result<std::span<const float>> Engine::step(std::span<const SlotTokens> tokens, Logits logits) {
  FATHOM_TRY(const std::int64_t total, check_tokens(tokens));
  sequences_.clear();
  std::int32_t at = 0, outputs = 0;
  bool fresh = true;
  for (const SlotTokens& part : tokens) {
    const auto n = static_cast<std::int32_t>(part.ids.size());
    const auto past = static_cast<std::int32_t>(length(part.slot));
    sequences_.push_back({static_cast<std::int32_t>(part.slot), at, n, past});
    fresh = fresh && past == 0;
    for (std::int32_t i = 0; i < n; ++i) {
      ids_.as<std::int32_t>()[at + i] = part.ids[static_cast<std::size_t>(i)];
      positions_.as<std::int32_t>()[at + i] = past + i;
      if (logits == Logits::kAll || (logits == Logits::kLast && i == n - 1)) {
        FATHOM_CHECK(outputs < rows_.dim(0), "more rows of logits than the engine was made for");
        rows_.as<std::int32_t>()[outputs++] = at + i;
      }
    }
    at += n;
  }
  std::memcpy(table_.data, sequences_.data(), sequences_.size() * sizeof(Sequence));
  const auto count = static_cast<std::int64_t>(sequences_.size());
  const PassKind kind = total == count ? PassKind::kDecode : fresh ? PassKind::kPrefill : PassKind::kContinue;
  backend_->activations().use_plan(&plan_.arenas[static_cast<std::size_t>(kind)], arena_->data());
  const auto seen = [&](const Tensor& table, tensor::Shape shape) { return make_tensor(on_device(table.data), DType::i32, shape); };
  const Batch batch{.tokens = total, .sequences = sequences_, .sequence_table = seen(table_, {count, 4}), .ids = seen(ids_, {total}), .positions = seen(positions_, {total}),
                    .output_rows = seen(rows_, {outputs}), .topk_horizon = topk_horizon_};
  const auto comm = self::make_self_collectives();
  model::Pass pass{.ops = backend_->ops(), .comm = *comm, .weights = weights_.set, .cache = &cache_, .batch = batch};
  std::span<const float> answer;
  // A step of decoding launches the same for as many sequences, wherever they are.
  const std::uint64_t key = kind == PassKind::kDecode && topk_horizon_ == 0 ? (static_cast<std::uint64_t>(count) << 32 | static_cast<std::uint64_t>(outputs) << 1 | (fresh ? 1 : 0)) : 0;
  {
    const std::byte* out_data = nullptr;
    FATHOM_TRY(const bool called, backend_->run_pass(key, [&] {
      if (staging_ != nullptr) backend_->copy_in(constants_->data() + tables_, staging_->data() + tables_, tables_bytes_);
      const tensor::Value out = architecture_->forward(pass);
      FATHOM_CHECK(out->dtype == DType::f32 || outputs == 0, "logits are f32");
      out_data = out->data;
    }));
    if (key != 0 && called) outputs_of_[key] = out_data;
    if (!called) out_data = outputs_of_.at(key);
    const auto floats = static_cast<std::size_t>(outputs * spec().vocabulary);
    if (logits_ == nullptr) {
      FATHOM_TRY_VOID(backend_->synchronize());
      answer = {reinterpret_cast<const float*>(out_data), floats};  // the arena's bytes stay until the next pass
    } else {
      FATHOM_TRY_VOID(backend_->download({logits_->data(), floats * sizeof(float)}, out_data));
      answer = {reinterpret_cast<const float*>(logits_->data()), floats};
    }
  }
  for (const SlotTokens& part : tokens) lengths_[static_cast<std::size_t>(part.slot)] += static_cast<std::int64_t>(part.ids.size());
  return answer;
}

Result<std::span<const float>> Engine::prefill(std::int64_t slot, std::span<const std::int32_t> ids) {
  FATHOM_CHECK(!ids.empty());
  // Refuse a prompt that cannot fit before any of it is computed.
  if (length(slot) + static_cast<std::int64_t>(ids.size()) > options_.context)
    return fail("engine.context_full", {{"context", std::to_string(options_.context)}, {"needed", std::to_string(length(slot) + static_cast<std::int64_t>(ids.size()))}, {"max", std::to_string(spec().max_context)}});
  std::span<const float> logits;
  while (!ids.empty()) {
    const std::size_t n = std::min(ids.size(), static_cast<std::size_t>(options_.prefill_chunk));
    const SlotTokens part{slot, ids.first(n)};
    FATHOM_TRY(logits, step(std::span(&part, 1), n == ids.size() ? Logits::kLast : Logits::kNone));
    ids = ids.subspan(n);
  }
  return logits;
}

}  // namespace fathom::engine
