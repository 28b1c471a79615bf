#include "hardware/catalog.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/embedded.h"
#include "base/strings.h"
#include "hardware/catalog_load.h"
#include "hardware/catalog_match.h"

namespace fathom::hardware {
namespace {

constexpr std::uint64_t kMaxUserFile = 4 * kMiB;
constexpr std::string_view kFolder = "hardware/";

bool listed(const std::vector<std::string>& paths, std::string_view path) {
  return std::any_of(paths.begin(), paths.end(), [&](const std::string& one) {
    return one == "*" || one == path || (path.starts_with(one) && path.size() > one.size() && path[one.size()] == '.');
  });
}

bool contains(const std::string& text, std::string_view part) {
  return to_lower(text).find(to_lower(part)) != std::string::npos;
}

// Every blank-separated word of `search` occurs in `text`.
bool has_words(const std::string& text, const std::string& search) {
  for (const std::string_view word : split(search, ' '))
    if (!contains(text, word)) return false;
  return true;
}

template <class Record>
Result<const Record*> find_by_id(std::span<const Record> records, std::string_view name, const char* error_key) {
  std::vector<std::string> ids;
  const std::string wanted = name_parts(name).squeezed;
  for (const Record& record : records) {
    if (record.id == name || name_parts(record.id).squeezed == wanted || name_parts(record.name).squeezed == wanted)
      return &record;
    ids.push_back(record.id);
  }
  const auto near = nearest_names(name, ids, 4);
  return fail(error_key, {{"name", printable(name)}, {"near", join(near.empty() ? ids : near)}});
}

std::string candidate_text(const Accelerator& a) {
  return fmt::format("{} ({:.4g} GB)", a.id,
                     static_cast<double>(a.memory.marketed_bytes.value_or(a.usable_memory_bytes())) / kGB);
}

// Usable bytes when a size is named or seen and the memory is of that size: the catalog's share of it.
Bytes usable_of(const Accelerator& a, Bytes memory_bytes, double named_gb) {
  const Bytes usable = a.usable_memory_bytes();
  if (!a.memory.configurable || !a.memory.marketed_bytes) return usable;
  const double largest_gib = static_cast<double>(*a.memory.marketed_bytes) / kGB * static_cast<double>(kGiB);
  const double size = memory_bytes > 0 ? static_cast<double>(memory_bytes) : named_gb * static_cast<double>(kGiB);
  if (size <= 0 || size >= largest_gib) return usable;
  return static_cast<Bytes>(static_cast<double>(usable) * (size / largest_gib));
}

}  // namespace

std::string_view precision_name(Precision precision) {
  static constexpr std::string_view names[kPrecisionCount] = {"fp32", "tf32", "fp16", "bf16",
                                                              "fp8",  "int8", "fp4",  "int4"};
  return names[static_cast<int>(precision)];
}

std::optional<Precision> parse_precision(std::string_view name) {
  for (int i = 0; i < kPrecisionCount; ++i)
    if (to_lower(name) == precision_name(static_cast<Precision>(i))) return static_cast<Precision>(i);
  return std::nullopt;
}

bool Provenance::is_unverified(std::string_view path) const { return listed(unverified, path); }
bool Provenance::is_link_lost(std::string_view path) const { return listed(link_lost, path); }

Bytes Accelerator::usable_memory_bytes() const {
  constexpr double kRounding = 0.05 * static_cast<double>(kGiB);  // usable figures are given to two digits
  if (memory.usable_bytes && memory.reported_bytes) {
    const double apart = static_cast<double>(*memory.usable_bytes) - static_cast<double>(*memory.reported_bytes);
    return apart < kRounding && apart > -kRounding ? *memory.reported_bytes : *memory.usable_bytes;
  }
  if (memory.usable_bytes) return *memory.usable_bytes;
  if (memory.reported_bytes) return *memory.reported_bytes;
  if (!memory.marketed_bytes) return 0;
  // Labels of such memories count in powers of two, whatever they call it: every record that has both says so.
  return static_cast<Bytes>(static_cast<double>(*memory.marketed_bytes) / kGB * static_cast<double>(kGiB));
}

int Accelerator::devices_per_node(int devices) const {
  return node.devices > 1 ? node.devices : std::clamp(devices, 1, node.host_slots);
}

Result<Catalog> Catalog::load(const Path& user_folder) {
  CatalogLoader loader;
  for (const EmbeddedFile& file : embedded_files())
    if (file.path.starts_with(kFolder) && file.path.ends_with(".json"))
      FATHOM_TRY_VOID(loader.add(file.contents, std::string(file.path), /*user=*/false));
  std::error_code error;
  std::vector<Path> files;
  for (std::filesystem::directory_iterator it(user_folder / "hardware", error), end; !error && it != end;
       it.increment(error))
    if (it->path().extension() == ".json") files.push_back(it->path());
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    return fail("base.cannot_open", {{"path", (user_folder / "hardware").string()}, {"reason", error.message()}});
  std::sort(files.begin(), files.end());
  for (const Path& file : files) {
    FATHOM_TRY(const std::string text, read_file(file, kMaxUserFile));
    FATHOM_TRY_VOID(loader.add(text, file.string(), /*user=*/true));
  }
  return loader.build();
}

const Source* Catalog::source(std::string_view id) const {
  const auto found = std::find_if(sources_.begin(), sources_.end(), [&](const Source& s) { return s.id == id; });
  return found == sources_.end() ? nullptr : &*found;
}

Result<HardwareChoice> Catalog::find(std::string_view name, Bytes memory_bytes) const {
  const NameIndex::Match match = names_->match(name, memory_bytes);
  std::vector<std::string> candidates;
  for (const int position : match.candidates)
    candidates.push_back(candidate_text(accelerators_[static_cast<std::size_t>(position)]));
  if (candidates.size() > 12) candidates.resize(12);
  const std::string shown = printable(name);
  switch (match.outcome) {
    case NameIndex::Outcome::kFound: {
      const Accelerator& found = accelerators_[static_cast<std::size_t>(match.candidates.front())];
      return HardwareChoice{.accelerator = &found,
                            .usable_bytes = usable_of(found, memory_bytes, match.named_memory_gb)};
    }
    case NameIndex::Outcome::kAmbiguous:
      return fail("hardware_catalog.ambiguous", {{"name", shown}, {"candidates", join(candidates)}});
    case NameIndex::Outcome::kWrongMemory:
      return fail("hardware_catalog.wrong_memory", {{"name", shown}, {"candidates", join(candidates)}});
    case NameIndex::Outcome::kNeedsMemory:
      return fail("hardware_catalog.shared_name", {{"name", shown}, {"candidates", join(candidates)}});
    case NameIndex::Outcome::kUnknown:
      break;
  }
  const std::vector<std::string> near = names_->suggestions(name);
  if (near.empty()) return fail("hardware_catalog.unknown", {{"name", shown}});
  return fail("hardware_catalog.unknown_near", {{"name", shown}, {"near", join(near)}});
}

Result<HardwareChoice> Catalog::parse(std::string_view text) const {
  text = trim(text);
  const auto found_alone = [&](std::string_view name) {
    return names_->match(name, 0).outcome != NameIndex::Outcome::kUnknown;
  };
  if (found_alone(text)) return find(text);
  if (const auto position = names_->offer(text)) {
    const CloudOffer& offer = offers_[static_cast<std::size_t>(*position)];
    FATHOM_TRY(HardwareChoice choice, find(offer.accelerator));
    choice.count = offer.devices;
    choice.offer = &offer;
    return choice;
  }
  const auto counted = split_count(text);
  if (!counted) return find(text);
  if (counted->count == 0) return fail("hardware_catalog.bad_count", {{"text", printable(text)}});
  FATHOM_TRY(HardwareChoice choice, find(counted->rest));
  choice.count = counted->count;
  return choice;
}

std::vector<const Accelerator*> Catalog::list(const HardwareFilter& filter) const {
  std::vector<const Accelerator*> out;
  for (const Accelerator& a : accelerators_) {
    const Bytes memory = std::max(a.memory.marketed_bytes.value_or(0), a.usable_memory_bytes());
    const std::string text =
        join(std::vector<std::string>{a.id, a.vendor, a.name, a.arch, a.form, a.memory.kind, join(a.driver_names),
                                      join(a.short_names), join(a.shared_names)});
    if (contains(a.vendor, filter.vendor) && contains(a.arch, filter.arch) && has_words(text, filter.search) &&
        memory >= filter.min_memory_bytes)
      out.push_back(&a);
  }
  return out;
}

Result<const Cpu*> Catalog::find_cpu(std::string_view name) const {
  if (const auto position = names_->cpu(name)) return &cpus_[static_cast<std::size_t>(*position)];
  return find_by_id(cpus(), name, "hardware_catalog.unknown_cpu");
}
Result<const Link*> Catalog::find_link(std::string_view name) const {
  return find_by_id(links(), name, "hardware_catalog.unknown_link_name");
}
Result<const Storage*> Catalog::find_storage(std::string_view name) const {
  return find_by_id(storage(), name, "hardware_catalog.unknown_storage");
}

Result<const CloudOffer*> Catalog::find_offer(std::string_view name) const {
  if (const auto position = names_->offer(name)) return &offers_[static_cast<std::size_t>(*position)];
  std::vector<std::string> ids;
  for (const CloudOffer& offer : offers_) ids.push_back(offer.id);
  const auto near = nearest_names(name, ids, 4);
  return fail("hardware_catalog.unknown_offer", {{"name", printable(name)}, {"near", join(near.empty() ? ids : near)}});
}

Result<const Catalog*> hardware_catalog() {
  static const Result<Catalog> catalog = Catalog::load(user_folder());
  if (!catalog) return tl::unexpected<Error>(catalog.error());
  return &*catalog;
}

Result<HardwareChoice> parse_hardware(std::string_view text) {
  FATHOM_TRY(const Catalog* catalog, hardware_catalog());
  return catalog->parse(text);
}

}  // namespace fathom::hardware
