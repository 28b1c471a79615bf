// Text to token ids and back, as Hugging Face tokenizers does it from the same tokenizer.json.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/result.h"

namespace fathom::text {

class StreamDecoder;

/// Immutable and cheap to copy: copies share one tokenizer, and any number of threads may use it at once.
class Tokenizer {
 public:
  /// From a folder with tokenizer.json (and tokenizer_config.json, special_tokens_map.json where they are), or from the
  /// path of a tokenizer.json itself. Errors: those of read_file, read_tokenizer and TokenizerConfig.
  static Result<Tokenizer> load(const Path& folder_or_file);
  /// From the texts of the two files, which `what` names in errors; `config` may be empty.
  static Result<Tokenizer> from_text(std::string_view tokenizer_json, std::string_view config, std::string_view what);

  /// The ids of `text`, in which added tokens such as <|im_start|> are recognised wherever they stand. `add_special`
  /// puts the beginning and end tokens around it that the tokenizer prescribes. Empty text: empty (or just those). O(n
  /// log n). Errors: text.invalid_utf8, text.too_long beyond 1 GiB, text.regex_limit.
  Result<std::vector<std::int32_t>> encode(std::string_view text, bool add_special = false) const;
  /// Valid UTF-8 always: bytes that form no character become U+FFFD. Unknown ids are passed over.
  /// decode(encode(x)) == x for byte-level tokenizers that do not normalize.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;
  StreamDecoder stream(bool skip_special = false) const;

  /// One above the largest id.
  std::int32_t vocab_size() const;
  std::optional<std::int32_t> id_of(std::string_view token) const;
  /// The token as the vocabulary spells it (byte-level letters, ▁ for a space).
  std::optional<std::string> token_of(std::int32_t id) const;
  bool is_special(std::int32_t id) const;
  /// From tokenizer_config.json.
  std::optional<std::int32_t> bos_id() const;
  std::optional<std::int32_t> eos_id() const;
  std::optional<std::int32_t> pad_id() const;
  std::optional<std::int32_t> unk_id() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Decodes ids as they come. What push() and finish() answer, put together, is exactly decode() of all ids; nothing is
/// ever half a character. One text at a time, one thread.
class StreamDecoder {
 public:
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();
  /// The text that has become certain with `id`; often empty.
  std::string push(std::int32_t id);
  /// What is left; the decoder is then ready for another text.
  std::string finish();

 private:
  friend class Tokenizer;
  struct State;
  explicit StreamDecoder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fathom::text
