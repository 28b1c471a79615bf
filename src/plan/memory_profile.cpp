// Reading data/memory/engines.json: profiles that start from another one and change what differs.
#include "plan/memory_profile.h"

#include <cmath>
#include <variant>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kFile = "memory/engines.json";

struct NumberField {
  const char* key;
  double MemoryProfile::*to;
};
struct BytesField {
  const char* key;
  Bytes MemoryProfile::*to;
};
struct CountField {
  const char* key;
  std::int64_t MemoryProfile::*to;
};
struct FlagField {
  const char* key;
  bool MemoryProfile::*to;
};
struct SavedField {
  const char* key;
  SavedByOp MemoryProfile::*to;
};

using P = MemoryProfile;
constexpr NumberField kNumbers[] = {{"fragmentation", &P::fragmentation},
                                    {"fraction", &P::fraction},
                                    {"activation_bytes", &P::activation_bytes},
                                    {"held_hidden", &P::held_hidden},
                                    {"norm_bytes", &P::norm_bytes},
                                    {"logit_bytes", &P::logit_bytes},
                                    {"graph_bytes_per_layer", &P::graph_bytes_per_layer},
                                    {"weight_bytes", &P::weight_bytes},
                                    {"gradient_bytes", &P::gradient_bytes},
                                    {"master_bytes", &P::master_bytes},
                                    {"moment_bytes", &P::moment_bytes},
                                    {"gathered_layers", &P::gathered_layers},
                                    {"gathered_parameters", &P::gathered_parameters},
                                    {"reduce_bytes", &P::reduce_bytes},
                                    {"dropout_bytes", &P::dropout_bytes},
                                    {"fp8_input_bytes", &P::fp8_input_bytes},
                                    {"loss_logit_bytes", &P::loss_logit_bytes}};
constexpr BytesField kBytes[] = {{"context_bytes", &P::context_bytes},
                                 {"communicator_bytes", &P::communicator_bytes},
                                 {"workspace_bytes", &P::workspace_bytes},
                                 {"workspace_bytes_hopper", &P::workspace_bytes_hopper},
                                 {"bucket_bytes", &P::bucket_bytes}};
constexpr CountField kCounts[] = {{"block_tokens", &P::block_tokens},
                                  {"chunk_tokens", &P::chunk_tokens},
                                  {"max_sequences", &P::max_sequences},
                                  {"loss_chunk_tokens", &P::loss_chunk_tokens}};
constexpr FlagField kFlags[] = {{"concatenates", &P::concatenates},
                                {"expands_heads", &P::expands_heads},
                                {"continues_on_cache", &P::continues_on_cache},
                                {"follows_tape", &P::follows_tape},
                                {"reuses_gate", &P::reuses_gate},
                                {"all_logits", &P::all_logits},
                                {"gradients_persist", &P::gradients_persist},
                                {"offload_takes_gradients", &P::offload_takes_gradients},
                                {"offload_takes_checkpoints", &P::offload_takes_checkpoints}};
constexpr SavedField kSaved[] = {
    {"linear", &P::linear},         {"norm", &P::norm},         {"rope", &P::rope},      {"attention", &P::attention},
    {"activation", &P::activation}, {"residual", &P::residual}, {"experts", &P::experts}};
constexpr std::pair<const char*, CachePool> kPools[] = {{"as_needed", CachePool::kAsNeeded},
                                                        {"static", CachePool::kStatic},
                                                        {"fraction_of_device", CachePool::kFractionOfDevice},
                                                        {"fraction_static", CachePool::kFractionStatic},
                                                        {"fraction_of_free", CachePool::kFractionOfFree}};

tl::unexpected<Error> wrong_field(const std::string& engine, std::string_view key) {
  return fail("plan.data_wrong", {{"file", std::string(kFile)}, {"field", printable(engine + "." + std::string(key))}});
}

bool is_amount(const Json& value) {
  return value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() >= 0 &&
         value.get<double>() < 1e15;
}

/// Whether `key` is one of the fields of a table, and was read; nullopt: not in it.
template <class Field, std::size_t N, class Read>
std::optional<bool> read_field(const Field (&fields)[N], const std::string& key, Read&& read) {
  for (const Field& field : fields)
    if (key == field.key) return read(field);
  return std::nullopt;
}

