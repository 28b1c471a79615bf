// The same model with fewer (or more) layers, by rewriting its config: every list that has one item a layer is cut or
// repeated.
#include <set>

#include "base/json.h"
#include "model/spec.h"

namespace fathom::model {

Result<ModelSpec> with_layers(const ModelSpec& spec, std::int64_t layers) {
  if (layers == spec.layers) return spec;
  if (layers < 1 || layers > 4096) return fail("model.layers_range", {{"layers", std::to_string(layers)}});
  FATHOM_TRY(Json json, parse_json(spec.config_json, "config"));
  Json& text = json.contains("text_config") && json["text_config"].is_object() ? json["text_config"] : json;
  text["num_hidden_layers"] = layers;
  const auto count = static_cast<std::size_t>(layers), before = static_cast<std::size_t>(spec.layers);
  // The new layer i takes the place of old layer i; past the end, the last kinds repeat with the period of two that V4
  // alternates in.
  const auto old_layer = [&](std::size_t i) {
    return i < before ? i : before - 1 - (i - before + 1) % (before > 1 ? 2 : 1);
  };
  for (const char* key : {"layer_types", "mlp_layer_types", "compress_ratios"}) {
    if (!text.contains(key) || !text[key].is_array() || text[key].size() < before) continue;
    const Json list = text[key];
    Json cut = Json::array();
    for (std::size_t i = 0; i < count; ++i) cut.push_back(list[old_layer(i)]);
    for (std::size_t i = before; i < list.size(); ++i) cut.push_back(list[i]);  // the draft's tail
    text[key] = std::move(cut);
  }
  for (const char* key : {"kv_source_layer_ids", "index_source_layer_ids", "dspark_target_layer_ids"}) {
    if (!text.contains(key) || !text[key].is_array()) continue;
    Json kept = Json::array();
    for (const Json& id : text[key])
      if (id.is_number_integer() && id.get<std::int64_t>() < layers) kept.push_back(id);
    if (kept.empty()) kept.push_back(layers - 1);
    text[key] = std::move(kept);
  }
  if (text.contains("engram_layer_ids") && text["engram_layer_ids"].is_array() &&
      text.contains("engram_num_embeddings") && text["engram_num_embeddings"].is_array()) {
    Json ids = Json::array(), rows = Json::array();
    for (std::size_t i = 0; i < text["engram_layer_ids"].size() && i < text["engram_num_embeddings"].size(); ++i)
      if (text["engram_layer_ids"][i].is_number_integer() && text["engram_layer_ids"][i].get<std::int64_t>() < layers) {
        ids.push_back(text["engram_layer_ids"][i]);
        rows.push_back(text["engram_num_embeddings"][i]);
      }
    text["engram_layer_ids"] = std::move(ids);
    text["engram_num_embeddings"] = std::move(rows);
  }
  // Keep one layer of each kind where there is room: dense ones first, then experts.
  if (text.contains("first_k_dense_replace") && text["first_k_dense_replace"].is_number_integer() &&
      text["first_k_dense_replace"].get<std::int64_t>() >= layers)
    text["first_k_dense_replace"] = layers - 1;
  return parse_config(dump_json(json), "config");
}

}  // namespace fathom::model
