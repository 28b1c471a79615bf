#include "model/catalog_load.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "base/strings.h"
#include "model/catalog_match.h"

namespace fathom::model {
namespace {

constexpr std::size_t kMaxModels = 10'000;
constexpr std::size_t kMaxText = 4096;
constexpr std::size_t kMaxList = 1000;
constexpr double kMaxFigure = 1e17;  // parameters or bytes; far above any model
constexpr std::array<std::string_view, 18> kFields = {
    "id",        "family",    "released", "license",      "architecture", "model_type", "context_length", "short_names",
    "published", "tokenizer", "config",   "native_dtype", "sources",      "confidence", "same_config_as", "notes",
    "as_of",     "about"};
// What `fathom models show ID --json` adds to an entry: a user may paste it back whole.
constexpr std::array<std::string_view, 10> kDerived = {
    "parameters_total", "parameters_main",    "parameters_active",  "parameters_active_with_embedding",
    "checkpoint_bytes", "checkpoint_tensors", "kv_bytes_per_token", "kv_fixed_bytes",
    "sizes_error",      "overridden"};
constexpr std::array<std::string_view, 6> kPublished = {
    "total_params", "active_params", "hub_size", "hub_params", "checkpoint_bytes", "checkpoint_bytes_precision"};

template <class List>
Status check_keys(const Json& object, const List& known, const std::string& prefix, const std::string& what) {
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return fail("model_catalog.unknown_field", {{"what", what}, {"field", printable(prefix + key)}});
  return {};
}

bool good_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._-/").find(c) != std::string_view::npos;
  });
}

// What may be shown as it is: not too long, and nothing that moves a terminal's cursor.
bool showable(const std::string& text) {
  return text.size() <= kMaxText &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

Result<std::string> text(const Json& object, const char* key, const std::string& what) {
  FATHOM_TRY(const auto value, json_string(object, key, what));
  if (value && !showable(*value)) return fail("model_catalog.not_a_line", {{"what", what}, {"field", key}});
  return value.value_or("");
}

Result<std::vector<std::string>> texts(const Json& object, const char* key, const std::string& what) {
  std::vector<std::string> out;
  const auto list = object.find(key);
  if (list == object.end() || list->is_null()) return out;
  if (!list->is_array() || list->size() > kMaxList)
    return fail("model_catalog.not_text_list", {{"what", what}, {"field", key}});
  for (const Json& item : *list) {
    if (!item.is_string() || !showable(item.get_ref<const std::string&>()))
      return fail("model_catalog.not_text_list", {{"what", what}, {"field", key}});
    out.push_back(item.get<std::string>());
  }
  return out;
}

// A count that is at least 1: parameters, bytes, tokens.
Result<std::optional<double>> figure(const Json& object, const char* key, const std::string& what) {
  FATHOM_TRY(const auto value, json_number(object, key, what));
  if (value && !(*value >= 1 && *value <= kMaxFigure))
    return fail("model_catalog.out_of_range",
                {{"what", what}, {"field", key}, {"value", printable(dump_json(object[key]), 40)}});
  return value;
}

Result<std::optional<std::int64_t>> whole(const Json& object, const char* key, const std::string& what) {
  FATHOM_TRY(const auto value, figure(object, key, what));
  if (!value) return std::nullopt;
  if (*value != std::floor(*value))
    return fail("model_catalog.out_of_range",
                {{"what", what}, {"field", key}, {"value", printable(dump_json(object[key]), 40)}});
  return static_cast<std::int64_t>(*value);
}

}  // namespace

