// The template's text as tokens, whitespace control applied (trim_blocks and lstrip_blocks on, as transformers sets
// them).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text::jinja {

enum class TokenKind : std::uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;  // data, names, unescaped strings, operators, digits
};

/// Throws TemplateFailure. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace fathom::text::jinja
