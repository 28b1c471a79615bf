#include "weights/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/strings.h"
#include "weights/json_scanner.h"

namespace fathom::weights {
namespace {

constexpr int kIndexDepth = 16;

bool is_there(const Path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// "model-00002-of-00007.safetensors" -> {"model-", 2, 7, 5 digits}.
struct ShardName {
  std::string stem;
  std::uint64_t number = 0, count = 0;
  std::size_t digits = 0;
};
std::optional<ShardName> parse_shard_name(std::string_view name) {
  constexpr std::string_view kEnd = ".safetensors", kOf = "-of-";
  if (!name.ends_with(kEnd)) return std::nullopt;
  name.remove_suffix(kEnd.size());
  const std::size_t of = name.rfind(kOf);
  if (of == std::string_view::npos) return std::nullopt;
  const std::size_t dash = name.rfind('-', of == 0 ? 0 : of - 1);
  if (dash == std::string_view::npos || dash >= of) return std::nullopt;
  const auto number = [](std::string_view digits) -> std::optional<std::uint64_t> {
    if (digits.empty() || digits.size() > 9) return std::nullopt;
    std::uint64_t value = 0;
    for (const char c : digits) {
      if (c < '0' || c > '9') return std::nullopt;
      value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value;
  };
  const std::string_view middle = name.substr(dash + 1, of - dash - 1);
  const auto own = number(middle), count = number(name.substr(of + kOf.size()));
  if (!own || !count) return std::nullopt;
  return ShardName{std::string(name.substr(0, dash + 1)), *own, *count, middle.size()};
}

// Without an index only the numbering can tell that a shard is missing.
Status check_numbering(const Path& folder, const std::vector<std::string>& names) {
  const std::set<std::string> present(names.begin(), names.end());
  std::set<std::pair<std::string, std::uint64_t>> series;
  for (const std::string& name : names) {
    const auto shard = parse_shard_name(name);
    if (!shard || !series.emplace(shard->stem, shard->count).second) continue;
    for (std::uint64_t i = 1; i <= shard->count; ++i) {
      const std::string other =
          fmt::format("{}{:0{}}-of-{:0{}}.safetensors", shard->stem, i, shard->digits, shard->count, shard->digits);
      if (!present.contains(other))
        return fail("weights.missing_shard",
                    {{"file", printable(other, 200)}, {"folder", folder.string()}, {"source", printable(name, 200)}});
      if (i > present.size()) break;  // one of the first present + 1 numbers is missing, and was named
    }
  }
  return {};
}

Result<std::vector<std::string>> loose_files(const Path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".safetensors") && name != "reference.safetensors" && !name.starts_with("adapter") &&
        name[0] != '.')
      names.push_back(name);
  }
  if (error) return fail_environment("base.cannot_read", {{"path", folder.string()}, {"reason", error.message()}});
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

Result<std::vector<std::pair<std::string, std::string>>> parse_index(std::string_view json, std::string_view what) {
  const auto bad = [&](std::size_t byte) {
    return fail("weights.index_json", {{"file", std::string(what)}, {"byte", std::to_string(byte)}});
  };
  if (!is_valid_utf8(json)) return bad(0);
  JsonScanner scanner(json);
  std::vector<std::pair<std::string, std::string>> map;
  std::string key, name, file;
  bool seen = false;
  const bool good = scan_object(scanner, key, [&](const std::string& member) {
    if (member != "weight_map") return scanner.skip(kIndexDepth);
    if (std::exchange(seen, true)) return false;
    return scan_object(scanner, name, [&](const std::string& tensor) {
      if (!scanner.string(file)) return false;
      map.emplace_back(tensor, file);
      return true;
    });
  });
  if (!good || !scanner.at_end() || !seen) return bad(scanner.position());
  for (const auto& [tensor, shard] : map)
    if (shard.empty() || shard.find('/') != std::string::npos || shard.find('\0') != std::string::npos ||
        shard == "." || shard == "..")
      return fail("weights.index_path",
                  {{"file", std::string(what)}, {"name", printable(tensor)}, {"shard", printable(shard)}});
  return map;
}

Result<Checkpoint> Checkpoint::open(const Path& path) {
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    FATHOM_TRY_VOID(checkpoint.open_folder());
  } else {
    FATHOM_TRY(auto file, SafetensorsFile::open(path));
    checkpoint.files_.push_back(std::move(file));
    FATHOM_TRY_VOID(checkpoint.gather());
  }
  return checkpoint;
}

Status Checkpoint::open_files(const std::vector<std::string>& names) {
  files_.reserve(names.size());
  for (const std::string& name : names) {
    FATHOM_TRY(auto file, SafetensorsFile::open(path_ / name));
    files_.push_back(std::move(file));
  }
  return {};
}

Status Checkpoint::open_folder() {
  if (const Path index = path_ / kIndexName; is_there(index)) return open_indexed(index);
  std::vector<std::string> names;
  if (is_there(path_ / "model.safetensors")) {
    names.emplace_back("model.safetensors");
  } else {
    FATHOM_TRY(names, loose_files(path_));
    if (names.empty()) return fail("weights.no_files", {{"folder", path_.string()}});
    FATHOM_TRY_VOID(check_numbering(path_, names));
  }
  FATHOM_TRY_VOID(open_files(names));
  FATHOM_TRY_VOID(gather());
  return check_twins();
}

// A tensor in two files, with nothing to say which one counts.
Status Checkpoint::check_twins() const {
  const auto twin = std::adjacent_find(places_.begin(), places_.end(), [](const TensorPlace& a, const TensorPlace& b) {
    return a.tensor->name == b.tensor->name;
  });
  if (twin != places_.end())
    return fail("weights.in_two_files", {{"name", printable(twin->tensor->name)},
                                         {"file", twin->file->path().string()},
                                         {"other", (twin + 1)->file->path().string()}});
  return {};
}

Status Checkpoint::open_indexed(const Path& index) {
  FATHOM_TRY(const std::string text, read_file(index, kMaxHeaderBytes));
  FATHOM_TRY(auto map, parse_index(text, index.string()));
  std::sort(map.begin(), map.end());
  const auto twin =
      std::adjacent_find(map.begin(), map.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twin != map.end())
    return fail("weights.duplicate_name", {{"file", index.string()}, {"name", printable(twin->first)}});
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map) shards.insert(shard);
  for (const std::string& shard : shards)
    if (!is_there(path_ / shard))
      return fail("weights.missing_shard",
                  {{"file", printable(shard, 200)}, {"folder", path_.string()}, {"source", std::string(kIndexName)}});
  FATHOM_TRY_VOID(open_files({shards.begin(), shards.end()}));
  FATHOM_TRY_VOID(gather());
  // Of a tensor that several shards hold, the index decides which one counts; all that it names must be there.
  std::vector<TensorPlace> chosen;
  chosen.reserve(map.size());
  auto place = places_.begin();
  for (const auto& [tensor, shard] : map) {
    for (; place != places_.end() && place->tensor->name < tensor; ++place)
      chosen.push_back(*place);  // in a shard, not in the index
    while (place != places_.end() && place->tensor->name == tensor && place->file->path().filename().string() < shard)
      ++place;
    if (place == places_.end() || place->tensor->name != tensor || place->file->path().filename() != shard)
      return fail("weights.index_lies",
                  {{"name", printable(tensor)}, {"file", (path_ / shard).string()}, {"index", index.string()}});
    chosen.push_back(*place);
    while (place != places_.end() && place->tensor->name == tensor) ++place;
  }
  chosen.insert(chosen.end(), place, places_.end());
  places_ = std::move(chosen);
  return check_twins();
}

// By name, then by file.
Status Checkpoint::gather() {
  for (const SafetensorsFile& file : files_)
    for (const FileTensor& tensor : file.tensors()) places_.push_back({&file, &tensor});
  std::sort(places_.begin(), places_.end(), [](const TensorPlace& a, const TensorPlace& b) {
    const int order = a.tensor->name.compare(b.tensor->name);
    return order != 0 ? order < 0 : a.file->path() < b.file->path();
  });
  return {};
}

TensorPlace Checkpoint::find(std::string_view name) const {
  const auto it =
      std::lower_bound(places_.begin(), places_.end(), name,
                       [](const TensorPlace& place, std::string_view wanted) { return place.tensor->name < wanted; });
  return it != places_.end() && it->tensor->name == name ? *it : TensorPlace{};
}

Bytes Checkpoint::data_bytes() const {
  Bytes sum = 0;
  for (const TensorPlace& place : places_) sum += place.tensor->bytes();
  return sum;
}

}  // namespace fathom::weights
