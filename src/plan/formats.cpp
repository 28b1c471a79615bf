// Reading data/formats/*.json, and the arithmetic of storages.
#include "plan/formats.h"

#include <algorithm>
#include <cmath>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kWeightsFile = "formats/weights.json", kKvFile = "formats/kv.json";

Result<Json> load(std::string_view file) {
  const auto text = data_file(file);
  if (!text) return fail("plan.data_missing", {{"file", std::string(file)}});
  FATHOM_TRY(Json json, parse_json(*text, file));
  if (!json.is_object()) return fail("plan.data_wrong", {{"file", std::string(file)}, {"field", "/"}});
  return json;
}

tl::unexpected<Error> wrong(std::string_view file, std::string_view field) {
  return fail("plan.data_wrong", {{"file", std::string(file)}, {"field", printable(field)}});
}

/// A number that may be absent; finite and not negative, or the field's name in `bad`.
double number(const Json& object, const char* key, double otherwise, std::string& bad) {
  const auto at = object.find(key);
  if (at == object.end()) return otherwise;
  if (!at->is_number() || !std::isfinite(at->get<double>()) || at->get<double>() < 0 || at->get<double>() > 1e6) {
    bad = key;
    return otherwise;
  }
  return at->get<double>();
}

std::vector<std::string> strings(const Json& object, const char* key, std::string& bad) {
  std::vector<std::string> out;
  const auto at = object.find(key);
  if (at == object.end()) return out;
  if (!at->is_array()) bad = key;
  for (const Json& item : *at) {
    if (item.is_string())
      out.push_back(item.get<std::string>());
    else
      bad = key;
  }
  return out;
}

std::string text_of(const Json& object, const char* key, std::string& bad) {
  const auto at = object.find(key);
  if (at != object.end() && at->is_string()) return at->get<std::string>();
  bad = key;
  return {};
}

std::int16_t storage_index(const Formats& formats, std::string_view name) {
  if (name == "native") return kNativeStorage;
  if (name == "wide") return kWideStorage;
  for (std::size_t i = 0; i < formats.storages.size(); ++i)
    if (formats.storages[i].name == name) return static_cast<std::int16_t>(i);
  return -100;
}

Status read_storages(const Json& json, Formats& formats) {
  const auto list = json.find("storages");
  if (list == json.end() || !list->is_object()) return wrong(kWeightsFile, "storages");
  std::string bad;
  for (const auto& [name, item] : list->items()) {
    if (!item.is_object()) return wrong(kWeightsFile, name);
    Storage storage{.name = name};
    storage.bits = number(item, "bits", 0, bad);
    storage.block_rows = static_cast<std::int64_t>(number(item, "block_rows", 1, bad));
    storage.block_cols = static_cast<std::int64_t>(number(item, "block_cols", 0, bad));
    storage.block_bits = number(item, "block_bits", 0, bad);
    storage.row_bytes = number(item, "row_bytes", 0, bad);
    storage.column_bytes = number(item, "column_bytes", 0, bad);
    storage.tensor_bytes = number(item, "tensor_bytes", 0, bad);
    if (!bad.empty() || storage.bits <= 0 || storage.block_rows < 1) return wrong(kWeightsFile, name + "." + bad);
    formats.storages.push_back(std::move(storage));
  }
  for (const auto& [name, item] : list->items()) {
    if (!item.contains("fallback")) continue;
    const std::int16_t to = storage_index(formats, text_of(item, "fallback", bad));
    if (to < 0) return wrong(kWeightsFile, name + ".fallback");
    formats.storages[static_cast<std::size_t>(storage_index(formats, name))].fallback = to;
  }
  return {};
}

Result<WeightFormatRule::Layers> read_layers(const std::string& name) {
  using Layers = WeightFormatRule::Layers;
  constexpr std::pair<std::string_view, Layers> names[] = {{"all", Layers::kAll},
                                                           {"more", Layers::kMore},
                                                           {"first_four", Layers::kFirstFour},
                                                           {"first_eighth", Layers::kFirstEighth},
                                                           {"first_sixteenth", Layers::kFirstSixteenth}};
  for (const auto& [text, value] : names)
    if (text == name) return value;
  return wrong(kWeightsFile, "layers: " + name);
}

