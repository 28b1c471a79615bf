#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "text/byte_level.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr std::size_t kFewSymbols = 64;  // up to here plain scanning beats a heap

std::uint64_t rank_of(std::uint64_t merge) { return merge >> 32; }
std::int32_t joined_of(std::uint64_t merge) { return static_cast<std::int32_t>(merge & 0xffffffffu); }

}  // namespace

Result<Bpe> Bpe::make(Vocabulary vocabulary, BpeOptions options) {
  Bpe bpe;
  bpe.vocabulary_ = std::move(vocabulary);
  bpe.options_ = std::move(options);
  const Vocabulary& vocab = bpe.vocabulary_;
  if (bpe.options_.unk_token) {
    const auto id = vocab.find(*bpe.options_.unk_token);
    if (!id) return fail("text.unk_not_in_vocab", {{"token", printable(*bpe.options_.unk_token)}});
    bpe.unk_id_ = *id;
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    std::string letter;
    append_utf8(letter, byte_letters()[byte]);
    bpe.letter_ids_[byte] = vocab.find(letter).value_or(-1);
    bpe.fallback_ids_[byte] = vocab.find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
  if (bpe.options_.pieces_are_bytes) {
    bpe.spelled_.reserve(vocab.size(), vocab.size() * 8);
    for (std::int32_t id = 0; id < vocab.id_end(); ++id) {
      const auto token = vocab.token(id);
      const auto bytes = token ? bytes_of_letters(*token) : std::nullopt;
      if (!bytes) continue;
      bool fresh = false;
      bpe.spelled_.insert(*bytes, fresh);
      if (fresh) bpe.spelled_ids_.push_back(id);
    }
  }
  bpe.proofs_ = std::make_unique<std::atomic<std::uint8_t>[]>(static_cast<std::uint32_t>(vocab.id_end()));
  return bpe;
}

Status Bpe::add_merge(std::string_view left, std::string_view right) {
  const auto left_id = vocabulary_.find(left), right_id = vocabulary_.find(right);
  std::string joined(left);
  joined += right;
  const auto joined_id = vocabulary_.find(joined);
  if (!left_id || !right_id || !joined_id)
    return fail("text.merge_not_in_vocab", {{"left", printable(left)},
                                            {"right", printable(right)},
                                            {"token", printable(!left_id    ? left
                                                                : !right_id ? right
                                                                            : std::string_view(joined))}});
  if (left.empty() || right.empty())
    return fail("text.merge_empty", {{"left", printable(left)}, {"right", printable(right)}});
  merges_.set(static_cast<std::uint64_t>(*left_id) << 32 | static_cast<std::uint32_t>(*right_id),
              static_cast<std::uint64_t>(rank_++) << 32 | static_cast<std::uint32_t>(*joined_id));
  return {};
}

std::optional<std::int32_t> Bpe::whole(std::string_view piece) const {
  if (!options_.pieces_are_bytes) return vocabulary_.find(piece);
  const std::uint32_t index = spelled_.find(piece);
  if (index == StringTable::kNone) return std::nullopt;
  return spelled_ids_[index];
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  if (piece.empty()) return;
  const auto token = whole(piece);
  std::atomic<std::uint8_t>* proof = token ? &proofs_[static_cast<std::size_t>(*token)] : nullptr;
  if (token && (options_.ignore_merges || proof->load(std::memory_order_relaxed) == kIsItself)) {
    out.push_back(*token);
    return;
  }
  scratch.ids.clear();
  first_symbols(piece, scratch.ids);
  if (scratch.ids.size() <= kFewSymbols)
    join_few(scratch.ids);
  else
    join_many(scratch);
  out.insert(out.end(), scratch.ids.begin(), scratch.ids.end());
  if (proof != nullptr && proof->load(std::memory_order_relaxed) == kUnknown)
    proof->store(scratch.ids.size() == 1 && scratch.ids[0] == *token ? kIsItself : kIsNot, std::memory_order_relaxed);
}

// The ids of the piece's characters, before any merge.
void Bpe::first_symbols(std::string_view piece, std::vector<std::int32_t>& ids) const {
  bool unk_pending = false;
  const auto flush_unk = [&] {
    if (unk_pending) ids.push_back(unk_id_);
    unk_pending = false;
  };
  const auto missing = [&](std::string_view character) {
    if (options_.byte_fallback && std::all_of(character.begin(), character.end(), [&](char c) {
          return fallback_ids_[static_cast<unsigned char>(c)] >= 0;
        })) {
      for (const char c : character) ids.push_back(fallback_ids_[static_cast<unsigned char>(c)]);
      return;  // a pending unknown stays pending: it comes after these bytes, as in the original
    }
    if (unk_id_ < 0) return;
    if (!options_.fuse_unk) flush_unk();
    unk_pending = true;
  };
  for (std::size_t i = 0; i < piece.size();) {
    if (options_.pieces_are_bytes) {
      const auto byte = static_cast<unsigned char>(piece[i++]);
      if (letter_ids_[byte] >= 0) {
        flush_unk();
        ids.push_back(letter_ids_[byte]);
      } else {
        std::string letter;
        append_utf8(letter, byte_letters()[byte]);
        missing(letter);
      }
      continue;
    }
    const std::size_t start = i;
    static_cast<void>(next_char(piece, i));
    const std::string_view character = piece.substr(start, i - start);
    if (const auto id = vocabulary_.find(character)) {
      flush_unk();
      ids.push_back(*id);
    } else {
      missing(character);
    }
  }
  flush_unk();
}

// At most kFewSymbols ids, joined in place: quadratic, but in registers and first-level cache.
void Bpe::join_few(std::vector<std::int32_t>& ids) const {
  constexpr std::uint64_t kNever = ~std::uint64_t{0};
  std::uint64_t merges[kFewSymbols];  // merges[i] joins ids[i] and ids[i + 1]
  std::size_t n = ids.size();
  const auto look = [&](std::size_t i) {
    const std::uint64_t* merge = merge_of(ids[i], ids[i + 1]);
    merges[i] = merge != nullptr ? *merge : kNever;
  };
  for (std::size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i)
      if (rank_of(merges[i]) < rank_of(merges[best])) best = i;
    if (merges[best] == kNever) break;
    ids[best] = joined_of(merges[best]);
    for (std::size_t i = best + 1; i + 1 < n; ++i) {
      ids[i] = ids[i + 1];
      merges[i - 1] = merges[i];
    }
    --n;
    if (best + 1 < n) look(best);
    if (best > 0) look(best - 1);
  }
  ids.resize(n);
}

