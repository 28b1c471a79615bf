// A tokenizer as a service of lines: one JSON object in, one out.
#pragma once
#include <string>
#include <string_view>

#include "base/files.h"
#include "base/result.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom::text {

class JsonLines {
 public:
  /// From a folder or a tokenizer.json. A missing or broken chat template is told to the lines that need one.
  static Result<JsonLines> open(const Path& folder_or_file);

  /// {"text"} -> {"ids", "decoded"}: no special tokens added, all of them kept in the decoded text.
  /// {"messages", "add_generation_prompt", …} -> {"rendered"}: all other members are variables of the template.
  /// Anything else, and whatever fails -> {"error"}: one sentence. Always one line of valid JSON.
  std::string answer(std::string_view line) const;

 private:
  JsonLines(Tokenizer tokenizer, Result<ChatTemplate> chat)
      : tokenizer_(std::move(tokenizer)), chat_(std::move(chat)) {}

  Tokenizer tokenizer_;
  Result<ChatTemplate> chat_;
};

}  // namespace fathom::text
