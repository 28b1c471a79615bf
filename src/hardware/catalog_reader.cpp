#include "hardware/catalog_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/i18n.h"
#include "base/strings.h"

namespace fathom::hardware {
namespace {

constexpr std::size_t kMaxText = 4096;  // longest text of a field
constexpr std::size_t kMaxList = 4096;  // longest list
constexpr int kMaxInteger = 100'000'000;

// What may be shown as it is: not too long, and nothing that moves a terminal's cursor.
bool showable(const std::string& text) {
  return text.size() <= kMaxText &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}
bool showable(const Json& value) { return value.is_string() && showable(value.get_ref<const std::string&>()); }

}  // namespace

const Json* RecordReader::find(std::string_view path) {
  known_.emplace(path);
  const Json* at = &record_;
  std::string walked;
  for (const std::string_view part : split(path, '.')) {
    if (!at->is_object()) {
      fail_type(walked, "object", *at);
      return nullptr;
    }
    const auto next = at->find(std::string(part));
    if (next == at->end() || next->is_null()) return nullptr;
    if (!walked.empty()) walked += '.';
    walked += part;
    at = &*next;
  }
  return at;
}

void RecordReader::fail_type(std::string_view path, std::string_view expected, const Json& value) {
  if (error_) return;
  error_ = fail("hardware_catalog.wrong_type", {{"what", what_},
                                                {"field", printable(path)},
                                                {"expected", tr("hardware_catalog.expected." + std::string(expected))},
                                                {"value", printable(dump_json(value), 40)}})
               .value();
}

std::optional<double> RecordReader::figure(std::string_view path, Unit unit, const Json& value) {
  if (!value.is_number()) {
    fail_type(path, "number", value);
    return std::nullopt;
  }
  const double number = value.get<double>();
  if (!(number >= 0) || !(number <= unit_limit(unit))) {
    if (!error_)
      error_ = fail("hardware_catalog.out_of_range", {{"what", what_},
                                                      {"field", printable(path)},
                                                      {"value", printable(dump_json(value), 40)},
                                                      {"limit", fmt::format("{}", unit_limit(unit))},
                                                      {"unit", std::string(unit_name(unit))}})
                   .value();
    return std::nullopt;
  }
  return number;
}

void RecordReader::text(std::string_view path, std::string& value) {
  const Json* at = find(path);
  if (at == nullptr) return;
  if (!showable(*at)) return fail_type(path, "line", *at);
  value = at->get<std::string>();
}

bool RecordReader::check_list(std::string_view path, const Json& value) {
  if (value.is_array() && value.size() <= kMaxList) return true;
  fail_type(path, "list", value);
  return false;
}

void RecordReader::texts(std::string_view path, std::vector<std::string>& value) {
  const Json* at = find(path);
  if (at == nullptr || !check_list(path, *at)) return;
  for (const Json& item : *at) {
    if (!showable(item)) return fail_type(path, "lines", item);
    value.push_back(item.get<std::string>());
  }
}

void RecordReader::number(std::string_view path, Unit unit, std::optional<double>& value) {
  const Json* at = find(path);
  if (at == nullptr) return;
  if (const auto number = figure(path, unit, *at)) value = *number * unit_scale(unit);
}

void RecordReader::bytes(std::string_view path, Unit unit, std::optional<Bytes>& value) {
  const Json* at = find(path);
  if (at == nullptr) return;
  if (const auto number = figure(path, unit, *at)) value = static_cast<Bytes>(std::llround(*number * unit_scale(unit)));
}

void RecordReader::integer(std::string_view path, std::optional<int>& value) {
  const Json* at = find(path);
  if (at == nullptr) return;
  const double number = at->is_number() ? at->get<double>() : -1;
  if (!(number >= 0) || number > kMaxInteger || number != std::floor(number)) return fail_type(path, "integer", *at);
  value = static_cast<int>(number);
}

void RecordReader::count(std::string_view path, int& value, int smallest) {
  std::optional<int> number;
  integer(path, number);
  if (!number) return;
  if (*number < smallest) return fail_type(path, smallest > 0 ? "positive" : "integer", *find(path));
  value = *number;
}

void RecordReader::flag(std::string_view path, bool& value) {
  const Json* at = find(path);
  if (at == nullptr) return;
  if (!at->is_boolean()) return fail_type(path, "flag", *at);
  value = at->get<bool>();
}

void RecordReader::range(std::string_view path, Unit unit, std::optional<double>& low, std::optional<double>& high) {
  const Json* at = find(path);
  if (at == nullptr) return;
  if (!at->is_array() || at->size() != 2) return fail_type(path, "range", *at);
  const auto first = figure(path, unit, (*at)[0]), second = figure(path, unit, (*at)[1]);
  if (!first || !second) return;
  if (*first > *second) return fail_type(path, "range", *at);
  low = *first * unit_scale(unit);
  high = *second * unit_scale(unit);
}

void RecordReader::numbers(std::string_view path, Unit unit, std::map<std::string, double>& value) {
  const Json* at = find(path);
  if (at == nullptr) return;
  if (!at->is_object() || at->size() > kMaxList) return fail_type(path, "object", *at);
  for (const auto& [name, item] : at->items()) {
    if (!showable(name)) return fail_type(path, "names", *at);
    if (const auto number = figure(std::string(path) + "." + name, unit, item))
      value[name] = *number * unit_scale(unit);
  }
}

std::string RecordReader::string_in(const Json& object, const char* key, std::string_view path) {
  const auto at = object.find(key);
  if (at == object.end() || at->is_null()) return {};
  if (showable(*at)) return at->get<std::string>();
  fail_type(std::string(path) + "." + key, "line", *at);
  return {};
}

std::optional<double> RecordReader::figure_in(const Json& object, const char* key, std::string_view path) {
  const auto at = object.find(key);
  if (at == object.end() || at->is_null()) return std::nullopt;
  return figure(std::string(path) + "." + key, Unit::kUsd, *at);
}

void RecordReader::check_keys(std::string_view path, const Json& object,
                              std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end() && !error_)
      error_ =
          fail("hardware_catalog.unknown_field", {{"what", what_}, {"field", printable(std::string(path) + "." + key)}})
              .value();
}

