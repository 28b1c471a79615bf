// Tokens and their ids, both ways.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/flat_table.h"

namespace fathom::text {

/// The largest id that a file may name: an order of magnitude above the largest vocabularies.
inline constexpr std::int64_t kMaxTokenId = (std::int64_t{1} << 22) - 1;

class Vocabulary {
 public:
  void reserve(std::size_t tokens, std::size_t bytes) { tokens_.reserve(tokens, bytes); }
  /// Errors: text.vocab_bad_id, text.vocab_duplicate_token, text.vocab_duplicate_id.
  Status add(std::string_view token, std::int64_t id);
  std::size_t size() const { return tokens_.size(); }
  /// One above the largest id, 0 when empty.
  std::int32_t id_end() const { return static_cast<std::int32_t>(index_of_id_.size()); }
  std::optional<std::int32_t> find(std::string_view token) const {
    const std::uint32_t index = tokens_.find(token);
    if (index == StringTable::kNone) return std::nullopt;
    return ids_[index];
  }
  /// The token of `id`; nullopt for an id without one.
  std::optional<std::string_view> token(std::int32_t id) const {
    if (id < 0 || id >= id_end() || index_of_id_[static_cast<std::size_t>(id)] == StringTable::kNone)
      return std::nullopt;
    return tokens_.at(index_of_id_[static_cast<std::size_t>(id)]);
  }

 private:
  StringTable tokens_;
  std::vector<std::int32_t> ids_;           // by the token's number in tokens_
  std::vector<std::uint32_t> index_of_id_;  // by id
};

}  // namespace fathom::text
