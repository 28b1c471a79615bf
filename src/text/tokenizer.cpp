#include "text/tokenizer.h"

#include <utility>

#include "base/strings.h"
#include "base/units.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_file.h"

namespace fathom::text {
namespace {

constexpr Bytes kMaxTokenizerBytes = 256 * kMiB;
constexpr Bytes kMaxTextBytes = kGiB;

}  // namespace

struct Tokenizer::Impl {
  TokenizerParts parts;
  std::optional<std::int32_t> bos, eos, pad, unk;

  std::optional<std::int32_t> id_of(std::string_view token) const {
    if (const AddedToken* added = parts.added.by_content(token)) return added->id;
    return parts.model.vocabulary().find(token);
  }
  std::optional<std::string_view> token_of(std::int32_t id) const {
    if (const AddedToken* added = parts.added.by_id(id)) return added->content;
    return parts.model.vocabulary().token(id);
  }
  // What the decoder gets; nullopt for an unknown id, and for a special one that is not wanted.
  std::optional<std::string_view> decoded_token(std::int32_t id, bool skip_special) const {
    const AddedToken* added = parts.added.by_id(id);
    if (added == nullptr) return parts.model.vocabulary().token(id);
    if (skip_special && added->special) return std::nullopt;
    return added->spelled;
  }
  bool is_special(std::int32_t id) const {
    const AddedToken* added = parts.added.by_id(id);
    return added != nullptr && added->special;
  }
  Status encode_section(std::string& text, bool opens_input, PreTokenizer::Scratch& scratch, std::vector<Span>& pieces,
                        Bpe::Scratch& bpe, std::vector<std::int32_t>& ids) const {
    FATHOM_TRY_VOID(parts.pre_tokenizer.split(text, opens_input, scratch, pieces));
    for (const Span& piece : pieces)
      parts.model.encode(std::string_view(text).substr(piece.begin, piece.end - piece.begin), bpe, ids);
    return {};
  }
  static void apply(const TokenizerConfig& config, Impl& impl);
};

// LlamaTokenizer classes say in tokenizer_config.json, not in tokenizer.json, which tokens go around a text.
void Tokenizer::Impl::apply(const TokenizerConfig& config, Impl& impl) {
  const auto id = [&](std::string_view role) -> std::optional<std::int32_t> {
    const std::string* token = config.special_token(role);
    return token != nullptr ? impl.id_of(*token) : std::nullopt;
  };
  impl.bos = id("bos_token");
  impl.eos = id("eos_token");
  impl.pad = id("pad_token");
  impl.unk = id("unk_token");
  if (!config.tokenizer_class.starts_with("LlamaTokenizer") || (!config.add_bos_token && !config.add_eos_token)) return;
  impl.parts.post = {};
  if (config.add_bos_token.value_or(true) && impl.bos) impl.parts.post.before.push_back(*impl.bos);
  if (config.add_eos_token.value_or(false) && impl.eos) impl.parts.post.behind.push_back(*impl.eos);
}

Result<Tokenizer> Tokenizer::load(const Path& path) {
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  const Path file = folder ? path / "tokenizer.json" : path;
  if (folder && !std::filesystem::exists(file, ignored)) return fail("text.no_tokenizer", {{"folder", path.string()}});
  FATHOM_TRY(const std::string json, read_file(file, kMaxTokenizerBytes));
  auto impl = std::make_shared<Impl>();
  FATHOM_TRY(impl->parts, read_tokenizer(json, file.string()));
  FATHOM_TRY(const TokenizerConfig config, TokenizerConfig::load(folder ? path : path.parent_path()));
  Impl::apply(config, *impl);
  return Tokenizer(std::move(impl));
}

Result<Tokenizer> Tokenizer::from_text(std::string_view tokenizer_json, std::string_view config,
                                       std::string_view what) {
  auto impl = std::make_shared<Impl>();
  FATHOM_TRY(impl->parts, read_tokenizer(tokenizer_json, what));
  if (!config.empty()) {
    FATHOM_TRY(const TokenizerConfig parsed, TokenizerConfig::parse(config, what));
    Impl::apply(parsed, *impl);
  }
  return Tokenizer(std::move(impl));
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text, bool add_special) const {
  const TokenizerParts& parts = impl_->parts;
  if (text.size() > kMaxTextBytes)
    return fail("text.too_long", {{"size", format_bytes(text.size())}, {"limit", format_bytes(kMaxTextBytes)}});
  if (!is_valid_utf8(text)) return fail("text.invalid_utf8", {{"what", printable(text, 40)}});
  std::vector<std::int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special) ids.insert(ids.end(), parts.post.before.begin(), parts.post.before.end());
  PreTokenizer::Scratch scratch;
  Bpe::Scratch bpe;
  std::vector<Span> pieces;
  std::vector<Section> sections, inner;
  std::string normalized, piece;
  parts.added.find(text, false, sections);
  for (const Section& section : sections) {
    if (section.token >= 0) {
      ids.push_back(parts.added.tokens()[static_cast<std::size_t>(section.token)].id);
      continue;
    }
    normalized = text.substr(section.span.begin, section.span.end - section.span.begin);
    FATHOM_TRY_VOID(parts.normalizer.apply(normalized, scratch.regex));
    parts.added.find(normalized, true, inner);
    for (const Section& part : inner) {
      if (part.token >= 0) {
        ids.push_back(parts.added.tokens()[static_cast<std::size_t>(part.token)].id);
        continue;
      }
      const bool opens_input = section.span.begin == 0 && part.span.begin == 0;
      piece = std::string_view(normalized).substr(part.span.begin, part.span.end - part.span.begin);
      FATHOM_TRY_VOID(impl_->encode_section(piece, opens_input, scratch, pieces, bpe, ids));
    }
  }
  if (add_special) ids.insert(ids.end(), parts.post.behind.begin(), parts.post.behind.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  Decoder::Stream stream(impl_->parts.decoder);
  std::string out;
  out.reserve(ids.size() * 4);
  for (const std::int32_t id : ids)
    if (const auto token = impl_->decoded_token(id, skip_special)) stream.push(*token, out);
  stream.finish(out);
  return out;
}

std::int32_t Tokenizer::vocab_size() const {
  std::int32_t end = impl_->parts.model.vocabulary().id_end();
  for (const AddedToken& token : impl_->parts.added.tokens()) end = std::max(end, token.id + 1);
  return end;
}

std::optional<std::int32_t> Tokenizer::id_of(std::string_view token) const { return impl_->id_of(token); }
std::optional<std::string> Tokenizer::token_of(std::int32_t id) const {
  const auto token = impl_->token_of(id);
  if (!token) return std::nullopt;
  return std::string(*token);
}
bool Tokenizer::is_special(std::int32_t id) const { return impl_->is_special(id); }
std::optional<std::int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<std::int32_t> Tokenizer::eos_id() const { return impl_->eos; }
std::optional<std::int32_t> Tokenizer::pad_id() const { return impl_->pad; }
std::optional<std::int32_t> Tokenizer::unk_id() const { return impl_->unk; }

struct StreamDecoder::State {
  std::shared_ptr<const Tokenizer::Impl> tokenizer;
  Decoder::Stream stream;
  bool skip_special;
};

StreamDecoder Tokenizer::stream(bool skip_special) const {
  return StreamDecoder(std::unique_ptr<StreamDecoder::State>(
      new StreamDecoder::State{impl_, Decoder::Stream(impl_->parts.decoder), skip_special}));
}

StreamDecoder::StreamDecoder(std::unique_ptr<State> state) : state_(std::move(state)) {}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(std::int32_t id) {
  std::string out;
  if (const auto token = state_->tokenizer->decoded_token(id, state_->skip_special)) state_->stream.push(*token, out);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  state_->stream.finish(out);
  return out;
}

}  // namespace fathom::text
