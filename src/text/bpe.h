// Byte-pair encoding of one piece of text: start from its characters, join the pair of lowest rank until none is left.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/flat_table.h"
#include "text/vocabulary.h"

namespace fathom::text {

struct BpeOptions {
  std::optional<std::string> unk_token;  // stands for a character without a token; such characters vanish when absent
  bool fuse_unk = false;                 // neighbouring unknown characters become one unk_token
  bool byte_fallback = false;            // a character without a token becomes its bytes' tokens <0x00> to <0xFF>
  bool ignore_merges = false;            // a piece that is a token is that token, whatever the merges say
  bool pieces_are_bytes = false;         // pieces come as raw bytes, the vocabulary spells them in GPT-2's letters
};

class Bpe {
 public:
  /// Working space of encode(); one a thread, reused.
  struct Scratch {
    struct Symbol {
      std::int32_t id;
      std::uint32_t prev, next, length;  // length 0: joined into its left neighbour
    };
    struct Candidate {
      std::uint64_t order;  // rank above position: the heap's key
      std::uint64_t pair, joined;
    };
    std::vector<std::int32_t> ids;
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  Bpe() = default;
  /// Errors: text.unk_not_in_vocab.
  static Result<Bpe> make(Vocabulary vocabulary, BpeOptions options);
  void reserve_merges(std::size_t merges) { merges_.reserve(merges); }
  /// The next merge in rank. Errors: text.merge_not_in_vocab.
  Status add_merge(std::string_view left, std::string_view right);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  /// Appends the ids of `piece`. Any thread, each with its own scratch; O(n log n) in the piece.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  enum Proof : std::uint8_t { kUnknown, kIsItself, kIsNot };

  std::optional<std::int32_t> whole(std::string_view piece) const;
  void first_symbols(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void join_few(std::vector<std::int32_t>& ids) const;
  void join_many(Scratch& scratch) const;
  const std::uint64_t* merge_of(std::int32_t left, std::int32_t right) const {
    return merges_.find(static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right));
  }

  Vocabulary vocabulary_;
  BpeOptions options_;
  NumberTable merges_;  // left id above right id -> rank above joined id
  std::uint32_t rank_ = 0;
  std::int32_t unk_id_ = -1;
  std::int32_t letter_ids_[256];           // of the 256 byte letters; -1: not in the vocabulary
  std::int32_t fallback_ids_[256];         // of <0x00> to <0xFF>; -1: not in the vocabulary
  StringTable spelled_;                    // pieces_are_bytes: every token that GPT-2's letters spell, as bytes …
  std::vector<std::int32_t> spelled_ids_;  // … and its id
  // For each id whether encoding the token's own text yields just that id: found out once, whoever asks first.
  mutable std::unique_ptr<std::atomic<std::uint8_t>[]> proofs_;
};

}  // namespace fathom::text