void RecordReader::street(std::string_view path, std::vector<StreetPrice>& value) {
  const Json* at = find(path);
  if (at == nullptr || !check_list(path, *at)) return;
  for (const Json& item : *at) {
    if (!item.is_object()) return fail_type(path, "objects", item);
    check_keys(path, item, {"low_usd", "high_usd", "condition", "date", "source"});
    value.push_back({.low_usd = figure_in(item, "low_usd", path),
                     .high_usd = figure_in(item, "high_usd", path),
                     .condition = string_in(item, "condition", path),
                     .date = string_in(item, "date", path),
                     .source = string_in(item, "source", path)});
  }
}

void RecordReader::cloud(std::string_view path, std::vector<CloudPrice>& value) {
  const Json* at = find(path);
  if (at == nullptr || !check_list(path, *at)) return;
  for (const Json& item : *at) {
    if (!item.is_object()) return fail_type(path, "objects", item);
    check_keys(path, item, {"provider", "per_hour", "currency", "kind", "date", "source", "note"});
    const auto price = figure_in(item, "per_hour", path);
    if (!price) return fail_type(std::string(path) + ".per_hour", "number", item);
    value.push_back({.provider = string_in(item, "provider", path),
                     .currency = string_in(item, "currency", path),
                     .kind = string_in(item, "kind", path),
                     .date = string_in(item, "date", path),
                     .source = string_in(item, "source", path),
                     .note = string_in(item, "note", path),
                     .per_hour = *price});
  }
}

void RecordReader::look_for_unknown(const Json& object, const std::string& prefix) {
  for (const auto& [key, value] : object.items()) {
    const std::string path = prefix + key;
    if (known_.count(path)) continue;
    const auto longer = known_.lower_bound(path + ".");
    const bool is_parent = longer != known_.end() && longer->starts_with(path + ".");
    if (is_parent && value.is_object()) {
      look_for_unknown(value, path + ".");
    } else if (!error_ && !(is_parent && value.is_null())) {
      if (is_parent)
        fail_type(path, "object", value);
      else
        error_ = fail("hardware_catalog.unknown_field", {{"what", what_}, {"field", printable(path)}}).value();
    }
  }
}

Status RecordReader::finish() {
  if (!error_) look_for_unknown(record_, "");
  if (error_) return tl::unexpected<Error>(*error_);
  return {};
}

}  // namespace fathom::hardware
