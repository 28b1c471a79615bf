#include "hardware/catalog_match.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/strings.h"

namespace fathom::hardware {
namespace {

// Words that tell products of one maker from nothing: dropped wherever they stand.
constexpr std::array<std::string_view, 17> kNoise = {"nvidia",  "amd",   "intel",  "apple",    "huawei",   "google",
                                                     "geforce", "tesla", "quadro", "instinct", "radeon",   "graphics",
                                                     "gpu",     "r",     "tm",     "cpu",      "processor"};
struct FormWord {
  std::string_view word, form;
};
constexpr std::array<FormWord, 13> kForms = {{{"sxm", "sxm"},
                                              {"sxm2", "sxm"},
                                              {"sxm3", "sxm"},
                                              {"sxm4", "sxm"},
                                              {"sxm5", "sxm"},
                                              {"sxm6", "sxm"},
                                              {"hgx", "sxm"},
                                              {"dgx", "sxm"},
                                              {"pcie", "pcie"},
                                              {"pci", "pcie"},
                                              {"nvl", "nvl"},
                                              {"oam", "oam"},
                                              {"nvl72", "superchip"}}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || c == '+' || c == '.' || static_cast<unsigned char>(c) >= 0x80;
}

std::vector<std::string_view> words(std::string_view lower) {
  std::vector<std::string_view> out;
  for (std::size_t i = 0; i < lower.size();) {
    std::size_t end = i;
    while (end < lower.size() && is_word(lower[end])) ++end;
    if (end > i) out.push_back(lower.substr(i, end - i));
    i = std::max(end, i + 1);
  }
  return out;
}

template <class Number>
bool parse_all(std::string_view text, Number& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

// "80gb", "80g", "80gib" -> 80.
double memory_word(std::string_view word) {
  for (const std::string_view unit : {"gib", "gb", "g"}) {
    double value = 0;
    if (word.size() > unit.size() && word.ends_with(unit) &&
        parse_all(word.substr(0, word.size() - unit.size()), value) && std::isfinite(value) && value > 0 && value < 1e6)
      return value;
  }
  return 0;
}

bool near(double a, double b) { return b > 0 && std::fabs(a - b) <= 0.065 * b; }

void add(std::unordered_map<std::string, std::vector<int>>& table, const std::string& key, int position) {
  if (key.empty()) return;
  std::vector<int>& list = table[key];
  if (std::find(list.begin(), list.end(), position) == list.end()) list.push_back(position);
}

std::string cpu_key(std::string_view name) {
  std::string lower = to_lower(name);
  lower = lower.substr(0, lower.find('@'));
  std::string key;
  for (const std::string_view word : words(lower)) {
    static constexpr std::array<std::string_view, 5> kDropped = {"core", "cores", "gen", "12th", "13th"};
    const bool noise = std::find(kNoise.begin(), kNoise.end(), word) != kNoise.end() ||
                       std::find(kDropped.begin(), kDropped.end(), word) != kDropped.end();
    if (!noise) key += word;
  }
  return key;
}

}  // namespace

NameParts name_parts(std::string_view name) {
  const std::string lower = to_lower(name.substr(0, 256));
  const std::vector<std::string_view> all = words(lower);
  NameParts parts;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string_view word = all[i];
    if (std::find(kNoise.begin(), kNoise.end(), word) != kNoise.end()) continue;
    parts.squeezed += word;
    double memory = memory_word(word);
    if (memory == 0 && i + 1 < all.size() && (all[i + 1] == "gb" || all[i + 1] == "gib") && parse_all(word, memory))
      parts.squeezed += all[++i];
    if (memory > 0 && std::isfinite(memory)) {
      parts.memory_gb = memory;
      continue;
    }
    if (word.starts_with("hbm") || word.starts_with("gddr") || word.starts_with("lpddr")) {
      parts.kind = word;
      continue;
    }
    const auto form = std::find_if(kForms.begin(), kForms.end(), [&](const FormWord& f) { return f.word == word; });
    if (form != kForms.end())
      parts.form = form->form;
    else
      parts.core += word;
  }
  if (parts.squeezed.empty())  // nothing but makers' words: "AMD Radeon Graphics"
    for (const std::string_view word : all) parts.squeezed += word;
  return parts;
}

std::optional<Counted> split_count(std::string_view text) {
  text = trim(text);
  const auto cross_at = [&](std::size_t i) -> std::size_t {  // length of "x", "*" or "×" at i
    if (i >= text.size()) return 0;
    if (text[i] == 'x' || text[i] == 'X' || text[i] == '*') return 1;
    return text.substr(i).starts_with("×") ? std::string_view("×").size() : 0;
  };
  const auto counted = [](std::string_view digits, std::string_view rest) -> std::optional<Counted> {
    int count = 0;
    if (rest.empty()) return std::nullopt;
    if (!parse_all(digits, count) || count < 1 || count > 100'000) count = 0;
    return Counted{count, rest};
  };
  std::size_t digits = 0;
  while (digits < text.size() && is_digit(text[digits])) ++digits;
  std::size_t at = digits;
  while (at < text.size() && text[at] == ' ') ++at;
  if (const std::size_t cross = digits > 0 ? cross_at(at) : 0; cross > 0)
    return counted(text.substr(0, digits), trim(text.substr(at + cross)));
  // "H100 x8": only after a blank, since names end in digits too.
  const std::size_t blank = text.rfind(' ');
  if (blank == std::string_view::npos) return std::nullopt;
  const std::size_t cross = cross_at(blank + 1);
  const std::string_view tail = text.substr(blank + 1 + cross);
  if (cross == 0 || tail.empty() || !std::all_of(tail.begin(), tail.end(), is_digit)) return std::nullopt;
  return counted(tail, trim(text.substr(0, blank)));
}

NameIndex::NameIndex(const Catalog& catalog) : accelerators_(catalog.accelerators()) {
  for (std::size_t i = 0; i < accelerators_.size(); ++i) {
    const Accelerator& a = accelerators_[i];
    const int position = static_cast<int>(i);
    ids_.push_back(a.id);
    by_id_.emplace(a.id, position);
    std::vector<std::string> names = {a.id, a.name};
    names.insert(names.end(), a.driver_names.begin(), a.driver_names.end());
    names.insert(names.end(), a.short_names.begin(), a.short_names.end());
    for (const std::string& name : names) {
      const NameParts parts = name_parts(name);
      add(exact_, parts.squeezed, position);
      add(core_, parts.core, position);
    }
    for (const std::string& name : a.shared_names) add(shared_, name_parts(name).squeezed, position);
  }
  for (const auto& [key, positions] : exact_) keys_.push_back(key);
  std::sort(keys_.begin(), keys_.end());
  for (std::size_t i = 0; i < catalog.offers().size(); ++i) {
    const CloudOffer& offer = catalog.offers()[i];
    offers_.emplace(name_parts(offer.id).squeezed, static_cast<int>(i));
    offers_.emplace(name_parts(offer.instance).squeezed, static_cast<int>(i));
  }
  for (std::size_t i = 0; i < catalog.cpus().size(); ++i) {
    const Cpu& cpu = catalog.cpus()[i];
    cpus_.emplace(cpu_key(cpu.id), static_cast<int>(i));
    cpus_.emplace(cpu_key(cpu.name), static_cast<int>(i));
    for (const std::string& name : cpu.driver_names) cpus_.emplace(cpu_key(name), static_cast<int>(i));
    for (const std::string& name : cpu.short_names) cpus_.emplace(cpu_key(name), static_cast<int>(i));
  }
}

bool NameIndex::fits(int position, Bytes memory_bytes, double named_gb, bool strict) const {
  const Memory& memory = at(position).memory;
  std::vector<double> sizes;  // all readings of what one device may show
  for (const auto& size :
       {memory.marketed_bytes, memory.reported_bytes, memory.cuda_visible_bytes, memory.usable_bytes})
    if (size) sizes.push_back(static_cast<double>(*size));
  if (memory.marketed_bytes)
    sizes.push_back(static_cast<double>(*memory.marketed_bytes) / kGB * static_cast<double>(kGiB));
  if (sizes.empty()) return true;
  const double largest = *std::max_element(sizes.begin(), sizes.end());
  const auto fits_one = [&](double bytes) {
    if (memory.configurable && bytes <= 1.05 * largest) return !strict || bytes >= 0.45 * largest;
    return std::any_of(sizes.begin(), sizes.end(),
                       [&](double size) { return near(bytes, size) || near(bytes, size / memory.appears_as); });
  };
  if (memory_bytes > 0 && !fits_one(static_cast<double>(memory_bytes))) return false;
  return named_gb <= 0 || fits_one(named_gb * kGB) || fits_one(named_gb * static_cast<double>(kGiB));
}

std::vector<int> NameIndex::fitting(const std::vector<int>& positions, Bytes memory_bytes, double named_gb,
                                    bool strict) const {
  std::vector<int> out;
  for (const int position : positions)
    if (fits(position, memory_bytes, named_gb, strict)) out.push_back(position);
  return out;
}

// Those of one core that agree with the form, the kind and size of memory that the name gives; of several, the one that
// the bare core means ("h100" is the SXM part).
std::vector<int> NameIndex::same_core(const NameParts& parts, Bytes memory_bytes) const {
  std::vector<int> agreeing;
  for (const int position : core_.at(parts.core)) {
    const Accelerator& a = at(position);
    const std::string kind = to_lower(split(a.memory.kind, ' ').front());
    if ((parts.form.empty() || a.form == parts.form) && (parts.kind.empty() || kind.empty() || kind == parts.kind))
      agreeing.push_back(position);
  }
  std::vector<int> left = fitting(agreeing, memory_bytes, parts.memory_gb, false);
  if (left.size() < 2) return left;
  const auto bare = exact_.find(parts.core);
  const bool meant = bare != exact_.end() && bare->second.size() == 1 &&
                     std::find(left.begin(), left.end(), bare->second[0]) != left.end();
  return meant ? bare->second : left;
}

std::vector<int> NameIndex::starting_with(const std::string& squeezed) const {
  std::vector<int> out;
  if (squeezed.size() < 2) return out;
  for (auto key = std::lower_bound(keys_.begin(), keys_.end(), squeezed);
       key != keys_.end() && key->starts_with(squeezed); ++key)
    for (const int position : exact_.at(*key))
      if (std::find(out.begin(), out.end(), position) == out.end()) out.push_back(position);
  std::sort(out.begin(), out.end());
  return out;
}

NameIndex::Match NameIndex::match(std::string_view name, Bytes memory_bytes) const {
  const NameParts parts = name_parts(name);
  const auto answer = [&](Outcome outcome, std::vector<int> candidates) {
    return Match{outcome, std::move(candidates), parts.memory_gb};
  };
  const auto one_or_many = [&](std::vector<int> left) {
    const Outcome outcome = left.size() == 1 ? Outcome::kFound : Outcome::kAmbiguous;
    return answer(outcome, std::move(left));
  };
  if (const auto id = by_id_.find(std::string(name)); id != by_id_.end()) return answer(Outcome::kFound, {id->second});
  if (parts.squeezed.empty()) return answer(Outcome::kUnknown, {});
  std::vector<int> of_other_memory;
  if (const auto exact = exact_.find(parts.squeezed); exact != exact_.end()) {
    // A size inside a name that is known as a whole is part of the name ("GH200 480GB"): only the driver's total
    // counts.
    std::vector<int> left = fitting(exact->second, memory_bytes, 0, false);
    if (!left.empty()) return one_or_many(std::move(left));
    of_other_memory = exact->second;
  }
  if (const auto core = core_.find(parts.core); core != core_.end()) {
    std::vector<int> left = same_core(parts, memory_bytes);
    if (!left.empty()) return one_or_many(std::move(left));
    of_other_memory = core->second;
  }
  if (const auto shared = shared_.find(parts.squeezed); shared != shared_.end()) {
    if (memory_bytes == 0) return answer(Outcome::kNeedsMemory, shared->second);
    std::vector<int> left = fitting(shared->second, memory_bytes, 0, true);
    if (!left.empty()) return one_or_many(std::move(left));
    of_other_memory = shared->second;
  }
  if (!of_other_memory.empty()) return answer(Outcome::kWrongMemory, std::move(of_other_memory));
  std::vector<int> started = starting_with(parts.squeezed);
  if (started.size() > 1) return answer(Outcome::kAmbiguous, std::move(started));
  return answer(Outcome::kUnknown, std::move(started));
}

std::vector<std::string> NameIndex::suggestions(std::string_view name) const {
  const std::string squeezed = name_parts(name).squeezed;
  std::vector<std::string> out;
  const auto offer_ids = [&](const std::string& key) {
    for (const int position : exact_.at(key))
      if (const std::string& id = ids_[static_cast<std::size_t>(position)];
          out.size() < 3 && std::find(out.begin(), out.end(), id) == out.end())
        out.push_back(id);
  };
  std::string longest;  // the longest known name inside: "rtx4090" of "rtx4090laptop"
  for (const std::string& key : keys_)
    if (key.size() >= 3 && key.size() > longest.size() && squeezed.find(key) != std::string::npos) longest = key;
  if (!longest.empty()) offer_ids(longest);
  for (const std::string& key : nearest_names(squeezed, keys_, 3)) offer_ids(key);
  return out;
}

std::optional<int> NameIndex::offer(std::string_view name) const {
  const auto found = offers_.find(name_parts(name).squeezed);
  return found == offers_.end() ? std::nullopt : std::optional<int>(found->second);
}

std::optional<int> NameIndex::cpu(std::string_view name) const {
  const auto found = cpus_.find(cpu_key(name));
  return found == cpus_.end() ? std::nullopt : std::optional<int>(found->second);
}

}  // namespace fathom::hardware
