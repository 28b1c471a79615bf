#include "hardware/cgroup.h"

#include <algorithm>
#include <vector>

#include "base/strings.h"

namespace fathom::hardware {
namespace {

// v1 writes "no limit" as the largest page-aligned 63-bit number; anything from here on means it.
constexpr std::int64_t kNoLimit = std::int64_t{1} << 60;

// One cgroup file system as /proc/self/mountinfo shows it.
struct Hierarchy {
  std::string mount;        // below the root, without the leading slash: "sys/fs/cgroup/memory"
  std::string root;         // the part of the hierarchy that is mounted there: "/" or "/docker/3f…"
  std::string controllers;  // super options of v1: "rw,memory"; empty for v2
  bool v2 = false;
};

std::vector<Hierarchy> hierarchies(const SystemFiles& files) {
  std::vector<Hierarchy> found;
  const auto mounts = files.text("proc/self/mountinfo");
  if (!mounts) return found;
  for (const std::string_view line : lines_of(*mounts)) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    const auto left = split(line.substr(0, dash), ' '), right = split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.size() < 3 || !left[4].starts_with('/')) continue;
    if (right[0] != "cgroup" && right[0] != "cgroup2") continue;
    found.push_back(
        {std::string(left[4].substr(1)), std::string(left[3]), std::string(right[2]), right[0] == "cgroup2"});
  }
  return found;
}

// The path of this process in the hierarchy of `controller` (empty: v2) by /proc/self/cgroup; nullopt when not listed.
std::optional<std::string> own_path(const SystemFiles& files, std::string_view controller) {
  const auto text = files.text("proc/self/cgroup");
  if (!text) return std::nullopt;
  for (const std::string_view line : lines_of(*text)) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const auto list = split(controllers, ',');
    const bool hit =
        controller.empty() ? controllers.empty() : std::find(list.begin(), list.end(), controller) != list.end();
    if (hit) return std::string(trim(line.substr(second + 1)));
  }
  return std::nullopt;
}

// Folders from this process's group up to the mount point, deepest first. A path that is not visible from here (a
// container that sees only its own part) falls back to the mount point, which then is that part.
std::vector<std::string> group_folders(const SystemFiles& files, const Hierarchy& hierarchy, const std::string& own) {
  std::string below = own;
  if (hierarchy.root != "/" && below.starts_with(hierarchy.root)) below = below.substr(hierarchy.root.size());
  while (below.ends_with('/')) below.pop_back();
  if (below.find("/..") != std::string::npos || !files.exists(hierarchy.mount + below)) below.clear();
  std::vector<std::string> folders;
  for (;;) {
    folders.push_back(hierarchy.mount + below);
    if (below.empty()) return folders;
    below.resize(below.rfind('/') == std::string::npos ? 0 : below.rfind('/'));
  }
}

const Hierarchy* find_hierarchy(const std::vector<Hierarchy>& all, std::string_view controller) {
  for (const Hierarchy& hierarchy : all) {
    if (controller.empty() && hierarchy.v2) return &hierarchy;
    const auto options = split(hierarchy.controllers, ',');
    if (!controller.empty() && !hierarchy.v2 && std::find(options.begin(), options.end(), controller) != options.end())
      return &hierarchy;
  }
  return nullptr;
}

// "key value" lines, as in memory.stat.
std::int64_t stat_value(const SystemFiles& files, const std::string& file, std::string_view key) {
  const auto text = files.text(file);
  if (!text) return 0;
  for (const std::string_view line : lines_of(*text))
    if (line.starts_with(key) && line.size() > key.size() && line[key.size()] == ' ')
      return std::max<std::int64_t>(parse_integer(line.substr(key.size() + 1)).value_or(0), 0);
  return 0;
}

void tighten_memory(CgroupLimits& limits, const SystemFiles& files, const std::string& folder, const char* limit_file,
                    const char* usage_file, const char* droppable_key) {
  const auto limit = files.integer(folder + "/" + limit_file);  // "max" is no integer
  if (!limit || *limit < 0 || *limit >= kNoLimit) return;
  if (limits.memory_bytes && static_cast<Bytes>(*limit) >= *limits.memory_bytes) return;
  limits.memory_bytes = static_cast<Bytes>(*limit);
  limits.memory_used_bytes.reset();
  if (const auto usage = files.integer(folder + "/" + usage_file); usage && *usage >= 0)
    limits.memory_used_bytes = static_cast<Bytes>(
        std::max<std::int64_t>(*usage - stat_value(files, folder + "/memory.stat", droppable_key), 0));
}

void tighten_cpus(CgroupLimits& limits, double quota, double period) {
  if (quota <= 0 || period <= 0) return;
  limits.cpus = std::min(limits.cpus.value_or(quota / period), quota / period);
}

bool read_v2(const SystemFiles& files, const std::vector<Hierarchy>& all, CgroupLimits& limits) {
  const Hierarchy* hierarchy = find_hierarchy(all, "");
  const auto own = own_path(files, "");
  if (hierarchy == nullptr || !own) return false;
  bool found = false;
  for (const std::string& folder : group_folders(files, *hierarchy, *own)) {
    found = found || files.exists(folder + "/memory.max") || files.exists(folder + "/cpu.max");
    tighten_memory(limits, files, folder, "memory.max", "memory.current", "inactive_file");
    tighten_memory(limits, files, folder, "memory.high", "memory.current", "inactive_file");
    if (const auto line = files.line(folder + "/cpu.max")) {
      const auto parts = split(*line, ' ');
      if (parts.size() == 2)
        tighten_cpus(limits, static_cast<double>(parse_integer(parts[0]).value_or(0)),
                     static_cast<double>(parse_integer(parts[1]).value_or(0)));
    }
  }
  return found;
}

bool read_v1(const SystemFiles& files, const std::vector<Hierarchy>& all, CgroupLimits& limits) {
  bool found = false;
  if (const Hierarchy* memory = find_hierarchy(all, "memory"))
    if (const auto own = own_path(files, "memory"))
      for (const std::string& folder : group_folders(files, *memory, *own)) {
        found = found || files.exists(folder + "/memory.limit_in_bytes");
        tighten_memory(limits, files, folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
      }
  if (const Hierarchy* cpu = find_hierarchy(all, "cpu"))
    if (const auto own = own_path(files, "cpu"))
      for (const std::string& folder : group_folders(files, *cpu, *own)) {
        const auto quota = files.integer(folder + "/cpu.cfs_quota_us"),
                   period = files.integer(folder + "/cpu.cfs_period_us");
        found = found || quota;
        if (quota && period) tighten_cpus(limits, static_cast<double>(*quota), static_cast<double>(*period));
      }
  return found;
}

}  // namespace

CgroupLimits read_cgroup(const SystemFiles& files) {
  CgroupLimits limits;
  const auto all = hierarchies(files);
  if (read_v1(files, all, limits)) limits.version = 1;  // a hybrid host keeps its controllers in v1
  if (read_v2(files, all, limits)) limits.version = 2;
  return limits;
}

}  // namespace fathom::hardware
