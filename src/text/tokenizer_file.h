// The parts of a tokenizer.json.
#pragma once
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"

namespace fathom::text {

struct TokenizerParts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe model;
  AddedTokens added;
  PostProcessor post;
  Decoder decoder;
};

/// Reads the text of a tokenizer.json; `what` names it in errors. "truncation" and "padding", which shape batches of
/// training data, are passed over; so are fields that Hugging Face tokenizers does not know either. Errors:
/// text.json_expected and the like for what is not JSON; text.unknown_type for a component that Fathom does not have;
/// text.vocab_*, text.merge_*, text.added_* for tables that contradict themselves.
Result<TokenizerParts> read_tokenizer(std::string_view json, std::string_view what);

}  // namespace fathom::text
