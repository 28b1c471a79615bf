#include "model/catalog_describe.h"

#include "base/json.h"

namespace fathom::model {
namespace {

void put(Json& into, const char* key, const std::string& value) {
  if (!value.empty()) into[key] = value;
}
template <class T>
void put(Json& into, const char* key, const std::optional<T>& value) {
  if (value) into[key] = *value;
}

Json published(const ModelEntry& entry) {
  Json out = Json::object();
  put(out, "total_params", entry.published_total);
  put(out, "active_params", entry.published_active);
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

Json describe(const ModelEntry& entry, bool whole) {
  Json out = {{"id", entry.id}, {"family", entry.family}};
  put(out, "released", entry.released);
  put(out, "license", entry.license);
  put(out, "architecture", entry.architecture);
  out["model_type"] = entry.model_type;
  out["context_length"] = entry.context_length;
  out["short_names"] = entry.short_names;
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

}  // namespace

std::string entry_json(const ModelEntry& entry) { return dump_json(describe(entry, /*whole=*/true), 2); }

std::string list_json(std::span<const ModelEntry* const> entries) {
  Json list = Json::array();
  for (const ModelEntry* entry : entries) list.push_back(describe(*entry, /*whole=*/false));
  return dump_json(Json{{"models", std::move(list)}}, 1);
}

}  // namespace fathom::model
