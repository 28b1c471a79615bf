#include "engine/generate.h"

#include <algorithm>
#include <optional>

#include "base/clock.h"

namespace fathom::engine {
namespace {

// Text that is out, and text held back because it may be the beginning of a stop string.
class StopFilter {
 public:
  StopFilter(const std::vector<std::string>& stops, const std::function<bool(std::string_view)>& out)
      : stops_(stops), out_(out) {}
  /// False when a stop string is complete or the listener cancelled.
  bool push(std::string_view piece) {
    held_ += piece;
    for (const std::string& stop : stops_)
      if (!stop.empty()) stopped_at_ = std::min(stopped_at_, held_.find(stop));
    if (stopped_at_ != std::string::npos) {
      held_.resize(stopped_at_);
      emit(held_.size());
      return false;
    }
    std::size_t keep = 0;  // the longest end of held_ that begins a stop string
    for (const std::string& stop : stops_)
      for (std::size_t n = std::min(stop.size(), held_.size()); n > keep; --n)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    emit(held_.size() - keep);
    return !cancelled_;
  }
  void finish() { emit(held_.size()); }
  bool stopped() const { return stopped_at_ != std::string::npos; }
  bool cancelled() const { return cancelled_; }
  std::string take_text() { return std::move(text_); }

 private:
  void emit(std::size_t n) {
    if (n == 0) return;
    if (out_ && !cancelled_ && !out_(std::string_view(held_).substr(0, n))) cancelled_ = true;
    text_.append(held_, 0, n);
    held_.erase(0, n);
  }
  const std::vector<std::string>& stops_;
  const std::function<bool(std::string_view)>& out_;
  std::string held_, text_;
  std::size_t stopped_at_ = std::string::npos;
  bool cancelled_ = false;
};

// Where the next token comes from: chosen by the device, one token ahead of the host where that saves time, or here.
class Source {
 public:
  Source(Engine& engine, std::int64_t slot, Sampler& sampler) : engine_(engine), slot_(slot), sampler_(sampler) {}
  Status start() {
    engine_.reset(slot_);
    if (engine_.chooses() && sampler_.uses_history()) return engine_.set_history(slot_, sampler_.seen());
    return {};
  }
  /// The token after `ids`, which follow what the slot has. `another`: the one after it will be asked for next, unless
  /// something in the text ends it.
  Result<std::int32_t> after(std::span<const std::int32_t> ids, bool another) {
    if (!engine_.chooses()) {
      FATHOM_TRY(const auto logits, engine_.prefill(slot_, ids));
      return sampler_.sample(logits);
    }
    if (!ahead_) FATHOM_TRY_VOID(engine_.begin_text(slot_, ids, sampler_.next_row()));
    ahead_ = another && engine_.runs_ahead() && has_room();
    if (ahead_) {
      const tensor::SamplingRow row = sampler_.next_row();
      FATHOM_TRY_VOID(engine_.begin_next({&row, 1}));
    }
    FATHOM_TRY(const auto chosen, engine_.take_chosen());
    return sampler_.chosen(chosen[0]);
  }
  /// Whether a token can be followed by another one.
  bool has_more() const { return ahead_ || has_room(); }

 private:
  bool has_room() const { return engine_.length(slot_) + 1 <= engine_.options().context; }
  Engine& engine_;
  std::int64_t slot_;
  Sampler& sampler_;
  bool ahead_ = false;  // the pass of the token that was answered last has begun
};

}  // namespace

std::string_view stop_reason_name(StopReason reason) {
  static constexpr std::string_view names[] = {"end", "stop", "length", "context", "cancelled"};
  return names[static_cast<int>(reason)];
}

Result<Generated> generate(Engine& engine, std::int64_t slot, std::span<const std::int32_t> prompt,
                           const GenerateOptions& options, const text::Tokenizer* tokenizer,
                           const std::function<bool(std::string_view)>& on_text) {
  FATHOM_TRY_VOID(check_sampling(options.sampling));
  if (prompt.empty()) return fail("engine.empty_prompt");
  Generated result;
  Sampler sampler(options.sampling, engine.spec().vocabulary);
  sampler.add_history(prompt);
  StopFilter filter(options.stop_strings, on_text);
  std::optional<text::StreamDecoder> decoder;
  if (tokenizer != nullptr) decoder.emplace(tokenizer->stream(/*skip_special=*/true));
  result.token_seconds.reserve(static_cast<std::size_t>(std::max<std::int64_t>(options.max_tokens, 0)));
  Source source(engine, slot, sampler);
  FATHOM_TRY_VOID(source.start());
  double started = now_seconds();
  FATHOM_TRY(std::int32_t id, source.after(prompt, options.max_tokens > 1));
  result.prefill_seconds = now_seconds() - started;
  while (static_cast<std::int64_t>(result.ids.size()) < options.max_tokens) {
    if (!options.ignore_stop &&
        std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
      result.reason = StopReason::kEndToken;
      break;
    }
    result.ids.push_back(id);
    if (decoder && !filter.push(decoder->push(id))) {
      result.reason = filter.stopped() ? StopReason::kStopString : StopReason::kCancelled;
      break;
    }
    if (static_cast<std::int64_t>(result.ids.size()) == options.max_tokens) break;
    if (!source.has_more()) {
      result.reason = StopReason::kContextFull;
      break;
    }
    started = now_seconds();
    FATHOM_TRY(id, source.after({&id, 1}, std::ssize(result.ids) + 1 < options.max_tokens));
    result.token_seconds.push_back(now_seconds() - started);
  }
  if (decoder && result.reason != StopReason::kStopString && result.reason != StopReason::kCancelled) {
    if (filter.push(decoder->finish()))
      filter.finish();
    else if (filter.stopped())
      result.reason = StopReason::kStopString;
  }
  result.text = filter.take_text();
  return result;
}

}  // namespace fathom::engine
