// Catalog entries as JSON for programs.
#pragma once
#include <span>
#include <string>

#include "model/catalog.h"

namespace fathom::model {

/// Everything that the catalog says of the entry, its configuration as an object; the form of data/models, plus the tokenizer.
std::string entry_json(const ModelEntry& entry);
/// {"models": […]}: the same without configurations.
std::string list_json(std::span<const ModelEntry* const> entries);

}  // namespace fathom::model
