// What stands beside a tokenizer.json: tokenizer_config.json, special_tokens_map.json, chat templates.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/result.h"

namespace fathom::text {

struct TokenizerConfig {
  /// The special tokens by role: "bos_token" -> "<s>", … in the order of the file; roles without a token are absent.
  std::vector<std::pair<std::string, std::string>> special_tokens;
  /// Chat templates by name; the usual one is called "default".
  std::vector<std::pair<std::string, std::string>> templates;
  std::string tokenizer_class;
  std::optional<bool> add_bos_token, add_eos_token;

  /// From a folder. Files that are absent leave their fields empty; chat_template.jinja and
  /// additional_chat_templates/*.jinja win over tokenizer_config.json. Errors: those of files and JSON, text.bad_field.
  static Result<TokenizerConfig> load(const Path& folder);
  /// From the text of a tokenizer_config.json; `what` names it in errors.
  static Result<TokenizerConfig> parse(std::string_view json, std::string_view what);
  const std::string* special_token(std::string_view role) const;
};

}  // namespace fathom::text