Result<WeightFormatRule> read_rule(const Json& item, const Formats& formats) {
  std::string bad;
  WeightFormatRule rule{.name = text_of(item, "name", bad), .aliases = strings(item, "aliases", bad)};
  rule.native = item.value("native", false);
  rule.unpacks = item.value("unpacks", false);
  rule.tied_embedding_as_head = item.value("tied_embedding_as_head", false);
  const auto math = hardware::parse_precision(text_of(item, "math", bad));
  if (!bad.empty() || !math) return wrong(kWeightsFile, rule.name + ".math");
  rule.math = *math;
  rule.storage.fill(kNativeStorage);
  const auto classes = item.find("classes");
  if (classes == item.end() || !classes->is_object()) return wrong(kWeightsFile, rule.name + ".classes");
  for (const auto& [name, value] : classes->items()) {
    int cls = 0;
    while (cls < model::kWeightClassCount && model::weight_class_name(static_cast<model::WeightClass>(cls)) != name)
      ++cls;
    const std::int16_t storage =
        value.is_string() ? storage_index(formats, value.get<std::string>()) : static_cast<std::int16_t>(-100);
    if (cls == model::kWeightClassCount || storage == -100) return wrong(kWeightsFile, rule.name + ".classes." + name);
    rule.storage[static_cast<std::size_t>(cls)] = storage;
  }
  if (!item.contains("overrides")) return rule;
  for (const Json& change : item["overrides"]) {
    if (!change.is_object()) return wrong(kWeightsFile, rule.name + ".overrides");
    WeightFormatRule::Override rule_change{.tensors = strings(change, "tensors", bad)};
    FATHOM_TRY(rule_change.layers, read_layers(text_of(change, "layers", bad)));
    rule_change.storage = storage_index(formats, text_of(change, "storage", bad));
    if (!bad.empty() || rule_change.storage == -100) return wrong(kWeightsFile, rule.name + ".overrides");
    rule.overrides.push_back(std::move(rule_change));
  }
  return rule;
}

KvFormat::Part read_part(const Json& item, const std::string& prefix, std::string& bad) {
  return {number(item, (prefix + "bits").c_str(), 0, bad),
          static_cast<std::int64_t>(number(item, (prefix + "block").c_str(), 0, bad)),
          number(item, (prefix + "block_bits").c_str(), 0, bad)};
}

Result<KvFormat> read_kv(const Json& item) {
  std::string bad;
  KvFormat kv{.name = text_of(item, "name", bad), .aliases = strings(item, "aliases", bad)};
  kv.all = read_part(item, "", bad);
  kv.index = read_part(item, "index_", bad);
  kv.latent = read_part(item, "latent_", bad);
  kv.rope = read_part(item, "rope_", bad);
  kv.entry_latent = read_part(item, "entry_latent_", bad);
  kv.entry_rope = read_part(item, "entry_rope_", bad);
  kv.entry_pad_bits = number(item, "entry_pad_bits", 0, bad);
  kv.window = read_part(item, "window_", bad);
  kv.int8_rows = item.value("int8_rows", false);
  kv.own_kernels = item.value("own_kernels", false);
  if (!bad.empty() || kv.all.bits <= 0) return wrong(kKvFile, kv.name + "." + bad);
  return kv;
}

Result<Formats> load_formats() {
  Formats formats;
  FATHOM_TRY(const Json weights, load(kWeightsFile));
  FATHOM_TRY_VOID(read_storages(weights, formats));
  if (!weights.contains("formats") || !weights["formats"].is_array()) return wrong(kWeightsFile, "formats");
  for (const Json& item : weights["formats"]) {
    if (!item.is_object()) return wrong(kWeightsFile, "formats");
    FATHOM_TRY(WeightFormatRule rule, read_rule(item, formats));
    formats.weights.push_back(std::move(rule));
  }
  FATHOM_TRY(const Json kv, load(kKvFile));
  if (!kv.contains("formats") || !kv["formats"].is_array()) return wrong(kKvFile, "formats");
  for (const Json& item : kv["formats"]) {
    if (!item.is_object()) return wrong(kKvFile, "formats");
    FATHOM_TRY(KvFormat format, read_kv(item));
    formats.kv.push_back(std::move(format));
  }
  return formats;
}

template <class Item>
bool is_called(const Item& item, std::string_view name) {
  const std::string wanted = to_lower(trim(name));
  return item.name == wanted || std::find(item.aliases.begin(), item.aliases.end(), wanted) != item.aliases.end();
}

template <class List>
Result<const typename List::value_type*> find_in(const List& list, std::string_view name, std::string_view error) {
  for (const auto& item : list)
    if (is_called(item, name)) return &item;
  std::vector<std::string> names;
  for (const auto& item : list)
    if (std::find(names.begin(), names.end(), item.name) == names.end()) names.push_back(item.name);
  return fail(error, {{"name", printable(name)}, {"known", join(names)}});
}

bool layer_matches(WeightFormatRule::Layers layers, std::int64_t layer, std::int64_t count) {
  using Layers = WeightFormatRule::Layers;
  switch (layers) {
    case Layers::kAll:
      return true;
    case Layers::kMore:
      return layer < count / 8 || layer >= 7 * count / 8 || (layer - count / 8) % 3 == 2;
    case Layers::kFirstFour:
      return layer < 4;
    case Layers::kFirstEighth:
      return layer < count / 8;
    case Layers::kFirstSixteenth:
      return layer < count / 16;
  }
  return false;
}

bool is_plain(tensor::WeightFormat format) { return tensor::weight_scale_count(format, 1, 1) == 0; }

