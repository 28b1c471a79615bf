#include "hardware/catalog_describe.h"

#include <fmt/format.h>

#include "base/json.h"
#include "base/strings.h"

namespace fathom::hardware {
namespace {

std::string plain(double value) { return fmt::format("{:.6g}", value); }

std::string with_unit(double base, Unit unit) {
  const std::string_view name = unit_name(unit);
  std::string text = plain(base / unit_scale(unit));
  if (!name.empty()) text.append(" ").append(name);
  if (unit == Unit::kMiB && base >= static_cast<double>(kGiB))
    text += fmt::format(" ({:.2f} GiB)", base / static_cast<double>(kGiB));
  if (unit == Unit::kGB) text += fmt::format(" ({:.2f} GiB)", base / static_cast<double>(kGiB));
  return text;
}

// Collects the figures of a record; what identifies it and its provenance are shown elsewhere.
class Describer final : public FieldVisitor {
 public:
  explicit Describer(const Provenance& provenance) : provenance_(provenance) {}

  void text(std::string_view path, std::string& value) override {
    if (!value.empty() && path != "id" && path != "name" && !path.starts_with("provenance.")) add(path, value);
  }
  void texts(std::string_view path, std::vector<std::string>& value) override {
    if (!value.empty() && !path.starts_with("provenance.")) add(path, join(value));
  }
  void number(std::string_view path, Unit unit, std::optional<double>& value) override {
    if (!value) return;
    const bool integers = path.ends_with(".int8") || path.ends_with(".int4");
    add(path, integers ? plain(*value / unit_scale(unit)) + " TOPS" : with_unit(*value, unit));
  }
  void bytes(std::string_view path, Unit unit, std::optional<Bytes>& value) override {
    if (value) add(path, with_unit(static_cast<double>(*value), unit));
  }
  void integer(std::string_view path, std::optional<int>& value) override {
    if (value) add(path, std::to_string(*value));
  }
  void count(std::string_view path, int& value, int smallest) override {
    if (value > smallest || path == "node.devices" || path == "devices") add(path, std::to_string(value));
  }
  void flag(std::string_view path, bool& value) override {
    const bool usual = path == "advise";  // shown only when it is not as usual
    if (value != usual) add(path, value ? "true" : "false");
  }
  void range(std::string_view path, Unit unit, std::optional<double>& low, std::optional<double>& high) override {
    if (low && high) add(path, plain(*low / unit_scale(unit)) + " – " + with_unit(*high, unit));
  }
  void numbers(std::string_view path, Unit unit, std::map<std::string, double>& value) override {
    for (const auto& [name, figure] : value) add(std::string(path) + "." + name, with_unit(figure, unit));
  }
  void street(std::string_view path, std::vector<StreetPrice>& value) override {
    for (const StreetPrice& price : value) {
      const std::string low = price.low_usd ? fmt::format("{} – ", plain(*price.low_usd)) : "";
      add(path, fmt::format("{}{} USD, {}, {} [{}]", low, price.high_usd ? plain(*price.high_usd) : "?",
                            price.condition, price.date, price.source));
    }
  }
  void cloud(std::string_view path, std::vector<CloudPrice>& value) override {
    for (const CloudPrice& price : value)
      add(path, fmt::format("{} {}, {}, {}, {} [{}]", plain(price.per_hour), price.currency, price.provider, price.kind,
                            price.date, price.source));
  }

  std::vector<Figure> take() { return std::move(figures_); }

 private:
  void add(std::string_view path, std::string value) {
    Figure figure{.path = std::string(path), .value = std::move(value), .trust = Trust::kSourced, .file = {}};
    if (provenance_.is_unverified(path))
      figure.trust = Trust::kUnverified;
    else if (provenance_.is_link_lost(path))
      figure.trust = Trust::kLinkLost;
    if (const auto user = provenance_.overridden.find(figure.path); user != provenance_.overridden.end()) {
      figure.trust = Trust::kUser;
      figure.file = user->second;
    }
    figures_.push_back(std::move(figure));
  }

