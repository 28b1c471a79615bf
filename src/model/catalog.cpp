#include "model/catalog.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/embedded.h"
#include "base/strings.h"
#include "model/catalog_describe.h"
#include "model/catalog_load.h"
#include "model/catalog_match.h"

namespace fathom::model {
namespace {

constexpr std::uint64_t kMaxUserFile = 4 * kMiB;
constexpr std::string_view kFolder = "models/";
constexpr std::size_t kMaxCandidates = 12;

bool contains(std::string_view text, std::string_view part) {
  return to_lower(text).find(to_lower(part)) != std::string::npos;
}

// As published; of an entry without that (a user's), as computed; infinite when neither is known.
double parameters(const ModelEntry& model) {
  if (model.published_total) return *model.published_total;
  const auto sized = size_entry(model);
  return sized ? static_cast<double>(sized->sizes.parameters_main) : HUGE_VAL;
}

}  // namespace

Result<ModelCatalog> ModelCatalog::load(const Path& user_folder) {
  ModelCatalogLoader loader;
  for (const EmbeddedFile& file : embedded_files())
    if (file.path.starts_with(kFolder) && file.path.ends_with(".json"))
      FATHOM_TRY_VOID(loader.add(file.contents, std::string(file.path), /*user=*/false));
  std::error_code error;
  std::vector<Path> files;
  for (std::filesystem::directory_iterator it(user_folder / "models", error), end; !error && it != end;
       it.increment(error))
    if (it->path().extension() == ".json") files.push_back(it->path());
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    return fail("base.cannot_open", {{"path", (user_folder / "models").string()}, {"reason", error.message()}});
  std::sort(files.begin(), files.end());
  for (const Path& file : files) {
    FATHOM_TRY(const std::string text, read_file(file, kMaxUserFile));
    FATHOM_TRY_VOID(loader.add(text, file.string(), /*user=*/true));
  }
  return loader.build();
}

std::vector<const ModelEntry*> ModelCatalog::list(const ModelFilter& filter) const {
  std::vector<const ModelEntry*> out;
  for (const ModelEntry& model : models_) {
    const std::string text =
        join(std::vector<std::string>{model.id, model.family, model.model_type, model.architecture, model.license,
                                      model.native_dtype, model.notes, join(model.short_names)});
    bool found = contains(model.family, filter.family);
    for (const std::string_view word : split(filter.search, ' ')) found = found && contains(text, word);
    if (found && filter.max_params) found = parameters(model) <= *filter.max_params;
    if (found) out.push_back(&model);
  }
  return out;
}

Result<const ModelEntry*> ModelCatalog::find(std::string_view name) const {
  const std::span<const int> exact = names_->exact(name);
  if (exact.size() == 1) return &models_[static_cast<std::size_t>(exact[0])];
  const std::vector<int> several =
      exact.empty() ? names_->starting_with(name) : std::vector<int>(exact.begin(), exact.end());
  if (several.size() > 1) {
    std::vector<std::string> ids;
    for (const int position : several) ids.push_back(models_[static_cast<std::size_t>(position)].id);
    const std::string more = ids.size() > kMaxCandidates ? ", …" : "";
    ids.resize(std::min(ids.size(), kMaxCandidates));
    return fail("model_catalog.ambiguous", {{"name", printable(name)}, {"candidates", join(ids) + more}});
  }
  const std::vector<std::string> near = names_->nearest(name);
  if (near.empty()) return fail("model_catalog.unknown", {{"name", printable(name)}});
  return fail("model_catalog.unknown_near", {{"name", printable(name)}, {"near", join(near)}});
}

Result<const ModelCatalog*> model_catalog() {
  static const Result<ModelCatalog> catalog = ModelCatalog::load(user_folder());
  if (!catalog) return tl::unexpected<Error>(catalog.error());
  return &*catalog;
}

Result<const ModelEntry*> find_model(std::string_view name) {
  FATHOM_TRY(const ModelCatalog* catalog, model_catalog());
  return catalog->find(name);
}

Result<double> parse_parameter_count(std::string_view text) {
  const std::string_view whole = trim(text);
  double value = 0;
  const auto [end, error] = std::from_chars(whole.data(), whole.data() + whole.size(), value);
  const std::string unit = to_lower(trim(whole.substr(static_cast<std::size_t>(end - whole.data()))));
  const double scale = unit.empty()  ? 1
                       : unit == "k" ? 1e3
                       : unit == "m" ? 1e6
                       : unit == "b" ? 1e9
                       : unit == "t" ? 1e12
                                     : 0;
  value *= scale;
  if (error != std::errc() || !(value >= 1 && value <= 1e17))
    return fail("model_catalog.bad_count", {{"text", printable(text)}});
  return value;
}

}  // namespace fathom::model
