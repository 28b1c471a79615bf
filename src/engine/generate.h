// Generation: a prompt in, tokens out one by one, until an end token, a stop string, the limit or the context stops it.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "text/tokenizer.h"

namespace fathom::engine {

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  SamplingOptions sampling;
  std::vector<std::int32_t> stop_ids;     // end-of-sequence tokens
  std::vector<std::string> stop_strings;  // needs a tokenizer
  bool ignore_stop = false;               // for benchmarks: run to max_tokens
};

enum class StopReason : std::uint8_t { kEndToken, kStopString, kLength, kContextFull, kCancelled };
std::string_view stop_reason_name(StopReason reason);

struct Generated {
  std::vector<std::int32_t> ids;  // the end token not included
  std::string text;               // without the stop string; empty without a tokenizer
  StopReason reason = StopReason::kLength;
  double prefill_seconds = 0;
  std::vector<double> token_seconds;  // of every decode step
};

/// Runs in `slot`, which is reset first. Where the device runs ahead of the host, an answer that its text ends may
/// leave one token more in the slot. `on_text` (optional) gets pieces of valid UTF-8 as they are certain not to belong
/// to a stop string; answering false cancels. Errors: those of Engine and Sampler, a prompt without tokens.
Result<Generated> generate(Engine& engine, std::int64_t slot, std::span<const std::int32_t> prompt,
                           const GenerateOptions& options, const text::Tokenizer* tokenizer,
                           const std::function<bool(std::string_view)>& on_text = {});

}  // namespace fathom::engine
