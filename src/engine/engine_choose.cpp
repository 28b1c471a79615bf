// The engine where tokens are chosen on the device: passes begin one ahead of those that the host has heard of.
#include <array>

#include "engine/engine.h"
#include "engine/engine_parts.h"
#include "engine/engine_share.h"

namespace fathom::engine {
using tensor::SamplingRow;

namespace {
Bytes seen_words(std::int64_t vocabulary) { return static_cast<Bytes>(vocabulary + 31) / 32; }
}  // namespace

std::int32_t* Engine::chosen_in(std::uint64_t pass) const {
  return reinterpret_cast<std::int32_t*>(ids_chosen_->data()) +
         pass % kMostBegun * static_cast<std::uint64_t>(logit_rows(options_));
}

Status Engine::set_up_choosing() {
  if (!chooses_tokens(seat_.spread, seat_.rank) || !backend_->sample({})) {
    plan_.memory.sampling = 0;
    return {};
  }
  const Bytes bytes = kMostBegun * static_cast<Bytes>(logit_rows(options_)) * sizeof(std::int32_t);
  FATHOM_TRY(ids_chosen_, backend_->allocate_buffer(bytes, tensor::Placement::kShared));
  FATHOM_TRY(seen_, backend_->allocate_buffer(plan_.memory.sampling));
  plan_.memory.host += bytes;
  return {};
}

Status Engine::begin(std::span<const SlotTokens> tokens, std::span<const SamplingRow> asked) {
  FATHOM_CHECK(chooses() && asked.size() == tokens.size() && !tokens.empty());
  FATHOM_TRY_VOID(check_tokens(tokens));
  FATHOM_TRY_VOID(finish_begun());
  if (!seat_.alone()) FATHOM_TRY_VOID(command(Order::kBegin, tokens, Logits::kLast, asked));
  return begin_pass(tokens, asked, true);
}

Status Engine::begin_text(std::int64_t slot, std::span<const std::int32_t> ids, const SamplingRow& asked) {
  FATHOM_TRY_VOID(check_room(slot, ids.size()));
  while (std::ssize(ids) > options_.prefill_chunk) {
    const SlotTokens part{slot, ids.first(static_cast<std::size_t>(options_.prefill_chunk))};
    FATHOM_TRY_VOID(step(std::span(&part, 1), Logits::kNone));
    ids = ids.subspan(part.ids.size());
  }
  const SlotTokens last{slot, ids};
  return begin(std::span(&last, 1), std::span(&asked, 1));
}

Status Engine::begin_next(std::span<const SamplingRow> asked) {
  FATHOM_CHECK(continues() && begun_ > 0 && begun_ - taken_ < kMostBegun && asked.size() == begun_slots_.size());
  for (const std::int64_t slot : begun_slots_) FATHOM_TRY_VOID(check_room(slot, 1));
  if (!seat_.alone()) FATHOM_TRY_VOID(command(Order::kBeginNext, {}, Logits::kLast, asked));
  return begin_next_pass(asked);
}

Status Engine::begin_next_pass(std::span<const SamplingRow> asked) {
  static constexpr std::int32_t kUnknown = 0;  // the device knows
  std::vector<SlotTokens> tokens;
  for (const std::int64_t slot : begun_slots_) tokens.push_back({slot, std::span(&kUnknown, 1)});
  return begin_pass(tokens, asked, false);
}

Status Engine::begin_pass(std::span<const SlotTokens> tokens, std::span<const SamplingRow> asked, bool fed) {
  const Share share = take_share(tokens, Logits::kLast);
  if (fed) feed(tokens, Logits::kLast);
  FATHOM_TRY(const std::byte* const logits, told(launch(share, fed)));
  count(tokens);
  if (fed) {
    begun_slots_.clear();
    for (const SlotTokens& part : tokens) begun_slots_.push_back(part.slot);
  }
  if (chooses()) launch_choice(logits, asked, share);
  backend_->remember(static_cast<int>(begun_ % kMostBegun));
  under_way_[begun_++ % kMostBegun] = {.rows = asked.size(), .order = share.order};
  return {};
}

// The rows of logits lie replica after replica; what is asked and answered has the caller's order.
void Engine::launch_choice(const std::byte* logits, std::span<const SamplingRow> asked, const Share& share) {
  FATHOM_CHECK(static_cast<std::int64_t>(asked.size()) == share.all_rows, "a row of logits for each that is asked for");
  std::vector<SamplingRow> rows(asked.size());
  for (std::size_t i = 0; i < asked.size(); ++i) {
    SamplingRow& row = rows[share.order.empty() ? i : static_cast<std::size_t>(share.order[i])];
    row = asked[i];
    row.seen = begun_slots_[i];
  }
  tensor::NextPass next;
  if (continues())
    next = {.sequences = reinterpret_cast<tensor::Sequence*>(on_device(table_.data)),
            .ids = reinterpret_cast<std::int32_t*>(on_device(ids_.data)),
            .positions = reinterpret_cast<std::int32_t*>(on_device(positions_.data)),
            .wanted = reinterpret_cast<std::int32_t*>(on_device(rows_.data))};
  backend_->sample({.logits = reinterpret_cast<const float*>(logits),
                    .rows = share.all_rows,
                    .vocabulary = spec().vocabulary,
                    .asked = rows.data(),
                    .seen = reinterpret_cast<std::uint32_t*>(seen_->data()),
                    .ids = chosen_in(begun_),
                    .next = next});
}

Result<std::span<const std::int32_t>> Engine::take_chosen() {
  FATHOM_CHECK(chooses() && taken_ < begun_);
  if (!seat_.alone()) FATHOM_TRY_VOID(command(Order::kTake, {}, Logits::kNone));
  FATHOM_TRY_VOID(take_pass());
  return std::span<const std::int32_t>(chosen_);
}

Status Engine::take_pass() {
  const std::uint64_t pass = taken_++;
  FATHOM_TRY_VOID(told(backend_->await_moment(static_cast<int>(pass % kMostBegun))));
  FATHOM_TRY_VOID(told(comm_->status()));
  if (!chooses()) return {};
  const Begun& begun = under_way_[pass % kMostBegun];
  const std::int32_t* const ids = chosen_in(pass);
  chosen_.resize(begun.rows);
  for (std::size_t i = 0; i < begun.rows; ++i)
    chosen_[i] = ids[begun.order.empty() ? i : static_cast<std::size_t>(begun.order[i])];
  return {};
}

Status Engine::finish_begun() {
  while (taken_ < begun_) FATHOM_TRY_VOID(take_chosen());
  return {};
}

Status Engine::set_history(std::int64_t slot, std::span<const std::uint32_t> seen) {
  FATHOM_CHECK(chooses() && seen.size() == seen_words(spec().vocabulary));
  FATHOM_TRY_VOID(finish_begun());
  if (!seat_.alone())
    FATHOM_TRY_VOID(command(Order::kHistory, std::array{SlotTokens{slot, {}}}, Logits::kNone, {}, seen));
  return write_history(slot, seen);
}

Status Engine::write_history(std::int64_t slot, std::span<const std::uint32_t> seen) {
  if (!chooses()) return {};
  return told(backend_->upload(seen_->data() + static_cast<Bytes>(slot) * seen.size_bytes(), std::as_bytes(seen)));
}

}  // namespace fathom::engine
