// The engine among other ranks: rank 0 says what to do, the others do the same.
#include <cstring>

#include "engine/engine.h"
#include "engine/engine_parts.h"
#include "engine/engine_share.h"
#include "engine/fault.h"

namespace fathom::engine {
namespace {

/// What the others shall do, as it is sent: this, then a Part each, what is asked, bits of seen tokens, then all ids.
struct Header {
  std::uint32_t order = 0;  // Engine::Order
  std::uint32_t logits = 0;
  std::int64_t parts = 0, asked = 0, seen = 0, topk_horizon = 0;
};
struct Part {
  std::int64_t slot = 0, past = 0, tokens = 0;
};

template <class T>
void append(std::vector<std::byte>& out, const T* values, std::size_t count) {
  const auto bytes = std::as_bytes(std::span(values, count));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <class T>
void take(std::span<const std::byte>& in, T* values, std::size_t count) {
  FATHOM_CHECK(in.size() >= count * sizeof(T), "a command that is cut off");
  if (count == 0) return;  // nothing may have no address
  std::memcpy(static_cast<void*>(values), in.data(), count * sizeof(T));
  in = in.subspan(count * sizeof(T));
}

}  // namespace

void let_go(tensor::Transport& transport) {
  std::vector<std::byte> bytes;
  const Header header{.order = static_cast<std::uint32_t>(Engine::Order::kLetGo)};
  append(bytes, &header, 1);
  if (!transport.failure()) static_cast<void>(tensor::broadcast(transport, bytes));
}

// All ranks have what they need, or all know of the first that has not; then they meet on their devices.
Status Engine::join_ranks(Status mine) {
  tensor::Transport& transport = *seat_.transport;
  FATHOM_TRY_VOID(tensor::agree(transport, mine));
  auto comm = backend_->make_collectives(seat_.transport, groups_of(seat_.spread, seat_.rank));
  FATHOM_TRY_VOID(tensor::agree(transport, comm ? Status() : Status(tl::unexpected<Error>(comm.error()))));
  comm_ = std::move(*comm);
  plan_.memory.workspace = backend_->workspace_bytes();  // with what the collectives take
  const RankMemory memory{planned(), allocated()};
  static_assert(std::is_trivially_copyable_v<RankMemory>);
  std::vector<std::byte> bytes;
  append(bytes, &memory, 1);
  FATHOM_TRY(const auto all, tensor::gather(transport, std::move(bytes)));
  for (std::span<const std::byte> one : all) take(one, &ranks_.emplace_back(), 1);
  return {};
}

Status Engine::command(Order order, std::span<const SlotTokens> tokens, Logits logits,
                       std::span<const tensor::SamplingRow> asked, std::span<const std::uint32_t> seen) {
  if (const auto failure = seat_.transport->failure()) return tl::unexpected<Error>(*failure);
  std::vector<std::byte> bytes;
  const Header header{.order = static_cast<std::uint32_t>(order),
                      .logits = static_cast<std::uint32_t>(logits),
                      .parts = std::ssize(tokens),
                      .asked = std::ssize(asked),
                      .seen = std::ssize(seen),
                      .topk_horizon = topk_horizon_};
  append(bytes, &header, 1);
  for (const SlotTokens& tokens_of : tokens) {
    const Part part{tokens_of.slot, length(tokens_of.slot), static_cast<std::int64_t>(tokens_of.ids.size())};
    append(bytes, &part, 1);
  }
  append(bytes, asked.data(), asked.size());
  append(bytes, seen.data(), seen.size());
  for (const SlotTokens& tokens_of : tokens) append(bytes, tokens_of.ids.data(), tokens_of.ids.size());
  return tensor::broadcast(*seat_.transport, bytes);
}

Status Engine::follow() {
  std::vector<std::byte> bytes;
  for (;;) {
    FATHOM_TRY_VOID(tensor::broadcast(*seat_.transport, bytes));
    FATHOM_TRY(const bool more, obey(bytes));
    if (!more) return {};
  }
}

Result<bool> Engine::obey(std::span<const std::byte> in) {
  Header header;
  take(in, &header, 1);
  topk_horizon_ = header.topk_horizon;
  const auto logits = static_cast<Logits>(header.logits);
  std::vector<Part> parts(static_cast<std::size_t>(header.parts));
  std::vector<tensor::SamplingRow> asked(static_cast<std::size_t>(header.asked));
  std::vector<std::uint32_t> seen(static_cast<std::size_t>(header.seen));
  take(in, parts.data(), parts.size());
  take(in, asked.data(), asked.size());
  take(in, seen.data(), seen.size());
  std::vector<std::int32_t> ids(in.size() / sizeof(std::int32_t));
  take(in, ids.data(), ids.size());
  std::vector<SlotTokens> tokens;
  std::size_t at = 0;
  for (const Part& part : parts) {
    lengths_[static_cast<std::size_t>(part.slot)] = part.past;
    tokens.push_back({part.slot, std::span(ids).subspan(at, static_cast<std::size_t>(part.tokens))});
    at += static_cast<std::size_t>(part.tokens);
  }
  switch (static_cast<Order>(header.order)) {
    case Order::kLetGo:
      return false;
    case Order::kStep:
      FATHOM_TRY_VOID(pass(tokens, logits));
      break;
    case Order::kBegin:
      FATHOM_TRY_VOID(begin_pass(tokens, asked, true));
      break;
    case Order::kBeginNext:
      FATHOM_TRY_VOID(begin_next_pass(asked));
      break;
    case Order::kTake:
      FATHOM_TRY_VOID(take_pass());
      break;
    case Order::kHistory:
      FATHOM_TRY_VOID(write_history(parts[0].slot, seen));
      break;
  }
  return true;
}

std::span<const float> Engine::in_order(std::span<const float> logits, const std::vector<std::int64_t>& order) {
  if (order.empty() || logits.empty()) return logits;
  const auto width = static_cast<std::size_t>(spec().vocabulary);
  ordered_.resize(logits.size());
  for (std::size_t row = 0; row < order.size(); ++row)
    std::memcpy(ordered_.data() + row * width, logits.data() + static_cast<std::size_t>(order[row]) * width,
                width * sizeof(float));
  return ordered_;
}

}  // namespace fathom::engine
