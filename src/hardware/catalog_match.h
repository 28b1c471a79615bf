// From a name that a person or a driver wrote to a record. Built once per catalog.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hardware/catalog.h"

namespace fathom::hardware {

/// A name taken apart: "NVIDIA A100-SXM4-80GB" is core "a100", form "sxm", 80 GB.
struct NameParts {
  std::string core;      // what is left, in lower case without blanks, dashes and the maker's name
  std::string squeezed;  // all of it, the same way: "a100sxm480gb"
  std::string form;      // "sxm", "pcie", "nvl", "oam", "superchip" or empty
  std::string kind;      // "hbm3": memory named by its kind, or empty
  double memory_gb = 0;  // "80GB", "80g": as written, whatever its gigabyte; 0 when none is named
};
NameParts name_parts(std::string_view name);

/// "8xH100-SXM" -> {8, "H100-SXM"}; "H100 x8" too. Nullopt when there is no count; a count of 0 or above 100000 is kept
/// as 0.
struct Counted {
  int count;
  std::string_view rest;
};
std::optional<Counted> split_count(std::string_view text);

class NameIndex {
 public:
  explicit NameIndex(const Catalog& catalog);

  enum class Outcome { kFound, kAmbiguous, kWrongMemory, kNeedsMemory, kUnknown };
  struct Match {
    Outcome outcome = Outcome::kUnknown;
    std::vector<int> candidates;  // positions in accelerators(); one when found
    double named_memory_gb = 0;
  };
  /// `memory_bytes` 0: not known.
  Match match(std::string_view name, Bytes memory_bytes) const;
  /// Ids worth suggesting for a name that is not known.
  std::vector<std::string> suggestions(std::string_view name) const;

  std::optional<int> offer(std::string_view name) const;
  std::optional<int> cpu(std::string_view name) const;

 private:
  using Table = std::unordered_map<std::string, std::vector<int>>;
  const Accelerator& at(int position) const { return accelerators_[static_cast<std::size_t>(position)]; }
  std::vector<int> same_core(const NameParts& parts, Bytes memory_bytes) const;
  std::vector<int> starting_with(const std::string& squeezed) const;
  bool fits(int position, Bytes memory_bytes, double named_gb, bool strict) const;
  std::vector<int> fitting(const std::vector<int>& positions, Bytes memory_bytes, double named_gb, bool strict) const;

  std::span<const Accelerator> accelerators_;  // of the catalog that owns this index; moves with its vector's storage
  std::vector<std::string> ids_;
  Table exact_, core_, shared_;                 // squeezed name, core, name shared with other products
  std::vector<std::string> keys_;               // of exact_, sorted, for prefixes and suggestions
  std::unordered_map<std::string, int> by_id_;  // an id, written exactly, wins over every other name
  std::unordered_map<std::string, int> offers_, cpus_;
};

}  // namespace fathom::hardware
