// Catalog entries with their computed sizes: for people and as JSON for programs.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "model/catalog.h"
#include "model/sizes.h"

namespace fathom::model {

/// What the entry's configuration comes to. An entry that a user wrote may name what Fathom cannot size: that is its
/// error.
Result<SizedModel> size_entry(const ModelEntry& entry);

/// Everything that the catalog says of the entry, its configuration as an object, in the form of data/models; the
/// tokenizer; and what is computed: "parameters_total", "parameters_main", "parameters_active", "checkpoint_bytes",
/// "kv_bytes_per_token" and "kv_fixed_bytes" (objects by format), or "sizes_error" instead.
std::string entry_json(const ModelEntry& entry);
/// {"models": […]}: the same without configurations.
std::string list_json(std::span<const ModelEntry* const> entries);

/// One line of what is known of an entry.
struct EntryFigure {
  enum class From { kCatalog, kPublished, kComputed, kUser };
  std::string key;        // a text key under cli.models, or its own name
  std::string precision;  // of a cache figure
  std::string value;
  From from = From::kCatalog;
  std::string file;  // kUser
};
std::vector<EntryFigure> entry_figures(const ModelEntry& entry);

}  // namespace fathom::model
