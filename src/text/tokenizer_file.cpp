#include "text/tokenizer_file.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "base/json.h"
#include "base/strings.h"
#include "text/fields.h"
#include "text/json_cursor.h"

namespace fathom::text {
namespace {

// The members of an object as unparsed text; a key that comes twice is an error.
using Members = std::map<std::string, std::string_view, std::less<>>;

Result<Members> members_of(std::string_view json, std::string_view what) {
  Members members;
  JsonCursor cursor(json, what);
  FATHOM_TRY_VOID(cursor.expect('{'));
  for (bool first = true;;) {
    FATHOM_TRY(const bool more, cursor.more('}', first));
    if (!more) break;
    FATHOM_TRY(const std::string_view view, cursor.string());
    const std::string key(view);
    FATHOM_TRY_VOID(cursor.expect(':'));
    FATHOM_TRY(const std::string_view value, cursor.value());
    if (!members.emplace(key, value).second)
      return fail("text.json_duplicate_key", {{"what", std::string(what)}, {"key", printable(key)}});
  }
  FATHOM_TRY_VOID(cursor.end());
  return members;
}

// The member as a tree; null when absent.
Result<Json> member(const Members& members, std::string_view key, std::string_view what) {
  const auto found = members.find(key);
  if (found == members.end()) return Json(nullptr);
  return parse_json(found->second, std::string(what) + ": " + std::string(key));
}

Result<Vocabulary> read_vocabulary(std::string_view json, std::string_view what) {
  Vocabulary vocabulary;
  vocabulary.reserve(json.size() / 20, json.size() / 2);
  JsonCursor cursor(json, what);
  FATHOM_TRY_VOID(cursor.expect('{'));
  for (bool first = true;;) {
    FATHOM_TRY(const bool more, cursor.more('}', first));
    if (!more) return vocabulary;
    FATHOM_TRY(const std::string_view view, cursor.string());
    const std::string token(view);
    FATHOM_TRY_VOID(cursor.expect(':'));
    FATHOM_TRY(const std::int64_t id, cursor.integer());
    FATHOM_TRY_VOID(vocabulary.add(token, id));
  }
}

// Merges are pairs, written ["a", "b"] or "a b".
Status read_merges(std::string_view json, std::string_view what, Bpe& model) {
  model.reserve_merges(json.size() / 20);
  JsonCursor cursor(json, what);
  FATHOM_TRY_VOID(cursor.expect('['));
  for (bool first = true;;) {
    FATHOM_TRY(const bool more, cursor.more(']', first));
    if (!more) return {};
    if (cursor.peek() == '[') {
      bool inner_first = true;
      FATHOM_TRY_VOID(cursor.expect('['));
      std::string sides[2];
      for (std::string& side : sides) {
        FATHOM_TRY(const bool one, cursor.more(']', inner_first));
        if (!one) return fail("text.merge_not_a_pair", {{"what", std::string(what)}, {"merge", printable(sides[0])}});
        FATHOM_TRY(const std::string_view view, cursor.string());
        side = view;
      }
      FATHOM_TRY_VOID(cursor.expect(']'));
      FATHOM_TRY_VOID(model.add_merge(sides[0], sides[1]));
      continue;
    }
    FATHOM_TRY(const std::string_view line, cursor.string());
    if (line.starts_with("#version")) continue;
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      return fail("text.merge_not_a_pair", {{"what", std::string(what)}, {"merge", printable(line)}});
    const std::string text(line);
    FATHOM_TRY_VOID(model.add_merge(std::string_view(text).substr(0, space), std::string_view(text).substr(space + 1)));
  }
}

// A model field that may be absent, null or ""; anything else changes the encoding in a way that this model does not
// have.
Status must_be_empty(const Json& value, std::string_view field) {
  const bool empty = value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty()) ||
                     (value.is_number() && value.get<double>() == 0);
  if (!empty)
    return fail_unsupported("text.model_field",
                            {{"field", std::string(field)}, {"value", printable(dump_json(value), 40)}});
  return {};
}

Result<Bpe> read_model(std::string_view json, bool pieces_are_bytes, std::string_view what) {
  FATHOM_TRY(const Members members, members_of(json, what));
  FATHOM_TRY(const Json type, member(members, "type", what));
  if (!type.is_null() && type != "BPE")
    return unknown_type("model", type.is_string() ? type.get<std::string>() : dump_json(type), "BPE");
  for (const std::string_view field : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    FATHOM_TRY(const Json value, member(members, field, what));
    FATHOM_TRY_VOID(must_be_empty(value, field));
  }
  BpeOptions options;
  options.pieces_are_bytes = pieces_are_bytes;
  FATHOM_TRY(const Json unk, member(members, "unk_token", what));
  if (unk.is_string())
    options.unk_token = unk.get<std::string>();
  else if (!unk.is_null())
    return bad_field("model", "unk_token");
  for (const auto& [field, target] : {std::pair<std::string_view, bool*>{"fuse_unk", &options.fuse_unk},
                                      {"byte_fallback", &options.byte_fallback},
                                      {"ignore_merges", &options.ignore_merges}}) {
    FATHOM_TRY(const Json value, member(members, field, what));
    if (!value.is_null() && !value.is_boolean()) return bad_field("model", field);
    *target = value.is_boolean() && value.get<bool>();
  }
  const auto vocab = members.find("vocab"), merges = members.find("merges");
  if (vocab == members.end()) return bad_field("model", "vocab");
  if (merges == members.end()) return bad_field("model", "merges");
  FATHOM_TRY(Vocabulary vocabulary, read_vocabulary(vocab->second, std::string(what) + ": vocab"));
  FATHOM_TRY(Bpe model, Bpe::make(std::move(vocabulary), std::move(options)));
  FATHOM_TRY_VOID(read_merges(merges->second, std::string(what) + ": merges", model));
  return model;
}

// A token that the vocabulary has keeps its id; the others are numbered on from the end, in order. The file says ids,
// too; where they differ Hugging Face warns and goes by the place, and so does this.
Result<std::vector<AddedToken>> read_added(const Json& list, const Vocabulary& vocabulary) {
  constexpr std::string_view part = "added_tokens";
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  if (!list.is_array()) return bad_field(part, "[]");
  std::map<std::string, std::size_t> known;
  std::int64_t next_id = static_cast<std::int64_t>(vocabulary.size());
  for (const Json& node : list) {
    AddedToken token;
    FATHOM_TRY(token.content, string_field(node, part, "content"));
    FATHOM_TRY(token.special, bool_field(node, part, "special", false));
    FATHOM_TRY(token.normalized, bool_field(node, part, "normalized", !token.special));
    FATHOM_TRY(token.lstrip, bool_field(node, part, "lstrip", false));
    FATHOM_TRY(token.rstrip, bool_field(node, part, "rstrip", false));
    FATHOM_TRY(token.single_word, bool_field(node, part, "single_word", false));
    if (token.content.empty()) continue;
    const auto old = known.find(token.content);
    const auto in_vocabulary = vocabulary.find(token.content);
    std::int64_t id = old != known.end() ? tokens[old->second].id : in_vocabulary ? *in_vocabulary : next_id++;
    if (id > kMaxTokenId)
      return fail(
          "text.vocab_bad_id",
          {{"token", printable(token.content)}, {"id", std::to_string(id)}, {"limit", std::to_string(kMaxTokenId)}});
    token.id = static_cast<std::int32_t>(id);
    if (old != known.end()) {
      token.special |= tokens[old->second].special;
      tokens[old->second] = std::move(token);
      continue;
    }
    known.emplace(token.content, tokens.size());
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace

Result<TokenizerParts> read_tokenizer(std::string_view json, std::string_view what) {
  if (!is_valid_utf8(json)) return fail("text.invalid_utf8", {{"what", std::string(what)}});
  if (json.starts_with("\xEF\xBB\xBF")) json.remove_prefix(3);
  FATHOM_TRY(const Members members, members_of(json, what));
  if (!members.contains("model")) return fail("text.not_a_tokenizer", {{"what", std::string(what)}});
  TokenizerParts parts;
  FATHOM_TRY(const Json normalizer, member(members, "normalizer", what));
  FATHOM_TRY(parts.normalizer, Normalizer::from_json(normalizer));
  FATHOM_TRY(const Json pre, member(members, "pre_tokenizer", what));
  FATHOM_TRY(parts.pre_tokenizer, PreTokenizer::from_json(pre));
  FATHOM_TRY(const Json post, member(members, "post_processor", what));
  FATHOM_TRY(parts.post, PostProcessor::from_json(post));
  FATHOM_TRY(const Json decoder, member(members, "decoder", what));
  FATHOM_TRY(parts.decoder, Decoder::from_json(decoder));
  FATHOM_TRY(parts.model, read_model(members.find("model")->second, parts.pre_tokenizer.pieces_are_bytes(), what));
  FATHOM_TRY(const Json list, member(members, "added_tokens", what));
  FATHOM_TRY(std::vector<AddedToken> added, read_added(list, parts.model.vocabulary()));
  FATHOM_TRY(parts.added, AddedTokens::make(std::move(added), parts.normalizer));
  return parts;
}

}  // namespace fathom::text