double part_bits(const KvFormat::Part& part, double elements) {
  return elements * part.bits +
         (part.block > 0 ? std::ceil(elements / static_cast<double>(part.block)) * part.block_bits : 0);
}
const KvFormat::Part& or_all(const KvFormat& kv, const KvFormat::Part& part) { return part.bits > 0 ? part : kv.all; }

}  // namespace

Result<const Formats*> formats() {
  static const Result<Formats> loaded = load_formats();
  if (!loaded) return tl::unexpected<Error>(loaded.error());
  return &*loaded;
}

Result<const WeightFormatRule*> find_weight_format(std::string_view name) {
  FATHOM_TRY(const Formats* all, formats());
  return find_in(all->weights, name, "plan.unknown_weights");
}

Result<const KvFormat*> find_kv_format(std::string_view name, bool own_kernels) {
  FATHOM_TRY(const Formats* all, formats());
  for (const KvFormat& kv : all->kv)
    if (own_kernels && kv.own_kernels && is_called(kv, name)) return &kv;
  return find_in(all->kv, name, "plan.unknown_kv");
}

Bytes storage_bytes(const Formats& formats, const Storage& storage, std::int64_t rows, std::int64_t cols) {
  if (storage.fallback >= 0 && cols % storage.block_cols != 0)
    return storage_bytes(formats, formats.storages[static_cast<std::size_t>(storage.fallback)], rows, cols);
  const auto r = static_cast<double>(rows), c = static_cast<double>(cols);
  double bits = r * c * storage.bits;
  if (storage.block_cols > 0)
    bits += std::ceil(r / static_cast<double>(storage.block_rows)) *
            std::ceil(c / static_cast<double>(storage.block_cols)) * storage.block_bits;
  return static_cast<Bytes>(std::ceil(bits / 8)) +
         static_cast<Bytes>(std::ceil(r * storage.row_bytes + c * storage.column_bytes + storage.tensor_bytes));
}

Bytes entry_bytes(const Formats& formats, const WeightFormatRule& rule, const model::WeightEntry& entry,
                  std::int64_t layers, bool tied_embeddings) {
  if (entry.tied_to >= 0) return 0;
  const auto count = static_cast<Bytes>(entry.experts);
  const Bytes native = tensor::weight_bytes(entry.native, entry.rows, entry.cols) * count;
  auto cls = entry.cls;
  if (rule.tied_embedding_as_head && tied_embeddings && cls == model::WeightClass::kEmbedding)
    cls = model::WeightClass::kHead;
  std::int16_t storage = rule.storage[static_cast<std::size_t>(cls)];
  if (rule.native || entry.native == tensor::WeightFormat::i64) return native;
  if (!entry.vector) {
    for (const WeightFormatRule::Override& change : rule.overrides) {
      if (entry.layer < 0 || !layer_matches(change.layers, entry.layer, layers)) continue;
      if (!std::any_of(change.tensors.begin(), change.tensors.end(),
                       [&](const std::string& part) { return entry.pattern.find(part) != std::string::npos; }))
        continue;
      storage = change.storage;
      break;
    }
  } else if (storage >= 0 && formats.storages[static_cast<std::size_t>(storage)].block_cols > 0) {
    storage = kWideStorage;  // vectors are never quantized
  }
  if (storage == kNativeStorage || (storage == kWideStorage && is_plain(entry.native))) return native;
  if (storage == kWideStorage) return 2 * static_cast<Bytes>(entry.rows * entry.cols) * count;
  return storage_bytes(formats, formats.storages[static_cast<std::size_t>(storage)], entry.rows, entry.cols) * count;
}

double cache_row_bytes(const KvFormat& kv, const model::ModelSpec& spec, const model::CacheTensor& tensor) {
  const auto width = static_cast<double>(tensor.width);
  if (tensor.state) return width * 4;
  if (kv.int8_rows) return static_cast<double>(tensor.row_elements(DType::i8));
  if (tensor.index) return part_bits(or_all(kv, kv.index), width) / 8;
  const bool entries = spec.window > 0 && spec.kv_lora_rank == 0;  // V4: one row is keys and values of all heads
  if (entries && kv.window.bits > 0 && tensor.rows == tensor::RowsOf::kRing) return part_bits(kv.window, width) / 8;
  if (entries && kv.entry_latent.bits > 0) {
    const auto rope = static_cast<double>(spec.rope.dims);
    return (part_bits(kv.entry_latent, width - rope) + part_bits(or_all(kv, kv.entry_rope), rope) + kv.entry_pad_bits) /
           8;
  }
  if (spec.kv_lora_rank > 0 && kv.latent.bits > 0) {
    const auto latent = static_cast<double>(
        std::min<std::int64_t>(tensor.width, tensor.width == spec.qk_rope_dim ? 0 : spec.kv_lora_rank));
    return (part_bits(kv.latent, latent) + part_bits(or_all(kv, kv.rope), width - latent)) / 8;
  }
  return part_bits(kv.all, width) / 8;
}

}  // namespace fathom::plan
