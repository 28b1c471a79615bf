#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace fathom::text {

void AddedTokens::Trie::add(std::string_view text, std::int32_t token) {
  if (text.empty()) return;
  empty = false;
  starts[static_cast<unsigned char>(text[0])] = true;
  std::uint64_t node = 0;
  for (const char c : text) {
    const std::uint64_t key = node << 8 | static_cast<unsigned char>(c);
    if (const std::uint64_t* next = edges.find(key)) {
      node = *next;
      continue;
    }
    node = ends.size();
    edges.set(key, node);
    ends.push_back(-1);
  }
  if (ends[node] < 0) ends[node] = token;
}

std::int32_t AddedTokens::Trie::longest(std::string_view text, std::size_t at, std::size_t& end) const {
  std::int32_t token = -1;
  std::uint64_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const std::uint64_t* next = edges.find(node << 8 | static_cast<unsigned char>(text[i]));
    if (next == nullptr) break;
    node = *next;
    if (ends[node] >= 0) {
      token = ends[node];
      end = i + 1;
    }
  }
  return token;
}

Result<AddedTokens> AddedTokens::make(std::vector<AddedToken> tokens, const Normalizer& normalizer) {
  AddedTokens added;
  added.tokens_ = std::move(tokens);
  RegexScratch scratch;
  for (std::size_t i = 0; i < added.tokens_.size(); ++i) {
    AddedToken& token = added.tokens_[i];
    const auto number = static_cast<std::int32_t>(i);
    bool fresh = false;
    added.contents_.insert(token.content, fresh);
    FATHOM_CHECK(fresh && !token.content.empty(), "added tokens are distinct");
    added.by_id_.set(static_cast<std::uint64_t>(token.id), i);
    token.spelled = token.content;
    if (token.normalized) FATHOM_TRY_VOID(normalizer.apply(token.spelled, scratch));
    (token.normalized ? added.normalized_ : added.raw_).add(token.spelled, number);
  }
  return added;
}

const AddedToken* AddedTokens::by_content(std::string_view content) const {
  const std::uint32_t number = contents_.find(content);
  return number == StringTable::kNone ? nullptr : &tokens_[number];
}

const AddedToken* AddedTokens::by_id(std::int32_t id) const {
  if (id < 0) return nullptr;
  const std::uint64_t* number = by_id_.find(static_cast<std::uint64_t>(id));
  return number == nullptr ? nullptr : &tokens_[*number];
}

void AddedTokens::find(std::string_view text, bool normalized, std::vector<Section>& out) const {
  out.clear();
  const Trie& trie = normalized ? normalized_ : raw_;
  std::size_t covered = 0;  // up to here the sections in `out` reach
  for (std::size_t at = 0; !trie.empty && at < text.size();) {
    if (!trie.starts[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    std::size_t start = at, stop = at;
    const std::int32_t number = trie.longest(text, at, stop);
    if (number < 0) {
      ++at;
      continue;
    }
    at = stop;
    const AddedToken& token = tokens_[static_cast<std::size_t>(number)];
    if (token.single_word) {
      std::size_t before = start > 0 ? char_start_before(text, start) : 0, behind = stop;
      const bool touches_before = start > 0 && is_word(next_char(text, before));
      if (touches_before || (stop < text.size() && is_word(next_char(text, behind)))) continue;
    }
    if (token.lstrip) {
      for (std::size_t previous; start > covered; start = previous) {
        std::size_t end = previous = char_start_before(text, start);
        if (!is_white_space(next_char(text, end))) break;
      }
    }
    if (token.rstrip) {
      for (std::size_t next = stop; next < text.size() && is_white_space(next_char(text, next));) stop = next;
    }
    if (covered < start) out.push_back({{covered, start}, -1});
    out.push_back({{start, stop}, number});
    covered = stop;
  }
  if (covered < text.size()) out.push_back({{covered, text.size()}, -1});
}

}  // namespace fathom::text
