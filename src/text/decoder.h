// From tokens back to text, a token at a time: what is out never has to be taken back.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace fathom::text {

/// The "decoder" of a tokenizer.json: a chain of stages, each of which takes tokens and passes tokens on.
class Decoder {
 public:
  /// null joins tokens with spaces. Errors: text.unknown_type (ByteLevel, ByteFallback, Fuse, Metaspace, Replace,
  /// Strip, Sequence are known), text.bad_field, those of Regex.
  static Result<Decoder> from_json(const nlohmann::ordered_json& node);

  /// The state of one text. Not thread-safe; the decoder must outlive it.
  class Stream {
   public:
    explicit Stream(const Decoder& decoder);
    /// Appends to `out` what is certain now: whole characters only.
    void push(std::string_view token, std::string& out);
    /// Appends the rest; bytes that never became a character come out as U+FFFD. Then the stream is as new.
    void finish(std::string& out);

   private:
    struct State {
      std::string held;       // bytes or text that later tokens may still change
      std::size_t count = 0;  // tokens seen, or characters stripped
    };
    void pass(std::size_t stage, std::string_view token, std::string& out);
    void end(std::size_t stage, std::string& out);
    void end_byte_run(std::size_t stage, std::string& out);
    void strip_joined(std::size_t stage, std::string_view chunk, std::string& out);

    const Decoder* decoder_;
    std::vector<State> states_;  // one a stage
    RegexScratch scratch_;
  };

 private:
  // From the first kJoinBytes or kFuse on there is one token only, the whole text, which comes in chunks; stages that
  // need it whole (kBuffered) hold it back to the end.
  enum class Kind { kJoinBytes, kByteFallback, kFuse, kMetaspace, kReplace, kStrip, kSpaces };
  struct Stage {
    Kind kind;
    bool joined = false;              // one token, in chunks
    bool buffered = false;            // held back to the end
    std::string text;                 // kReplace: what comes instead; kMetaspace, kStrip: the character
    Regex pattern{};                  // kReplace
    std::size_t start = 0, stop = 0;  // kStrip: how many at each end
    bool drop_first = false;          // kMetaspace: the first token loses its spaces
  };
  Status add(const nlohmann::ordered_json& node);
  void append_transformed(const Stage& stage, std::string_view token, bool first, RegexScratch& scratch,
                          std::string& out) const;

  std::vector<Stage> stages_;
};

}  // namespace fathom::text