  const Provenance& provenance_;
  std::vector<Figure> figures_;
};

template <class Record>
std::vector<Figure> describe(Record record) {  // a copy: visitors may write
  Describer describer(record.provenance);
  visit(record, describer);
  return describer.take();
}

// The record as it was read. It was JSON a moment ago, so it parses.
template <class Record>
Json record_of(const Record& record) {
  Result<Json> parsed = parse_json(record.record, record.id);
  FATHOM_CHECK(parsed.has_value());
  return std::move(*parsed);
}

Json with_derived(const Accelerator& a) {
  Json out = record_of(a);
  out["usable_memory_bytes"] = a.usable_memory_bytes();
  if (a.memory.bandwidth_bytes_per_second)
    out["memory_bandwidth_bytes_per_second"] = *a.memory.bandwidth_bytes_per_second;
  Json peaks = Json::object();
  for (int i = 0; i < kPrecisionCount; ++i)
    if (const auto peak = a.peak(static_cast<Precision>(i)))
      peaks[std::string(precision_name(static_cast<Precision>(i)))] = *peak;
  out["peak_dense_flops"] = std::move(peaks);
  return out;
}

template <class Record>
Json with_derived(const Record& record) {
  return record_of(record);
}

template <class Record>
std::string one_json(const Catalog& catalog, const Record& record) {
  Json out = with_derived(record);
  Json details = Json::array();
  for (const std::string& id : record.provenance.sources) {
    const Source* source = catalog.source(id);
    if (source != nullptr)
      details.push_back(
          {{"id", id}, {"url", source->url}, {"what", source->what}, {"date", source->date}, {"tier", source->tier}});
    else
      details.push_back({{"id", id}});
  }
  out["source_details"] = std::move(details);
  if (!record.provenance.overridden.empty()) out["overridden"] = record.provenance.overridden;
  return dump_json(out, 2);
}

template <class Record>
std::string many_json(const char* section, std::span<const Record> records) {
  Json list = Json::array();
  for (const Record& record : records) list.push_back(with_derived(record));
  return dump_json(Json{{section, std::move(list)}}, 1);
}

template <class Record>
std::vector<Record> search_in(std::span<const Record> records, std::string_view search) {
  std::vector<Record> out;
  for (const Record& record : records) {
    Json json = record_of(record);
    json.erase("provenance");
    const std::string text = to_lower(dump_json(json));
    bool found = true;
    for (const std::string_view word : split(search, ' '))
      found = found && text.find(to_lower(word)) != std::string::npos;
    if (found) out.push_back(record);
  }
  return out;
}

std::string title(const std::string& name, const std::string& id) { return fmt::format("{} ({})", name, id); }

}  // namespace

std::string title_of(const Accelerator& record) { return title(record.name, record.id); }
std::string title_of(const Cpu& record) { return title(record.name, record.id); }
std::string title_of(const Link& record) { return title(record.name, record.id); }
std::string title_of(const Storage& record) { return title(record.name, record.id); }
std::string title_of(const CloudOffer& record) { return title(record.provider + " " + record.instance, record.id); }

std::vector<Cpu> matching(std::span<const Cpu> records, std::string_view search) { return search_in(records, search); }
std::vector<Link> matching(std::span<const Link> records, std::string_view search) {
  return search_in(records, search);
}
std::vector<Storage> matching(std::span<const Storage> records, std::string_view search) {
  return search_in(records, search);
}
std::vector<CloudOffer> matching(std::span<const CloudOffer> records, std::string_view search) {
  return search_in(records, search);
}

std::vector<Figure> figures(const Accelerator& record) { return describe(record); }
std::vector<Figure> figures(const Cpu& record) { return describe(record); }
std::vector<Figure> figures(const Link& record) { return describe(record); }
std::vector<Figure> figures(const Storage& record) { return describe(record); }
std::vector<Figure> figures(const CloudOffer& record) { return describe(record); }

std::string in_unit(std::optional<double> base, Unit unit) { return base ? plain(*base / unit_scale(unit)) : "-"; }

std::string in_range(std::optional<double> low, std::optional<double> high, Unit unit) {
  return low && high ? fmt::format("{} – {}", in_unit(low, unit), in_unit(high, unit)) : "-";
}

std::string record_json(const Catalog& catalog, const Accelerator& record) { return one_json(catalog, record); }
std::string record_json(const Catalog& catalog, const Cpu& record) { return one_json(catalog, record); }
std::string record_json(const Catalog& catalog, const Link& record) { return one_json(catalog, record); }
std::string record_json(const Catalog& catalog, const Storage& record) { return one_json(catalog, record); }
std::string record_json(const Catalog& catalog, const CloudOffer& record) { return one_json(catalog, record); }

std::string list_json(std::span<const Accelerator* const> records) {
  Json list = Json::array();
  for (const Accelerator* record : records) list.push_back(with_derived(*record));
  return dump_json(Json{{"accelerators", std::move(list)}}, 1);
}
std::string list_json(std::span<const Cpu> records) { return many_json("cpus", records); }
std::string list_json(std::span<const Link> records) { return many_json("links", records); }
std::string list_json(std::span<const Storage> records) { return many_json("storage", records); }
std::string list_json(std::span<const CloudOffer> records) { return many_json("offers", records); }

}  // namespace fathom::hardware