std::optional<bool> read_saved(const Json& value, SavedByOp& saved) {
  if (!value.is_object()) return false;
  saved = {};
  for (const auto& [key, item] : value.items()) {
    if (key == "input" && item.is_boolean())
      saved.input = item.get<bool>();
    else if (key == "output_copies" && is_amount(item))
      saved.output_copies = item.get<double>();
    else if (key == "output_bytes" && is_amount(item))
      saved.output_bytes = item.get<double>();
    else
      return false;
  }
  return true;
}

bool read_one(const std::string& key, const Json& value, MemoryProfile& profile) {
  if (key == "name" || key == "base" || key == "why") return value.is_string();
  if (key == "kv" && value.is_string()) return profile.kv = value.get<std::string>(), true;
  if (key == "pool") {
    for (const auto& [name, pool] : kPools)
      if (value == name) return profile.pool = pool, true;
    return false;
  }
  if (key == "zero_stages" || key == "selective_keeps") {
    if (!value.is_array() || value.empty()) return false;
    if (key == "zero_stages")
      profile.zero_stages.clear();
    else
      profile.selective_keeps.clear();
    for (const Json& item : value) {
      if (key == "zero_stages" && item.is_number_integer() && item >= 0 && item <= 3)
        profile.zero_stages.push_back(item.get<int>());
      else if (key == "selective_keeps" && item.is_string())
        profile.selective_keeps.push_back(item.get<std::string>());
      else
        return false;
    }
    return true;
  }
  if (const auto done = read_field(kNumbers, key, [&](const NumberField& f) {
        return is_amount(value) && (profile.*f.to = value.get<double>(), true);
      }))
    return *done;
  if (const auto done = read_field(kBytes, key, [&](const BytesField& f) {
        return is_amount(value) && (profile.*f.to = value.get<Bytes>(), true);
      }))
    return *done;
  if (const auto done = read_field(kCounts, key, [&](const CountField& f) {
        return is_amount(value) && (profile.*f.to = value.get<std::int64_t>(), true);
      }))
    return *done;
  if (const auto done = read_field(kFlags, key, [&](const FlagField& f) {
        return value.is_boolean() && (profile.*f.to = value.get<bool>(), true);
      }))
    return *done;
  if (const auto done = read_field(
          kSaved, key, [&](const SavedField& f) { return read_saved(value, profile.*f.to).value_or(false); }))
    return *done;
  return false;
}

Result<std::vector<MemoryProfile>> load() {
  const auto text = data_file(kFile);
  if (!text) return fail("plan.data_missing", {{"file", std::string(kFile)}});
  FATHOM_TRY(const Json json, parse_json(*text, kFile));
  if (!json.is_object() || !json.contains("engines") || !json["engines"].is_array()) return wrong_field("engines", "");
  std::vector<MemoryProfile> profiles;
  for (const Json& item : json["engines"]) {
    if (!item.is_object() || !item.contains("name") || !item["name"].is_string()) return wrong_field("engines", "name");
    const std::string name = item["name"].get<std::string>();
    MemoryProfile profile;
    if (item.contains("base")) {
      const MemoryProfile* base = nullptr;
      for (const MemoryProfile& other : profiles)
        if (item["base"] == other.name) base = &other;
      if (base == nullptr) return wrong_field(name, "base");
      profile = *base;
      profile.base = base->name;
    }
    profile.name = name;
    for (const auto& [key, value] : item.items())
      if (!read_one(key, value, profile)) return wrong_field(name, key);
    profile.block_tokens = std::max<std::int64_t>(profile.block_tokens, 1);
    profiles.push_back(std::move(profile));
  }
  if (profiles.empty()) return wrong_field("engines", "");
  return profiles;
}

}  // namespace

Result<const MemoryProfile*> memory_profile(std::string_view engine, std::string_view variant) {
  static const Result<std::vector<MemoryProfile>> profiles = load();
  if (!profiles) return tl::unexpected<Error>(profiles.error());
  const MemoryProfile* found = &profiles->front();
  for (const MemoryProfile& profile : *profiles) {
    const std::string_view name = profile.name;
    if (name == engine) found = &profile;
    if (!variant.empty() && name.size() == engine.size() + 1 + variant.size() && name.starts_with(engine) &&
        name.ends_with(variant))
      return &profile;
  }
  return found;
}

}  // namespace fathom::plan
