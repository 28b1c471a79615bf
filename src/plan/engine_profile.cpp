#include "plan/engine_profile.h"

#include <algorithm>
#include <memory>

#include "base/embedded.h"
#include "base/files.h"
#include "base/strings.h"
#include "plan/cost_data.h"

namespace fathom::plan {
namespace {

constexpr std::size_t kMaxProfileBytes = 1 << 20;

struct Source {
  std::string name;
  Json record;
};

/// Embedded profiles in the order of their files, then the user's engines/*.json.
Result<std::vector<Source>> profile_files() {
  std::vector<Source> files;
  for (const EmbeddedFile& file : embedded_files()) {
    if (!file.path.starts_with("engines/") || !file.path.ends_with(".json")) continue;
    FATHOM_TRY(Json record, parse_json(file.contents, file.path));
    files.push_back({std::string(file.path), std::move(record)});
  }
  std::error_code ignored;
  std::vector<Path> own;
  for (const auto& entry : std::filesystem::directory_iterator(user_folder() / "engines", ignored))
    if (entry.path().extension() == ".json") own.push_back(entry.path());
  std::sort(own.begin(), own.end());
  for (const Path& path : own) {
    FATHOM_TRY(std::string text, read_file(path, kMaxProfileBytes));
    FATHOM_TRY(Json record, parse_json(text, path.string()));
    files.push_back({path.string(), std::move(record)});
  }
  return files;
}

const Source* source_named(const std::vector<Source>& files, std::string_view name) {
  for (auto file = files.rbegin(); file != files.rend(); ++file)
    if (file->record.is_object() && file->record.value("name", "") == name) return &*file;
  return nullptr;
}

/// A profile starts from its base, and that one from its own.
Status fill(const std::vector<Source>& files, const Source& source, int depth, EngineProfile& out) {
  if (!source.record.is_object()) return fail("plan_cost.not_an_object", {{"file", source.name}});
  const Json base = source.record.value("base", Json());
  if (base.is_string() && !base.get<std::string>().empty()) {
    const Source* parent = source_named(files, base.get<std::string>());
    if (parent == nullptr || parent == &source || depth > 8)
      return fail("plan_cost.bad_base", {{"file", source.name}, {"base", base.get<std::string>()}});
    FATHOM_TRY_VOID(fill(files, *parent, depth + 1, out));
  }
  out.aliases.clear();
  out.default_for.clear();
  out.sources.clear();
  out.measured = false;
  return read_record(source.record, source.name, out);
}

Result<std::vector<EngineProfile>> load_profiles() {
  FATHOM_TRY(const std::vector<Source> files, profile_files());
  std::vector<EngineProfile> profiles;
  for (const Source& source : files) {
    EngineProfile profile;
    FATHOM_TRY_VOID(fill(files, source, 0, profile));
    if (profile.name.empty()) return fail("plan_cost.bad_field", {{"file", source.name}, {"field", "name"}});
    const auto same =
        std::find_if(profiles.begin(), profiles.end(), [&](const EngineProfile& p) { return p.name == profile.name; });
    if (same != profiles.end())
      *same = std::move(profile);  // the user's replaces ours
    else
      profiles.push_back(std::move(profile));
  }
  return profiles;
}

}  // namespace

Result<std::span<const EngineProfile>> engine_profiles() {
  static const Result<std::vector<EngineProfile>> profiles = load_profiles();
  if (!profiles) return tl::unexpected<Error>(profiles.error());
  return std::span<const EngineProfile>(*profiles);
}

Result<const EngineProfile*> find_engine(std::string_view name) {
  FATHOM_TRY(const auto profiles, engine_profiles());
  const std::string wanted = to_lower(trim(name));
  std::vector<std::string> names;
  for (const EngineProfile& profile : profiles) {
    if (profile.name == wanted ||
        std::find(profile.aliases.begin(), profile.aliases.end(), wanted) != profile.aliases.end())
      return &profile;
    names.push_back(profile.name);
  }
  return fail("plan_cost.unknown_engine", {{"name", printable(name)}, {"known", join(names)}});
}

Result<const EngineProfile*> default_engine(std::string_view task, bool on_cpu) {
  FATHOM_TRY(const auto profiles, engine_profiles());
  const std::string purpose = std::string(task) + (on_cpu ? " on cpu" : " on gpu");
  for (const EngineProfile& profile : profiles)
    if (std::find(profile.default_for.begin(), profile.default_for.end(), purpose) != profile.default_for.end())
      return &profile;
  return fail("plan_cost.no_default_engine", {{"purpose", purpose}});
}

}  // namespace fathom::plan