Status ModelCatalogLoader::add(std::string_view file, const std::string& what, bool user) {
  FATHOM_TRY(const Json root, parse_json(file, what));
  if (!root.is_object()) return fail("model_catalog.not_an_object", {{"what", what}});
  static constexpr std::array<std::string_view, 5> known = {"about", "as_of", "family", "models", "tokenizers"};
  FATHOM_TRY_VOID(check_keys(root, known, "", what));
  FATHOM_TRY(family_, text(root, "family", what));
  FATHOM_TRY(as_of_, text(root, "as_of", what));
  for (const char* section : {"tokenizers", "models"}) {
    const auto list = root.find(section);
    if (list == root.end()) continue;
    if (!list->is_array()) return fail("model_catalog.section_not_list", {{"what", what}, {"field", section}});
    for (const Json& record : *list) {
      if (!record.is_object()) return fail("model_catalog.record_not_object", {{"what", what}, {"field", section}});
      const auto id = record.find("id");
      if (id == record.end() || !id->is_string() || !good_id(id->get_ref<const std::string&>()))
        return fail("model_catalog.bad_id", {{"what", what}, {"field", section}});
      FATHOM_TRY_VOID(section == std::string_view("models") ? add_model(record, what, user)
                                                            : add_tokenizer(record, what));
    }
  }
  return {};
}

Status ModelCatalogLoader::add_tokenizer(const Json& record, const std::string& file) {
  TokenizerFacts facts;
  facts.id = record["id"].get<std::string>();
  const std::string what = file + ": tokenizers '" + facts.id + "'";
  static constexpr std::array<std::string_view, 7> known = {
      "id", "tokenizer_class", "kind", "note", "vocab_size", "base_vocab", "model_max_length"};
  FATHOM_TRY_VOID(check_keys(record, known, "", what));
  FATHOM_TRY(facts.tokenizer_class, text(record, "tokenizer_class", what));
  FATHOM_TRY(facts.kind, text(record, "kind", what));
  FATHOM_TRY(facts.note, text(record, "note", what));
  FATHOM_TRY(const auto vocabulary, whole(record, "vocab_size", what));
  FATHOM_TRY(const auto base, whole(record, "base_vocab", what));
  FATHOM_TRY(facts.model_max_length, whole(record, "model_max_length", what));
  facts.vocab_size = vocabulary.value_or(0);
  facts.base_vocab = base.value_or(0);
  if (tokenizers_.size() >= kMaxModels)
    return fail("model_catalog.too_many", {{"what", file}, {"field", "tokenizers"}});
  tokenizers_[facts.id] = std::move(facts);
  return {};
}

Status ModelCatalogLoader::add_model(const Json& given, const std::string& file, bool user) {
  Json record = given;
  for (const std::string_view key : kDerived) record.erase(std::string(key));
  if (const auto tokenizer = record.find("tokenizer");
      tokenizer != record.end() && tokenizer->is_object() && tokenizer->contains("id")) {
    const Json tokenizer_id = (*tokenizer)["id"];
    record["tokenizer"] = tokenizer_id;
  }
  const std::string id = record["id"].get<std::string>();
  const std::string what = file + ": '" + id + "'";
  FATHOM_TRY_VOID(check_keys(record, kFields, "", what));
  const auto known = by_id_.find(id);
  if (known == by_id_.end()) {
    if (entries_.size() >= kMaxModels) return fail("model_catalog.too_many", {{"what", file}, {"field", "models"}});
    by_id_.emplace(id, entries_.size());
    Entry entry{record, what, {}};
    if (!family_.empty() && !record.contains("family")) entry.record["family"] = family_;
    if (!as_of_.empty() && !record.contains("as_of")) entry.record["as_of"] = as_of_;
    if (user && !record.contains("confidence")) entry.record["confidence"] = "user";
    entries_.push_back(std::move(entry));
  } else {
    if (!user) return fail("model_catalog.twice", {{"what", file}, {"id", id}});
    Entry& entry = entries_[known->second];
    entry.record.merge_patch(record);
    entry.what = what;
    // The newer word on where the configuration comes from replaces the older one.
    if (record.contains("config"))
      entry.record.erase("same_config_as");
    else if (record.contains("same_config_as"))
      entry.record.erase("config");
  }
  if (user)
    for (const auto& [key, value] : record.items())
      if (key != "id") entries_[by_id_.find(id)->second].overridden[key] = file;
  return {};
}