// Any number of ids: a linked list and a heap of candidate merges, stale ones dropped when they surface.
void Bpe::join_many(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  const auto n = static_cast<std::uint32_t>(scratch.ids.size());
  symbols.resize(n);
  heap.clear();
  for (std::uint32_t i = 0; i < n; ++i) symbols[i] = {scratch.ids[i], i - 1, i + 1, 1};
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) { return a.order > b.order; };
  const auto pair_at = [&](std::uint32_t i) {
    return static_cast<std::uint64_t>(symbols[i].id) << 32 | static_cast<std::uint32_t>(symbols[symbols[i].next].id);
  };
  const auto consider = [&](std::uint32_t i) {
    const std::uint64_t pair = pair_at(i);
    if (const std::uint64_t* merge = merges_.find(pair))
      heap.push_back({rank_of(*merge) << 32 | i, pair, *merge});
    else
      return false;
    return true;
  };
  for (std::uint32_t i = 0; i + 1 < n; ++i) consider(i);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Scratch::Candidate top = heap.back();
    heap.pop_back();
    const auto i = static_cast<std::uint32_t>(top.order & 0xffffffffu);
    if (symbols[i].length == 0 || symbols[i].next >= n || pair_at(i) != top.pair) continue;
    const std::uint32_t right = symbols[i].next;
    symbols[i].id = joined_of(top.joined);
    symbols[i].next = symbols[right].next;
    symbols[right].length = 0;
    if (symbols[i].next < n) {
      symbols[symbols[i].next].prev = i;
      if (consider(i)) std::push_heap(heap.begin(), heap.end(), later);
    }
    if (i > 0 && consider(symbols[i].prev)) std::push_heap(heap.begin(), heap.end(), later);
  }
  scratch.ids.clear();
  for (std::uint32_t i = 0; i < n; i = symbols[i].next) scratch.ids.push_back(symbols[i].id);
}

}  // namespace fathom::text
