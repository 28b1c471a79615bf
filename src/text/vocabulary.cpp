#include "text/vocabulary.h"

#include <string>

#include "base/strings.h"

namespace fathom::text {

Status Vocabulary::add(std::string_view token, std::int64_t id) {
  if (id < 0 || id > kMaxTokenId)
    return fail("text.vocab_bad_id",
                {{"token", printable(token)}, {"id", std::to_string(id)}, {"limit", std::to_string(kMaxTokenId)}});
  const auto slot = static_cast<std::size_t>(id);
  if (slot >= index_of_id_.size()) index_of_id_.resize(slot + 1, StringTable::kNone);
  if (index_of_id_[slot] != StringTable::kNone)
    return fail("text.vocab_duplicate_id", {{"id", std::to_string(id)},
                                            {"first", printable(tokens_.at(index_of_id_[slot]))},
                                            {"second", printable(token)}});
  bool fresh = false;
  const std::uint32_t index = tokens_.insert(token, fresh);
  if (!fresh) return fail("text.vocab_duplicate_token", {{"token", printable(token)}});
  ids_.push_back(static_cast<std::int32_t>(id));
  index_of_id_[slot] = index;
  return {};
}

}  // namespace fathom::text