Result<const Json*> ModelCatalogLoader::config_of(const Entry& entry) const {
  const Entry* at = &entry;
  std::set<const Entry*> seen;
  while (true) {
    if (const auto config = at->record.find("config"); config != at->record.end() && !config->is_null()) {
      if (!config->is_object()) return fail("model_catalog.config_not_object", {{"what", at->what}});
      return &*config;
    }
    FATHOM_TRY(const auto next, json_string(at->record, "same_config_as", at->what));
    if (!next) return fail("model_catalog.no_config", {{"what", at->what}});
    const auto target = by_id_.find(*next);
    if (target == by_id_.end())
      return fail("model_catalog.unknown_config_of", {{"what", at->what}, {"id", printable(*next)}});
    if (!seen.insert(at).second) return fail("model_catalog.config_cycle", {{"what", entry.what}});
    at = &entries_[target->second];
  }
}

Status ModelCatalogLoader::read_published(const Json& record, const std::string& what, ModelEntry& model) const {
  const auto published = record.find("published");
  if (published == record.end() || published->is_null()) return {};
  if (!published->is_object()) return fail("model_catalog.published_not_object", {{"what", what}});
  FATHOM_TRY_VOID(check_keys(*published, kPublished, "published.", what));
  FATHOM_TRY(model.published_total, figure(*published, "total_params", what));
  FATHOM_TRY(model.published_active, figure(*published, "active_params", what));
  FATHOM_TRY(model.hub_size, text(*published, "hub_size", what));
  FATHOM_TRY(model.hub_params, whole(*published, "hub_params", what));
  FATHOM_TRY(const auto bytes, whole(*published, "checkpoint_bytes", what));
  if (bytes) model.published_checkpoint_bytes = static_cast<Bytes>(*bytes);
  FATHOM_TRY(model.published_checkpoint_precision, text(*published, "checkpoint_bytes_precision", what));
  return {};
}

Result<ModelEntry> ModelCatalogLoader::read(const Entry& entry) const {
  const Json& record = entry.record;
  const std::string& what = entry.what;
  ModelEntry model;
  FATHOM_TRY(model.id, text(record, "id", what));
  FATHOM_TRY(model.family, text(record, "family", what));
  FATHOM_TRY(model.released, text(record, "released", what));
  FATHOM_TRY(model.license, text(record, "license", what));
  FATHOM_TRY(model.architecture, text(record, "architecture", what));
  FATHOM_TRY(model.model_type, text(record, "model_type", what));
  FATHOM_TRY(model.native_dtype, text(record, "native_dtype", what));
  FATHOM_TRY(model.confidence, text(record, "confidence", what));
  FATHOM_TRY(model.notes, text(record, "notes", what));
  FATHOM_TRY(model.as_of, text(record, "as_of", what));
  FATHOM_TRY(model.short_names, texts(record, "short_names", what));
  FATHOM_TRY(model.sources, texts(record, "sources", what));
  FATHOM_TRY_VOID(read_published(record, what, model));
  FATHOM_TRY(const Json* config, config_of(entry));
  FATHOM_TRY(const std::string config_of_id, text(record, "same_config_as", what));
  if (!record.contains("config") || record["config"].is_null()) model.config_of = config_of_id;
  model.config = dump_json(*config);
  FATHOM_TRY(const auto type, json_string(*config, "model_type", what + " config"));
  if (model.model_type.empty()) model.model_type = type.value_or("");
  if (model.model_type.empty())
    return fail("model_catalog.missing_field", {{"what", what}, {"field", "config.model_type"}});
  FATHOM_TRY(const auto context, whole(record, "context_length", what));
  FATHOM_TRY(const auto positions, whole(*config, "max_position_embeddings", what + " config"));
  model.context_length = context.value_or(positions.value_or(0));
  FATHOM_TRY(const std::string tokenizer, text(record, "tokenizer", what));
  if (!tokenizer.empty()) {
    const auto found = tokenizers_.find(tokenizer);
    if (found == tokenizers_.end())
      return fail("model_catalog.unknown_tokenizer", {{"what", what}, {"id", printable(tokenizer)}});
    model.tokenizer = found->second;
  }
  model.overridden = entry.overridden;
  return model;
}

Result<ModelCatalog> ModelCatalogLoader::build() {
  ModelCatalog catalog;
  for (const Entry& entry : entries_) {
    FATHOM_TRY(ModelEntry model, read(entry));
    catalog.models_.push_back(std::move(model));
  }
  catalog.names_ = std::make_shared<const ModelNames>(catalog.models_);
  return catalog;
}

}  // namespace fathom::model
