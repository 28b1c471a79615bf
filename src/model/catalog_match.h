// From a name that a person wrote to an entry of the model catalog. Built once per catalog.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/catalog.h"

namespace fathom::model {

/// Lower case, without blanks, '-' and '_', and without "deepseek-ai/".
std::string name_key(std::string_view name);

/// The short names of an entry: the end of its id without the maker ("r1"), then those of the data file.
std::vector<std::string> accepted_names(const ModelEntry& model);

class ModelNames {
 public:
  explicit ModelNames(std::span<const ModelEntry> models);
  /// Positions of the entries that have this very name: one, several when it is ambiguous, or none.
  std::span<const int> exact(std::string_view name) const;
  /// Positions of the entries that have a name beginning so.
  std::vector<int> starting_with(std::string_view name) const;
  /// Ids worth suggesting.
  std::vector<std::string> nearest(std::string_view name) const;

 private:
  void add(std::string_view name, int position);

  std::vector<std::string> ids_, keys_;  // keys_ sorted
  std::unordered_map<std::string, std::vector<int>> by_id_,
      by_key_;  // an id, written exactly, wins over every other name
};

}  // namespace fathom::model
