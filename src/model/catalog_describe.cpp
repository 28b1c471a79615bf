#include "model/catalog_describe.h"

#include <fmt/format.h>

#include <cmath>

#include "base/json.h"
#include "base/strings.h"
#include "base/units.h"
#include "model/catalog_match.h"

namespace fathom::model {
namespace {

void put(Json& into, const char* key, const std::string& value) {
  if (!value.empty()) into[key] = value;
}
template <class T>
void put(Json& into, const char* key, const std::optional<T>& value) {
  if (value) into[key] = *value;
}

// Whole numbers as integers: 70272, not 70272.0.
Json number(double value) {
  if (value == std::floor(value) && std::fabs(value) < 0x1p53) return static_cast<std::int64_t>(value);
  return value;
}

Json published(const ModelEntry& entry) {
  Json out = Json::object();
  if (entry.published_total) out["total_params"] = number(*entry.published_total);
  if (entry.published_active) out["active_params"] = number(*entry.published_active);
  put(out, "hub_size", entry.hub_size);
  put(out, "hub_params", entry.hub_params);
  put(out, "checkpoint_bytes", entry.published_checkpoint_bytes);
  put(out, "checkpoint_bytes_precision", entry.published_checkpoint_precision);
  return out;
}

Json tokenizer(const TokenizerFacts& facts) {
  Json out = {{"id", facts.id}, {"vocab_size", facts.vocab_size}, {"base_vocab", facts.base_vocab}};
  put(out, "tokenizer_class", facts.tokenizer_class);
  put(out, "kind", facts.kind);
  put(out, "model_max_length", facts.model_max_length);
  put(out, "note", facts.note);
  return out;
}

Json by_format(const std::vector<KvFigure>& figures) {
  Json out = Json::object();
  for (const KvFigure& figure : figures) out[figure.key] = number(figure.bytes);
  return out;
}

void put_sizes(Json& into, const Result<SizedModel>& sized) {
  if (!sized) {
    into["sizes_error"] = error_text(sized.error());
    return;
  }
  into["parameters_total"] = sized->sizes.parameters_total;
  into["parameters_main"] = sized->sizes.parameters_main;
  into["parameters_active"] = sized->sizes.parameters_active;
  into["parameters_active_with_embedding"] = sized->sizes.parameters_active_with_embedding;
  into["checkpoint_bytes"] = sized->sizes.checkpoint_bytes;
  into["checkpoint_tensors"] = sized->sizes.tensors;
  into["kv_bytes_per_token"] = by_format(sized->kv.per_token);
  into["kv_fixed_bytes"] = by_format(sized->kv.fixed);
}

Json describe(const ModelEntry& entry, bool whole) {
  Json out = {{"id", entry.id}, {"family", entry.family}};
  put(out, "released", entry.released);
  put(out, "license", entry.license);
  put(out, "architecture", entry.architecture);
  out["model_type"] = entry.model_type;
  out["context_length"] = entry.context_length;
  out["short_names"] = accepted_names(entry);
  put_sizes(out, size_entry(entry));
  put(out, "native_dtype", entry.native_dtype);
  out["published"] = published(entry);
  if (!entry.tokenizer.id.empty()) out["tokenizer"] = tokenizer(entry.tokenizer);
  out["confidence"] = entry.confidence;
  put(out, "as_of", entry.as_of);
  out["sources"] = entry.sources;
  put(out, "notes", entry.notes);
  put(out, "same_config_as", entry.config_of);
  if (!entry.overridden.empty()) out["overridden"] = entry.overridden;
  if (whole)
    if (auto config = parse_json(entry.config, entry.id)) out["config"] = std::move(*config);
  return out;
}

std::string grouped(double value) {  // "671,026,419,200"
  std::string digits = fmt::format("{:.0f}", value);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<std::size_t>(at), ",");
  return digits;
}

std::string with_count(double value) { return fmt::format("{} ({})", grouped(value), format_count(value)); }
std::string with_bytes(double value) {
  return value < static_cast<double>(kKiB) ? fmt::format("{:g} B", value)
                                           : fmt::format("{:g} B ({})", value, format_bytes(static_cast<Bytes>(value)));
}

class Figures {
 public:
  using From = EntryFigure::From;
  explicit Figures(const ModelEntry& entry) : entry_(entry) {}
  // `field`: the field of the data file, to find out whether the user set it.
  void add(const char* key, std::string value, From from, const std::string& field, std::string precision = {}) {
    if (value.empty()) return;
    EntryFigure figure{
        .key = key, .precision = std::move(precision), .value = std::move(value), .from = from, .file = {}};
    if (const auto user = entry_.overridden.find(field); user != entry_.overridden.end()) {
      figure.from = From::kUser;
      figure.file = user->second;
    }
    out_.push_back(std::move(figure));
  }
  std::vector<EntryFigure> take() { return std::move(out_); }

