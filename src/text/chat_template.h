// From a conversation to the text that a model was trained to continue: the chat template of a tokenizer, rendered as
// transformers' apply_chat_template does (Jinja with trim_blocks and lstrip_blocks, loop controls and {% generation
// %}).
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/result.h"
#include "text/tokenizer_config.h"

namespace fathom::text {

struct ChatMessage {
  std::string role;     // "system", "user", "assistant", "tool"
  std::string content;  // valid UTF-8
};

struct RenderOptions {
  /// The moment that strftime_now() tells, in seconds since 1970; the clock's when absent.
  std::optional<std::int64_t> now;
  /// A hostile template ends here with a sentence: evaluated steps, and bytes made on the way.
  std::size_t max_steps = 20'000'000;
  std::size_t max_bytes = std::size_t{256} << 20;
};

/// The templates of one tokenizer. Immutable, cheap to copy; any number of threads may render at once.
class ChatTemplate {
 public:
  /// From a folder with tokenizer_config.json or chat_template.jinja, or the path of a tokenizer.json in one.
  /// Errors: text.no_chat_template, text.template_* with the line, those of files and JSON.
  static Result<ChatTemplate> load(const Path& folder_or_file);
  static Result<ChatTemplate> from_config(const TokenizerConfig& config);
  /// One template by itself, without special tokens.
  static Result<ChatTemplate> parse(std::string_view source);

  Result<std::string> render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                             const RenderOptions& options = {}) const;
  /// `context` is an object: "messages" (a list of objects), "add_generation_prompt" (false when absent), "tools" and
  /// "documents" (none when absent), and any other variables. The special tokens are variables, too (bos_token, …),
  /// unless `context` says otherwise. With tools, a template named "tool_use" is taken where there is one. Errors:
  /// text.bad_context, text.template_* with the line; text.template_raised with what the template says.
  Result<std::string> render(const nlohmann::ordered_json& context, const RenderOptions& options = {}) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace fathom::text
