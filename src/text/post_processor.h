// The ids that a tokenizer puts around a text when asked for special tokens.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "base/result.h"

namespace fathom::text {

struct PostProcessor {
  std::vector<std::int32_t> before, behind;

  /// From the "post_processor" of a tokenizer.json; null adds nothing. Errors: text.unknown_type (TemplateProcessing,
  /// ByteLevel, Sequence are known), text.bad_field.
  static Result<PostProcessor> from_json(const nlohmann::ordered_json& node);
};

}  // namespace fathom::text