 private:
  const ModelEntry& entry_;
  std::vector<EntryFigure> out_;
};

void add_sizes(Figures& out, const SizedModel& sized) {
  using From = EntryFigure::From;
  const ModelSizes& sizes = sized.sizes;
  out.add("parameters_total", with_count(static_cast<double>(sizes.parameters_total)), From::kComputed, "");
  out.add("parameters_main", with_count(static_cast<double>(sizes.parameters_main)), From::kComputed, "");
  out.add("parameters_active", with_count(static_cast<double>(sizes.parameters_active)), From::kComputed, "");
  const auto bytes = static_cast<double>(sizes.checkpoint_bytes);
  out.add("checkpoint_bytes", fmt::format("{} B ({})", grouped(bytes), format_bytes(sizes.checkpoint_bytes)),
          From::kComputed, "");
  for (const KvFigure& figure : sized.kv.per_token)
    out.add("kv_per_token", with_bytes(figure.bytes), From::kComputed, "", figure.key);
  for (const KvFigure& figure : sized.kv.fixed)
    out.add("kv_fixed", with_bytes(figure.bytes), From::kComputed, "", figure.key);
}

}  // namespace

Result<SizedModel> size_entry(const ModelEntry& entry) {
  FATHOM_TRY(const ModelSpec spec, parse_config(entry.config, entry.id));
  return size_model(spec);
}

std::vector<EntryFigure> entry_figures(const ModelEntry& entry) {
  using From = EntryFigure::From;
  Figures out(entry);
  out.add("family", entry.family, From::kCatalog, "family");
  out.add("released", entry.released, From::kCatalog, "released");
  out.add("license", entry.license, From::kCatalog, "license");
  out.add("type", entry.model_type, From::kCatalog, "model_type");
  out.add("architecture", entry.architecture, From::kCatalog, "architecture");
  out.add("context_length", std::to_string(entry.context_length), From::kPublished, "context_length");
  out.add("short_names", join(accepted_names(entry)), From::kCatalog, "short_names");
  out.add("config_of", entry.config_of, From::kCatalog, "same_config_as");
  out.add("dtype", entry.native_dtype, From::kPublished, "native_dtype");
  if (entry.published_total)
    out.add("published_total", format_count(*entry.published_total), From::kPublished, "published");
  if (entry.published_active)
    out.add("published_active", format_count(*entry.published_active), From::kPublished, "published");
  out.add("hub_size", entry.hub_size, From::kPublished, "published");
  if (entry.hub_params)
    out.add("hub_params", with_count(static_cast<double>(*entry.hub_params)), From::kPublished, "published");
  if (entry.published_checkpoint_bytes)
    out.add("published_bytes",
            fmt::format("{} B, {}", grouped(static_cast<double>(*entry.published_checkpoint_bytes)),
                        entry.published_checkpoint_precision),
            From::kPublished, "published");
  const TokenizerFacts& tokenizer = entry.tokenizer;
  if (!tokenizer.id.empty())
    out.add("tokenizer", fmt::format("{}, {} ({} rows)", tokenizer.id, tokenizer.kind, tokenizer.vocab_size),
            From::kCatalog, "tokenizer");
  if (const auto sized = size_entry(entry))
    add_sizes(out, *sized);
  else
    out.add("parameters_total", error_text(sized.error()), From::kComputed, "");
  out.add("notes", entry.notes, From::kCatalog, "notes");
  return out.take();
}

std::string entry_json(const ModelEntry& entry) { return dump_json(describe(entry, /*whole=*/true), 2); }

std::string list_json(std::span<const ModelEntry* const> entries) {
  Json list = Json::array();
  for (const ModelEntry* entry : entries) list.push_back(describe(*entry, /*whole=*/false));
  return dump_json(Json{{"models", std::move(list)}}, 1);
}

}  // namespace fathom::model
