#include "model/catalog_match.h"

#include <algorithm>

#include "base/strings.h"

namespace fathom::model {
namespace {

constexpr std::string_view kOwner = "deepseek-ai/";
constexpr std::string_view kMaker = "deepseek";

// "deepseekr1" -> "r1"; a name that is nothing but the maker's stays.
std::string_view without_maker(std::string_view key) {
  return key.starts_with(kMaker) && key.size() > kMaker.size() ? key.substr(kMaker.size()) : key;
}

}  // namespace

std::string name_key(std::string_view name) {
  std::string lower = to_lower(trim(name.substr(0, 256)));
  if (lower.starts_with(kOwner)) lower.erase(0, kOwner.size());
  std::erase_if(lower, [](char c) { return c == ' ' || c == '-' || c == '_'; });
  return lower;
}

std::vector<std::string> accepted_names(const ModelEntry& model) {
  std::string end = to_lower(std::string_view(model.id).substr(model.id.rfind('/') + 1));
  if (end.starts_with("deepseek-")) end.erase(0, 9);
  std::vector<std::string> out = {end};
  for (const std::string& name : model.short_names)
    if (name != end) out.push_back(name);
  return out;
}

ModelNames::ModelNames(std::span<const ModelEntry> models) {
  for (std::size_t i = 0; i < models.size(); ++i) {
    const ModelEntry& model = models[i];
    const int position = static_cast<int>(i);
    ids_.push_back(model.id);
    by_id_[model.id] = {position};
    add(model.id, position);
    add(std::string_view(model.id).substr(model.id.rfind('/') + 1), position);
    for (const std::string& name : model.short_names) add(name, position);
  }
  for (const auto& [key, positions] : by_key_) keys_.push_back(key);
  std::sort(keys_.begin(), keys_.end());
}

void ModelNames::add(std::string_view name, int position) {
  const std::string key = name_key(name);
  for (const std::string_view form : {std::string_view(key), without_maker(key)}) {
    if (form.empty()) continue;
    std::vector<int>& positions = by_key_[std::string(form)];
    if (std::find(positions.begin(), positions.end(), position) == positions.end()) positions.push_back(position);
  }
}

std::span<const int> ModelNames::exact(std::string_view name) const {
  if (const auto id = by_id_.find(std::string(name)); id != by_id_.end()) return id->second;
  const std::string key = name_key(name);
  auto found = by_key_.find(key);
  if (found == by_key_.end()) found = by_key_.find(std::string(without_maker(key)));
  if (found == by_key_.end()) return {};
  return found->second;
}

std::vector<int> ModelNames::starting_with(std::string_view name) const {
  std::vector<int> out;
  const std::string key = name_key(name);
  if (key.size() < 2) return out;
  for (auto at = std::lower_bound(keys_.begin(), keys_.end(), key); at != keys_.end() && at->starts_with(key); ++at)
    for (const int position : by_key_.at(*at))
      if (std::find(out.begin(), out.end(), position) == out.end()) out.push_back(position);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::string> ModelNames::nearest(std::string_view name) const {
  std::vector<std::string> out;
  const auto offer = [&](const std::string& id) {
    if (out.size() < 3 && std::find(out.begin(), out.end(), id) == out.end()) out.push_back(id);
  };
  for (const int position : starting_with(name)) offer(ids_[static_cast<std::size_t>(position)]);
  for (const std::string& key : nearest_names(without_maker(name_key(name)), keys_, 3))
    for (const int position : by_key_.at(key)) offer(ids_[static_cast<std::size_t>(position)]);
  return out;
}

}  // namespace fathom::model
