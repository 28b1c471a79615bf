// fathom hardware: what the hardware catalog knows.
#include <cstdio>
#include <string>

#include "base/i18n.h"
#include "base/strings.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "hardware/catalog.h"
#include "hardware/catalog_describe.h"

namespace fathom::cli {
namespace {

using namespace fathom::hardware;  // NOLINT: this file is a view of that room

constexpr int kWidestValue = 64;

struct HardwareFlags {
  bool cpus = false, links = false, storage = false, cloud = false;
  std::string vendor, arch, search, min_memory;
  std::vector<std::string> words;  // of the name: "rtx 4090" needs no quotes
  FlagSet show;
} hardware_flags;

std::string text(const char* key) { return tr(std::string("cli.hardware.") + key); }
Column left(const char* key) { return {text(key), Align::kLeft}; }
Column right(const char* key) { return {text(key), Align::kRight}; }
// The text of `word` in a small set of words, or the word itself where a user wrote another.
std::string worded(const std::string& set, const std::string& word) {
  const std::string key = "cli.hardware." + set + "." + word;
  const std::string found = tr(key);
  return found == key ? word : found;
}
std::string confidence(const Provenance& from) { return worded("confidence", from.confidence); }

// "2024-03 (announced, barely shipped)" -> "2024-03": show tells the rest.
std::string date_of(const std::string& launched) { return launched.substr(0, launched.find_first_of(" ;")); }

void print(const Table& table) { std::fputs(table.render().c_str(), stdout); }

void list_accelerators(std::span<const Accelerator* const> list) {
  Table table({left("id"), left("vendor"), right("memory"), right("usable"), right("bandwidth"), right("peak16"),
               right("peak8"), right("tdp"), left("launched"), left("sure")});
  for (const Accelerator* a : list) {
    const auto peak16 = a->peak(Precision::bf16) ? a->peak(Precision::bf16) : a->peak(Precision::fp16);
    const auto peak8 = a->peak(Precision::fp8) ? a->peak(Precision::fp8) : a->peak(Precision::int8);
    table.add_row({a->id, a->vendor, in_unit(a->memory.marketed_bytes, Unit::kGB),
                   format_bytes(a->usable_memory_bytes()),
                   in_unit(a->memory.bandwidth_bytes_per_second, Unit::kGBPerSecond), in_unit(peak16, Unit::kTflops),
                   in_unit(peak8, Unit::kTflops), in_unit(a->tdp_watts, Unit::kWatt), date_of(a->launched),
                   confidence(a->provenance)});
  }
  print(table);
  std::printf("%s\n", tr("cli.hardware.footer", {{"count", std::to_string(list.size())}}).c_str());
}

void list_cpus(std::span<const Cpu> list) {
  Table table({left("id"), left("name"), right("cores"), right("threads"), left("ddr"), right("peak_bandwidth"),
               right("sustained"), left("isa"), left("sure")});
  for (const Cpu& c : list) {
    const std::string isa = c.isa + (c.avx2 ? " AVX2" : "") + (c.avx512 ? " AVX-512" : "") + (c.amx ? " AMX" : "");
    table.add_row({c.id, c.name, in_unit(c.cores, Unit::kNone), in_unit(c.threads, Unit::kNone), c.ddr,
                   in_unit(c.peak_bytes_per_second, Unit::kGBPerSecond),
                   in_unit(c.sustained_bytes_per_second, Unit::kGBPerSecond), isa, confidence(c.provenance)});
  }
  print(table);
}

void list_links(std::span<const Link> list) {
  Table table({left("id"), left("name"), left("kind"), right("each_way"), right("latency"), left("sure")});
  for (const Link& l : list)
    table.add_row({l.id, l.name, worded("kind", l.kind), in_unit(l.bytes_per_second, Unit::kGBPerSecond),
                   in_range(l.latency_low_seconds, l.latency_high_seconds, Unit::kMicroseconds),
                   confidence(l.provenance)});
  print(table);
}

void list_storage(std::span<const Storage> list) {
  Table table({left("id"), left("name"), right("read"), right("read_range"), left("sure")});
  for (const Storage& s : list)
    table.add_row({s.id, s.name, in_unit(s.read_bytes_per_second, Unit::kGBPerSecond),
                   in_range(s.read_low_bytes_per_second, s.read_high_bytes_per_second, Unit::kGBPerSecond),
                   confidence(s.provenance)});
  print(table);
}

void list_offers(std::span<const CloudOffer> list) {
  Table table({left("id"), right("devices"), left("accelerator"), right("on_demand"), right("spot"), left("region"),
               left("price_date"), left("sure")});
  for (const CloudOffer& o : list)
    table.add_row({o.id, std::to_string(o.devices), o.accelerator, in_unit(o.on_demand_usd_per_hour, Unit::kUsd),
                   in_unit(o.spot_usd_per_hour, Unit::kUsd), o.region, o.date, confidence(o.provenance)});
  print(table);
}

std::string trust_text(const Figure& figure, const Provenance& from) {
  switch (figure.trust) {
    case Trust::kUser:
      return tr("cli.hardware.trust.user", {{"file", figure.file}});
    case Trust::kUnverified:
      return text("trust.unverified");
    case Trust::kLinkLost:
      return text("trust.link_lost");
    case Trust::kSourced:
      break;
  }
  return confidence(from);
}

// "hardware_catalog.field.peak_dense_tflops" + " bf16" for the paths of an open set of names.
std::string label(const std::string& path) {
  const std::string key = "hardware_catalog.field." + path;
  if (const std::string found = tr(key); found != key) return found;
  const std::size_t dot = path.find('.');
  return tr("hardware_catalog.field." + path.substr(0, dot)) + " " + path.substr(dot + 1);
}

std::string cross_check_text(const Provenance& from) {
  const std::string key = "cli.hardware.cross_check." + from.cross_check;
  const std::string found = tr(key, {{"fields", from.cross_check_fields}});
  return found == key ? from.cross_check + ": " + from.cross_check_fields : found;
}

template <class Record>
void show(const Catalog& catalog, const Record& record, bool json) {
  if (json) {
    std::printf("%s\n", record_json(catalog, record).c_str());
    return;
  }
  std::printf("%s\n\n", styled(Style::kBold, title_of(record)).c_str());
  Table table({left("figure"), left("value"), left("sure")});
  std::string remarks;  // what is too long for a table
  for (const Figure& figure : figures(record)) {
    if (display_width(figure.value) <= kWidestValue)
      table.add_row({label(figure.path), figure.value, trust_text(figure, record.provenance)});
    else
      remarks += "\n" + label(figure.path) + ": " + figure.value + "\n";
  }
  print(table);
  std::fputs(remarks.c_str(), stdout);
  const Provenance& from = record.provenance;
  std::printf("\n%s\n", tr("cli.hardware.as_of", {{"date", from.as_of}, {"confidence", confidence(from)}}).c_str());
  if (!from.cross_check.empty()) std::printf("%s\n", cross_check_text(from).c_str());
  if (!from.sources.empty()) std::printf("%s\n", text("sources").c_str());
  for (const std::string& id : from.sources) {
    const Source* source = catalog.source(id);
    if (source == nullptr)
      std::printf("  %s\n", id.c_str());
    else
      std::printf("  %s (%s, %s): %s\n    %s\n", id.c_str(), source->tier.c_str(), source->date.c_str(),
                  source->what.c_str(), source->url.c_str());
  }
}

Result<int> show_one(const Catalog& catalog, bool json) {
  const std::string name = join(hardware_flags.words, " ");
  const bool any = !(hardware_flags.cpus || hardware_flags.links || hardware_flags.storage || hardware_flags.cloud);
  const auto accelerator = catalog.find(name);
  if (any && accelerator) {
    show(catalog, *accelerator->accelerator, json);
    return kExitOk;
  }
  const auto try_show = [&](bool wanted, const auto& found) {
    if ((wanted || any) && found) show(catalog, **found, json);
    return (wanted || any) && found.has_value();
  };
  const auto cpu = catalog.find_cpu(name);
  const auto link = catalog.find_link(name);
  const auto disk = catalog.find_storage(name);
  const auto offer = catalog.find_offer(name);
  if (try_show(hardware_flags.cpus, cpu) || try_show(hardware_flags.links, link) ||
      try_show(hardware_flags.storage, disk) || try_show(hardware_flags.cloud, offer))
    return kExitOk;
  if (hardware_flags.cpus) return tl::unexpected<Error>(cpu.error());
  if (hardware_flags.links) return tl::unexpected<Error>(link.error());
  if (hardware_flags.storage) return tl::unexpected<Error>(disk.error());
  if (hardware_flags.cloud) return tl::unexpected<Error>(offer.error());
  return tl::unexpected<Error>(accelerator.error());
}

Result<HardwareFilter> filter_from_options() {
  HardwareFilter filter{.vendor = hardware_flags.vendor, .arch = hardware_flags.arch, .search = hardware_flags.search};
  if (!hardware_flags.min_memory.empty() && !parse_bytes(hardware_flags.min_memory, filter.min_memory_bytes))
    return fail("cli.hardware.bad_memory", {{"text", printable(hardware_flags.min_memory)}});
  return filter;
}

template <class Record, class Print>
void list_matching(std::span<const Record> all, bool json, Print print_list) {
  const std::vector<Record> found = matching(all, hardware_flags.search);
  if (json)
    std::printf("%s\n", list_json(std::span<const Record>(found)).c_str());
  else
    print_list(std::span<const Record>(found));
}

}  // namespace

void setup_hardware(FlagSet& verb) {
  const Flag cpus = verb.flag("--cpus", hardware_flags.cpus, text("cpus"));
  const Flag links = verb.flag("--links", hardware_flags.links, text("links")).excludes(cpus);
  const Flag storage = verb.flag("--storage", hardware_flags.storage, text("storage")).excludes(cpus).excludes(links);
  verb.flag("--cloud", hardware_flags.cloud, text("cloud")).excludes(cpus).excludes(links).excludes(storage);
  verb.option("--vendor", hardware_flags.vendor, text("vendor_flag"));
  verb.option("--arch", hardware_flags.arch, text("arch_flag"));
  verb.option("--min-memory", hardware_flags.min_memory, text("min_memory"));
  verb.option("--search", hardware_flags.search, text("search"));
  hardware_flags.show = verb.sub_verb("show", text("show"));
  hardware_flags.show.option("ID", hardware_flags.words, text("name_flag")).required();
}

Result<int> run_hardware(const Common& common) {
  FATHOM_TRY(const Catalog* catalog, hardware_catalog());
  if (hardware_flags.show.given()) return show_one(*catalog, common.json);
  if (hardware_flags.cpus)
    list_matching(catalog->cpus(), common.json, list_cpus);
  else if (hardware_flags.links)
    list_matching(catalog->links(), common.json, list_links);
  else if (hardware_flags.storage)
    list_matching(catalog->storage(), common.json, list_storage);
  else if (hardware_flags.cloud)
    list_matching(catalog->offers(), common.json, list_offers);
  else {
    FATHOM_TRY(const HardwareFilter filter, filter_from_options());
    const auto list = catalog->list(filter);
    if (common.json)
      std::printf("%s\n", hardware::list_json(list).c_str());
    else
      list_accelerators(list);
  }
  return kExitOk;
}

}  // namespace fathom::cli
