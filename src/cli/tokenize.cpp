// fathom tokenize: text to ids and back, conversations to prompts.
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "base/i18n.h"
#include "base/json.h"
#include "base/strings.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "text/json_lines.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace fathom::cli {
namespace {

struct TokenizeFlags {
  std::string tokenizer;
  std::optional<std::string> text;
  bool jsonl = false, count = false, special = false;
};
TokenizeFlags tokenize_flags;

Result<int> answer_lines() {
  if (tokenize_flags.text || tokenize_flags.count) return fail("cli.tokenize.text_with_jsonl");
  FATHOM_TRY(const text::JsonLines lines, text::JsonLines::open(tokenize_flags.tokenizer));
  char* buffer = nullptr;
  std::size_t capacity = 0;
  for (ssize_t n; (n = ::getline(&buffer, &capacity, stdin)) >= 0;) {
    std::string_view line(buffer, static_cast<std::size_t>(n));
    if (line.ends_with('\n')) line.remove_suffix(1);
    std::printf("%s\n", lines.answer(line).c_str());
    std::fflush(stdout);  // somebody may be waiting for this very line
  }
  std::free(buffer);
  return kExitOk;
}

void print_json(const text::Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  Json json = {{"count", ids.size()}};
  if (!tokenize_flags.count) {
    json["ids"] = ids;
    json["tokens"] = Json::array();
    for (const std::int32_t id : ids) json["tokens"].push_back(tokenizer.token_of(id).value_or(""));
    json["decoded"] = tokenizer.decode(ids);
  }
  std::printf("%s\n", dump_json(json, 2).c_str());
}

void print_text(const text::Tokenizer& tokenizer, const std::string& text, const std::vector<std::int32_t>& ids) {
  if (tokenize_flags.count) {
    std::printf("%zu\n", ids.size());
    return;
  }
  Table table({{tr("cli.tokenize.column_id"), Align::kRight},
               {tr("cli.tokenize.column_token")},
               {tr("cli.tokenize.column_text")}});
  for (const std::int32_t id : ids)
    table.add_row({std::to_string(id), printable(tokenizer.token_of(id).value_or(""), 40),
                   printable(tokenizer.decode({&id, 1}), 40)});
  std::printf("%s%s\n", table.render().c_str(),
              tr("cli.tokenize.tokens",
                 {{"count", std::to_string(ids.size())}, {"chars", std::to_string(text::count_chars(text))}})
                  .c_str());
}

}  // namespace

void setup_tokenize(FlagSet& verb) {
  verb.option("TEXT", tokenize_flags.text, tr("cli.tokenize.text"));
  verb.option("--tokenizer", tokenize_flags.tokenizer, tr("cli.tokenize.tokenizer")).required();
  verb.flag("--jsonl", tokenize_flags.jsonl, tr("cli.tokenize.jsonl"));
  verb.flag("--count", tokenize_flags.count, tr("cli.tokenize.count"));
  verb.flag("--special", tokenize_flags.special, tr("cli.tokenize.special"));
}

Result<int> run_tokenize(const Common& common) {
  if (tokenize_flags.jsonl) return answer_lines();
  FATHOM_TRY(const text::Tokenizer tokenizer, text::Tokenizer::load(tokenize_flags.tokenizer));
  const std::string text = tokenize_flags.text ? *tokenize_flags.text : read_standard_input();
  FATHOM_TRY(const std::vector<std::int32_t> ids, tokenizer.encode(text, tokenize_flags.special));
  if (common.json)
    print_json(tokenizer, ids);
  else
    print_text(tokenizer, text, ids);
  return kExitOk;
}

}  // namespace fathom::cli
