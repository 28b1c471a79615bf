#include "hardware/catalog_load.h"

#include <algorithm>
#include <array>

#include "base/strings.h"
#include "hardware/catalog_match.h"
#include "hardware/catalog_reader.h"

namespace fathom::hardware {
namespace {

constexpr std::array<std::string_view, 6> kSections = {"accelerators", "cpus", "links", "storage", "offers", "sources"};
// What `fathom hardware show ID --json` adds to a record: a user may paste it back whole.
constexpr std::array<std::string_view, 5> kDerived = {"usable_memory_bytes", "memory_bandwidth_bytes_per_second",
                                                      "peak_dense_flops", "source_details", "overridden"};
constexpr std::size_t kMaxRecords = 10'000;  // of one section; far above what a person writes

bool good_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._+-/").find(c) != std::string_view::npos;
  });
}

void collect_paths(const Json& value, const std::string& prefix, const std::string& file,
                   std::map<std::string, std::string>& out) {
  for (const auto& [key, item] : value.items()) {
    if (prefix.empty() && key == "id") continue;
    if (item.is_object())
      collect_paths(item, prefix + key + ".", file, out);
    else
      out[prefix + key] = file;
  }
}

std::string record_name(const std::string& section, std::string_view id, const std::string& file) {
  return file + ": " + section + " '" + printable(id) + "'";
}

void attach(Source&, std::string, std::map<std::string, std::string>) {}
template <class Record>
void attach(Record& record, std::string text, std::map<std::string, std::string> overridden) {
  record.record = std::move(text);
  record.provenance.overridden = std::move(overridden);
}

}  // namespace

Status CatalogLoader::add(std::string_view text, const std::string& what, bool user) {
  FATHOM_TRY(const Json root, parse_json(text, what));
  if (!root.is_object()) return fail("hardware_catalog.not_an_object", {{"what", what}});
  FATHOM_TRY(const auto as_of, json_string(root, "as_of", what));
  for (const auto& [key, value] : root.items()) {
    if (key == "about" || key == "as_of") continue;
    if (std::find(kSections.begin(), kSections.end(), key) == kSections.end())
      return fail("hardware_catalog.unknown_section", {{"what", what}, {"field", printable(key)}});
    if (!value.is_array()) return fail("hardware_catalog.section_not_list", {{"what", what}, {"field", key}});
    for (const Json& record : value) FATHOM_TRY_VOID(add_record(key, record, what, as_of.value_or(""), user));
  }
  return {};
}

Status CatalogLoader::add_record(const std::string& section, const Json& given, const std::string& what,
                                 const std::string& as_of, bool user) {
  if (!given.is_object()) return fail("hardware_catalog.record_not_object", {{"what", what}, {"field", section}});
  const auto id = given.find("id");
  if (id == given.end() || !id->is_string() || !good_id(id->get_ref<const std::string&>()))
    return fail("hardware_catalog.bad_id", {{"what", what}, {"field", section}});
  const std::string name = id->get<std::string>();
  Json record = given;
  for (const std::string_view key : kDerived) record.erase(std::string(key));
  Section& into = sections_[section];
  const auto known = into.by_id.find(name);
  if (known == into.by_id.end()) {
    if (into.entries.size() >= kMaxRecords)
      return fail("hardware_catalog.too_many", {{"what", what}, {"field", section}});
    into.by_id.emplace(name, into.entries.size());
    into.entries.push_back({record, record_name(section, name, what), {}});
  } else {
    if (!user) return fail("hardware_catalog.twice", {{"what", what}, {"id", name}});
    Entry& entry = into.entries[known->second];
    entry.record.merge_patch(record);
    entry.what = record_name(section, name, what);
  }
  Entry& entry = into.entries[into.by_id.find(name)->second];
  if (user) collect_paths(record, "", what, entry.overridden);
  if (section == "sources") return {};
  Json& provenance = entry.record["provenance"];
  if (provenance.is_null()) provenance = Json::object();
  if (!provenance.is_object()) return {};  // its reader says so
  if (!as_of.empty() && !provenance.contains("as_of")) provenance["as_of"] = as_of;
  if (user && !provenance.contains("confidence")) provenance["confidence"] = "user";
  return {};
}

template <class Record>
Result<std::vector<Record>> CatalogLoader::read(const std::string& section) {
  std::vector<Record> out;
  for (Entry& entry : sections_[section].entries) {
    Record record;
    RecordReader reader(entry.record, entry.what);
    visit(record, reader);
    FATHOM_TRY_VOID(reader.finish());
    attach(record, dump_json(entry.record), std::move(entry.overridden));
    out.push_back(std::move(record));
  }
  return out;
}

// What must be there, and the figures that follow from the links.
Status CatalogLoader::check_accelerators(Catalog& catalog) {
  for (std::size_t i = 0; i < catalog.accelerators_.size(); ++i) {
    Accelerator& a = catalog.accelerators_[i];
    const std::string& what = sections_["accelerators"].entries[i].what;
    if (a.name.empty() || a.vendor.empty())
      return fail("hardware_catalog.missing_field", {{"what", what}, {"field", a.name.empty() ? "name" : "vendor"}});
    if (a.usable_memory_bytes() == 0)
      return fail("hardware_catalog.missing_field", {{"what", what}, {"field", "memory.marketed_gb"}});
    const auto link_rate = [&](const std::string& id, const char* field) -> Result<std::optional<double>> {
      if (id.empty()) return std::nullopt;
      for (const Link& link : catalog.links_)
        if (link.id == id) return link.bytes_per_second;
      return fail("hardware_catalog.unknown_link", {{"what", what}, {"field", field}, {"id", printable(id)}});
    };
    FATHOM_TRY(const auto intra, link_rate(a.node.intra_link, "node.intra_link"));
    FATHOM_TRY(const auto inter, link_rate(a.node.inter_link, "node.inter_link"));
    if (!a.node.intra_bytes_per_second) a.node.intra_bytes_per_second = intra;
    if (inter) a.node.inter_bytes_per_second = *inter * a.node.inter_ports.value_or(1);
    a.node.domain = std::max(a.node.domain, 1);
  }
  return {};
}

Status CatalogLoader::check_offers(const Catalog& catalog) {
  for (std::size_t i = 0; i < catalog.offers_.size(); ++i) {
    const CloudOffer& offer = catalog.offers_[i];
    const auto known = std::any_of(catalog.accelerators_.begin(), catalog.accelerators_.end(),
                                   [&](const Accelerator& a) { return a.id == offer.accelerator; });
    if (!known)
      return fail("hardware_catalog.unknown_offer_accelerator",
                  {{"what", sections_["offers"].entries[i].what}, {"id", printable(offer.accelerator)}});
  }
  return {};
}

Result<Catalog> CatalogLoader::build() {
  Catalog catalog;
  FATHOM_TRY(catalog.sources_, read<Source>("sources"));
  FATHOM_TRY(catalog.links_, read<Link>("links"));
  FATHOM_TRY(catalog.accelerators_, read<Accelerator>("accelerators"));
  FATHOM_TRY(catalog.cpus_, read<Cpu>("cpus"));
  FATHOM_TRY(catalog.storage_, read<Storage>("storage"));
  FATHOM_TRY(catalog.offers_, read<CloudOffer>("offers"));
  FATHOM_TRY_VOID(check_accelerators(catalog));
  FATHOM_TRY_VOID(check_offers(catalog));
  catalog.names_ = std::make_shared<const NameIndex>(catalog);
  return catalog;
}

}  // namespace fathom::hardware
