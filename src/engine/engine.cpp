#include "engine/engine.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backends/self/self_collectives.h"
#include "engine/engine_parts.h"
#include "engine/engine_share.h"
#include "engine/fault.h"

namespace fathom::engine {
using tensor::Batch;
using tensor::make_tensor;
using tensor::Sequence;
using tensor::Tensor;

Engine::~Engine() {
  if (!seat_.alone() && seat_.rank == 0 && seat_.transport != nullptr) let_go(*seat_.transport);
  // First of all: memory cannot be given back while passes wait for ranks that failed, and this ends their waiting.
  comm_.reset();
}

Result<std::unique_ptr<Engine>> Engine::create(std::unique_ptr<model::Architecture> architecture,
                                               std::unique_ptr<tensor::Backend> backend, weights::LoadedWeights weights,
                                               const EngineOptions& options, Seat seat, OffloadOptions offload) {
  std::unique_ptr<Engine> engine(new Engine());
  engine->options_ = options;
  engine->local_ = local_options(options, seat.spread);
  engine->seat_ = std::move(seat);
  engine->architecture_ = std::move(architecture);
  engine->backend_ = std::move(backend);
  engine->weights_ = std::move(weights);
  engine->offload_options_ = std::move(offload);
  if (engine->seat_.alone()) {
    engine->comm_ = self::make_self_collectives();
    FATHOM_TRY_VOID(engine->prepare());
  } else {
    FATHOM_TRY_VOID(engine->join_ranks(engine->prepare()));
  }
  return engine;
}

Status Engine::prepare() {
  FATHOM_TRY_VOID(inject_fault_at_start(seat_.rank));
  FATHOM_TRY(plan_, plan_engine(*architecture_, weights_.plan, options_, backend_->ops().activation_dtype(),
                                seat_.spread, seat_.rank));
  return allocate();
}

Status Engine::allocate() {
  const CacheLayout layout = lay_out_cache(architecture_->cache(), local_);
  FATHOM_TRY(cache_memory_, backend_->allocate_buffer(std::max<Bytes>(layout.total, 1)));
  FATHOM_TRY(arena_, backend_->allocate_buffer(std::max<Bytes>(plan_.memory.activations, 1)));
  FATHOM_TRY(constants_, backend_->allocate_buffer(std::max<Bytes>(plan_.memory.constants, 1)));
  if (!backend_->host_addressable()) {
    FATHOM_TRY(staging_,
               backend_->allocate_buffer(std::max<Bytes>(plan_.memory.constants, 1), tensor::Placement::kShared));
    if (seat_.rank == 0) {
      FATHOM_TRY(logits_,
                 backend_->allocate_buffer(static_cast<Bytes>(logit_rows(options_) * spec().vocabulary) * sizeof(float),
                                           tensor::Placement::kShared));
    }
  }
  cache_ = view_cache(architecture_->cache(), local_, layout, cache_memory_->data());
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
  rows_ = table(logit_rows(local_));
  table_ = table(4 * local_.slots);
  tables_bytes_ = used - tables_;
  lengths_.assign(static_cast<std::size_t>(options_.slots), 0);
  sequences_.reserve(static_cast<std::size_t>(local_.slots));
  plan_.memory.workspace = backend_->workspace_bytes();
  if (staging_ != nullptr) plan_.memory.host += std::max<Bytes>(plan_.memory.constants, 1);
  if (logits_ != nullptr)
    plan_.memory.host += static_cast<Bytes>(logit_rows(options_) * spec().vocabulary) * sizeof(float);
  FATHOM_TRY_VOID(set_up_choosing());
  return set_up_offload();
}

Status Engine::set_up_offload() {
  if (weights_.plan.residence.units.empty()) return {};
  HostHandover handover;
  if (offload_options_.host != nullptr) {
    // The experts of a rank see the tokens of all replicas.
    handover = {.tokens = weights_.plan.residence.places > 0
                              ? std::min(offload_options_.host_tokens, options_.prefill_chunk)
                              : options_.prefill_chunk,
                .hidden = spec().hidden,
                .top_k = spec().routing.top_k};
    offload_options_.host_tokens = handover.tokens;
    FATHOM_TRY(handover_, backend_->allocate_buffer(std::max<Bytes>(handover.bytes(), 1), tensor::Placement::kShared));
    plan_.memory.host += std::max<Bytes>(handover.bytes(), 1) + offload_options_.host->workspace_bytes();
  }
  offload_ = std::make_unique<OffloadOps>(*backend_, architecture_->weights(), weights_, offload_options_, handover,
                                          handover_ != nullptr ? handover_->data() : nullptr);
  return {};
}

EngineMemory Engine::allocated() const {
  EngineMemory memory = plan_.memory;
  const auto bytes = [](const std::unique_ptr<tensor::Buffer>& buffer) {
    return buffer != nullptr ? buffer->bytes() : 0;
  };
  memory.weights_arena = bytes(weights_.arena);
  memory.ring = bytes(weights_.ring);
  memory.sampling = bytes(seen_);
  memory.host =
      bytes(weights_.host) + bytes(staging_) + bytes(logits_) + bytes(handover_) + bytes(ids_chosen_) +
      (offload_options_.host != nullptr && offload_ != nullptr ? offload_options_.host->workspace_bytes() : 0);
  memory.cache = cache_memory_->bytes();
  memory.activations = arena_->bytes();
  memory.activations_peak = backend_->activations().peak_bytes();
  memory.constants = constants_->bytes();
  memory.workspace = backend_->workspace_bytes();
  return memory;
}

Status Engine::check_tokens(std::span<const SlotTokens> tokens) const {
  std::int64_t total = 0;
  for (const SlotTokens& part : tokens) {
    FATHOM_CHECK(part.slot >= 0 && part.slot < options_.slots && !part.ids.empty());
    const auto n = static_cast<std::int64_t>(part.ids.size());
    if (length(part.slot) + n > options_.context)
      return fail("engine.context_full", {{"context", std::to_string(options_.context)},
                                          {"needed", std::to_string(length(part.slot) + n)},
                                          {"max", std::to_string(spec().max_context)}});
    for (const std::int32_t id : part.ids)
      if (id < 0 || id >= spec().vocabulary)
        return fail("engine.bad_token",
                    {{"id", std::to_string(id)}, {"vocabulary", std::to_string(spec().vocabulary)}});
    total += n;
  }
  FATHOM_CHECK(total >= 1 && total <= options_.prefill_chunk);
  return {};
}

Result<std::span<const float>> Engine::step(std::span<const SlotTokens> tokens, Logits logits) {
  FATHOM_TRY_VOID(check_tokens(tokens));
  FATHOM_TRY_VOID(finish_begun());
  if (!seat_.alone()) FATHOM_TRY_VOID(command(Order::kStep, tokens, logits));
  return pass(tokens, logits);
}

namespace {
std::int32_t rows_wanted(const SlotTokens& part, Logits logits) {
  const auto n = static_cast<std::int32_t>(part.ids.size());
  return logits == Logits::kAll ? n : logits == Logits::kLast ? 1 : 0;
}
}  // namespace

Engine::Share Engine::take_share(std::span<const SlotTokens> tokens, Logits logits) {
  const auto replicas = static_cast<std::size_t>(seat_.spread.dp),
             mine = static_cast<std::size_t>(seat_.spread.replica(seat_.rank));
  Share share{.tokens = std::vector<std::int64_t>(replicas), .rows = std::vector<std::int64_t>(replicas), .order = {}};
  std::vector<std::pair<std::size_t, std::int64_t>> places;  // replica, row there
  bool all_decode = true;
  sequences_.clear();
  for (const SlotTokens& part : tokens) {
    const auto replica = static_cast<std::size_t>(part.slot) % replicas;
    const auto n = static_cast<std::int32_t>(part.ids.size()), past = static_cast<std::int32_t>(length(part.slot)),
               at = static_cast<std::int32_t>(share.tokens[replica]);
    const std::int32_t wanted = rows_wanted(part, logits);
    all_decode = all_decode && n == 1;
    if (replicas > 1)
      for (std::int32_t i = 0; i < wanted; ++i) places.emplace_back(replica, share.rows[replica] + i);
    if (replica == mine) {
      sequences_.push_back({static_cast<std::int32_t>(static_cast<std::size_t>(part.slot) / replicas), at, n, past});
      share.fresh = share.fresh && past == 0;
    }
    share.tokens[replica] += n;
    share.rows[replica] += wanted;
  }
  share.own_tokens = share.tokens[mine];
  share.own_rows = share.rows[mine];
  FATHOM_CHECK(share.own_rows <= rows_.dim(0), "more rows of logits than the engine was made for");
  std::vector<std::int64_t> first(replicas);
  for (std::size_t r = 0; r < replicas; ++r) {
    first[r] = share.all_rows;
    share.all_rows += share.rows[r];
  }
  for (const auto& [replica, row] : places) share.order.push_back(first[replica] + row);
  const auto count = static_cast<std::int64_t>(sequences_.size());
  // What is decoded beside another replica's prompt has that one's tokens among its experts': the arena for many tokens
  // is laid out alike.
  share.kind = share.own_tokens == count ? (all_decode ? PassKind::kDecode : PassKind::kContinue)
               : share.fresh             ? PassKind::kPrefill
                                         : PassKind::kContinue;
  // A step of decoding launches the same for as many sequences, wherever they are.
  const bool even =
      std::all_of(share.tokens.begin(), share.tokens.end(), [&](std::int64_t n) { return n == share.own_tokens; }) &&
      std::all_of(share.rows.begin(), share.rows.end(), [&](std::int64_t n) { return n == share.own_rows; });
  const std::int64_t together = std::accumulate(share.tokens.begin(), share.tokens.end(), std::int64_t{0});
  if (share.kind == PassKind::kDecode && topk_horizon_ == 0 && even &&
      (offload_ == nullptr || !offload_->streams(together)))
    share.key = static_cast<std::uint64_t>(count) << 32 | static_cast<std::uint64_t>(share.own_rows) << 1 |
                (share.fresh ? 1 : 0);
  return share;
}

// Writes what take_share found to where the device reads it.
void Engine::feed(std::span<const SlotTokens> tokens, Logits logits) {
  const auto replicas = static_cast<std::size_t>(seat_.spread.dp),
             mine = static_cast<std::size_t>(seat_.spread.replica(seat_.rank));
  std::int32_t at = 0, row = 0;
  for (const SlotTokens& part : tokens) {
    if (static_cast<std::size_t>(part.slot) % replicas != mine) continue;
    const auto n = static_cast<std::int32_t>(part.ids.size()), past = static_cast<std::int32_t>(length(part.slot));
    for (std::int32_t i = 0; i < n; ++i) {
      ids_.as<std::int32_t>()[at + i] = part.ids[static_cast<std::size_t>(i)];
      positions_.as<std::int32_t>()[at + i] = past + i;
    }
    for (std::int32_t i = n - rows_wanted(part, logits); i < n; ++i) rows_.as<std::int32_t>()[row++] = at + i;
    at += n;
  }
  std::memcpy(table_.data, sequences_.data(), sequences_.size() * sizeof(Sequence));
}

void Engine::count(std::span<const SlotTokens> tokens) {
  for (const SlotTokens& part : tokens)
    lengths_[static_cast<std::size_t>(part.slot)] += static_cast<std::int64_t>(part.ids.size());
}

Result<std::span<const float>> Engine::pass(std::span<const SlotTokens> tokens, Logits logits) {
  const Share share = take_share(tokens, logits);
  feed(tokens, logits);
  begun_slots_.clear();  // nothing can go on with what an earlier pass left
  FATHOM_TRY(const std::byte* const out, told(launch(share, true)));
  FATHOM_TRY(const auto answer, told(read_logits(out, share)));
  count(tokens);
  return in_order(answer, share.order);
}

// `fed`: the host filled the tables; if not, the device did when it chose.
Result<const std::byte*> Engine::launch(const Share& share, bool fed) {
  FATHOM_TRY_VOID(inject_fault(seat_, passes_++, *backend_));
  const auto count = static_cast<std::int64_t>(sequences_.size());
  backend_->activations().use_plan(&plan_.arenas[static_cast<std::size_t>(share.kind)], arena_->data());
  const auto seen = [&](const Tensor& table, tensor::Shape shape) {
    return make_tensor(on_device(table.data), DType::i32, shape);
  };
  const Batch batch{.tokens = share.own_tokens,
                    .sequences = sequences_,
                    .sequence_table = seen(table_, {count, 4}),
                    .ids = seen(ids_, {share.own_tokens}),
                    .positions = seen(positions_, {share.own_tokens}),
                    .output_rows = seen(rows_, {share.own_rows}),
                    .topk_horizon = topk_horizon_};
  tensor::Ops& ops = offload_ != nullptr ? *offload_ : backend_->ops();
  model::Pass pass{.ops = ops,
                   .comm = *comm_,
                   .weights = weights_.set,
                   .cache = &cache_,
                   .batch = batch,
                   .replica_tokens = share.tokens};
  const std::byte* out_data = nullptr;
  if (fed && staging_ != nullptr)
    backend_->copy_in(constants_->data() + tables_, staging_->data() + tables_, tables_bytes_);
  FATHOM_TRY(const bool called, backend_->run_pass(share.key, [&] {
    const tensor::Value out = collect_logits(pass, architecture_->forward(pass), spec().vocabulary, share.rows);
    FATHOM_CHECK(!out.defined() || out->dtype == DType::f32 || share.all_rows == 0, "logits are f32");
    if (offload_ != nullptr) offload_->end_pass();
    out_data = out->data;
  }));
  if (share.key != 0 && called) outputs_of_[share.key] = out_data;
  if (!called) out_data = outputs_of_.at(share.key);
  return out_data;
}

Result<std::span<const float>> Engine::read_logits(const std::byte* logits, const Share& share) {
  const auto floats = static_cast<std::size_t>(seat_.rank == 0 ? share.all_rows * spec().vocabulary : 0);
  std::span<const float> answer;
  if (logits_ == nullptr || floats == 0) {
    FATHOM_TRY_VOID(backend_->synchronize());
    answer = {reinterpret_cast<const float*>(logits), floats};  // the arena's bytes stay until the next pass
  } else {
    FATHOM_TRY_VOID(backend_->download({logits_->data(), floats * sizeof(float)}, logits));
    answer = {reinterpret_cast<const float*>(logits_->data()), floats};
  }
  FATHOM_TRY_VOID(comm_->status());
  return answer;
}

// Refuse a prompt that cannot fit before any of it is computed.
Status Engine::check_room(std::int64_t slot, std::size_t tokens) const {
  FATHOM_CHECK(tokens > 0);
  const std::int64_t needed = length(slot) + static_cast<std::int64_t>(tokens);
  if (needed <= options_.context) return {};
  return fail("engine.context_full", {{"context", std::to_string(options_.context)},
                                      {"needed", std::to_string(needed)},
                                      {"max", std::to_string(spec().max_context)}});
}

Result<std::span<const float>> Engine::prefill(std::int64_t slot, std::span<const std::int32_t> ids) {
  FATHOM_TRY_VOID(check_room(slot, ids.size()));
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
