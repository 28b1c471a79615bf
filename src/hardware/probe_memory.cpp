#include "hardware/probe_memory.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/strings.h"

namespace fathom::hardware {
namespace {

// "MemTotal:  24684084 kB" in bytes; 0 when absent.
Bytes meminfo(std::string_view text, std::string_view key) {
  const auto value = value_of(text, key);
  const auto kib = value ? parse_leading_number(*value) : std::nullopt;
  return kib && *kib > 0 && *kib < 1e15 ? static_cast<Bytes>(*kib) * kKiB : 0;
}

// "always [madvise] never" -> "madvise".
std::string chosen_word(std::string_view line) {
  const std::size_t open = line.find('['), close = line.find(']');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return {};
  return std::string(line.substr(open + 1, close - open - 1));
}

void read_huge_pages(const SystemFiles& files, MemoryInfo& memory) {
  memory.transparent_huge_pages = chosen_word(files.line("sys/kernel/mm/transparent_hugepage/enabled").value_or(""));
  const std::string base = "sys/kernel/mm/hugepages/";
  for (const std::string& name : files.names(base)) {
    if (!name.starts_with("hugepages-") || !name.ends_with("kB")) continue;
    const auto kib = parse_integer(std::string_view(name).substr(10, name.size() - 12));
    const auto total = files.integer(base + name + "/nr_hugepages"),
               free = files.integer(base + name + "/free_hugepages");
    if (!kib || *kib <= 0 || *kib > (std::int64_t{1} << 40) || !total || !free) continue;
    memory.pools.push_back({static_cast<Bytes>(*kib) * kKiB, *total, *free});
  }
}

struct Module {
  std::string channel;  // what names its channel, empty unknown
  std::string kind;
  int speed_mts = 0;
};

void take_modules(MemoryInfo& memory, const std::vector<Module>& modules, const char* source) {
  if (modules.empty()) return;
  std::set<std::string> channels;
  bool all_named = true;
  for (const Module& module : modules) {
    all_named = all_named && !module.channel.empty();
    channels.insert(module.channel);
    if (module.speed_mts > 0)
      memory.speed_mts = std::min(memory.speed_mts.value_or(module.speed_mts), module.speed_mts);
    if (!module.kind.empty()) memory.kind = module.kind;
  }
  if (!memory.modules) memory.modules = static_cast<int>(modules.size());
  if (all_named && !memory.channels) memory.channels = static_cast<int>(channels.size());
  if (memory.modules_source.empty()) memory.modules_source = source;
}

// EDAC: mc0/dimm3/{size, dimm_location = "channel 1 slot 0", dimm_mem_type = "Registered-DDR5"}. No speeds.
std::vector<Module> edac_modules(const SystemFiles& files) {
  std::vector<Module> modules;
  const std::string base = "sys/devices/system/edac/mc/";
  for (const std::string& controller : files.names(base)) {
    if (!controller.starts_with("mc")) continue;
    for (const std::string& name : files.names(base + controller)) {
      if (!name.starts_with("dimm") && !name.starts_with("rank")) continue;
      const std::string folder = base + controller + "/" + name + "/";
      if (files.integer(folder + "size").value_or(0) <= 0) continue;
      Module module;
      const std::string location = files.line(folder + "dimm_location").value_or("");
      const auto words = split(location, ' ');
      for (std::size_t i = 0; i + 1 < words.size(); ++i)
        if (words[i] == "channel") module.channel = controller + "/" + std::string(words[i + 1]);
      const std::string type = files.line(folder + "dimm_mem_type").value_or("");
      if (const std::size_t at = type.find("DDR"); at != std::string::npos) module.kind = type.substr(at);
      modules.push_back(std::move(module));
    }
  }
  return modules;
}

// SMBIOS structure 17, memory device. Offsets from the structure's start.
constexpr std::size_t kSizeAt = 0x0c, kDeviceLocatorAt = 0x10, kBankLocatorAt = 0x11, kTypeAt = 0x12, kSpeedAt = 0x15;
constexpr std::size_t kConfiguredSpeedAt = 0x20;

int word_at(std::string_view raw, std::size_t at) {
  if (at + 2 > raw.size() || at + 2 > static_cast<unsigned char>(raw[1])) return 0;
  return static_cast<unsigned char>(raw[at]) | static_cast<unsigned char>(raw[at + 1]) << 8;
}
int byte_at(std::string_view raw, std::size_t at) {
  return at >= raw.size() || at >= static_cast<unsigned char>(raw[1]) ? 0 : static_cast<unsigned char>(raw[at]);
}
// The n-th (from 1) of the strings that follow the formatted part, each ended by a zero byte.
std::string_view string_at(std::string_view raw, int n) {
  const std::size_t length = static_cast<unsigned char>(raw[1]);
  if (n <= 0 || length >= raw.size()) return {};
  const auto strings = split(raw.substr(length), '\0');
  return static_cast<std::size_t>(n) <= strings.size() ? strings[static_cast<std::size_t>(n) - 1] : std::string_view();
}

const char* smbios_memory_kind(int type) {
  switch (type) {
    case 0x18:
      return "DDR3";
    case 0x1a:
      return "DDR4";
    case 0x1d:
      return "LPDDR3";
    case 0x1e:
      return "LPDDR4";
    case 0x20:
      return "HBM";
    case 0x21:
      return "HBM2";
    case 0x22:
      return "DDR5";
    case 0x23:
      return "LPDDR5";
    case 0x24:
      return "HBM3";
    default:
      return "";
  }
}

// "P0 CHANNEL A" or "ChannelA-DIMM0": all before the channel's letter or number, and that; empty when it names none.
std::string channel_in(std::string_view locator) {
  const std::string lower = to_lower(locator);
  std::size_t at = lower.find("channel");
  if (at == std::string::npos) return {};
  at += 7;
  while (at < lower.size() && (lower[at] == ' ' || lower[at] == '_' || lower[at] == '-')) ++at;
  std::size_t end = at;
  while (end < lower.size() && ((lower[end] >= 'a' && lower[end] <= 'z') || (lower[end] >= '0' && lower[end] <= '9')))
    ++end;
  return end == at ? std::string() : lower.substr(0, end);
}

std::vector<Module> dmi_modules(const SystemFiles& files) {
  std::vector<Module> modules;
  const std::string base = "sys/firmware/dmi/entries/";
  for (const std::string& name : files.names(base)) {
    if (!name.starts_with("17-")) continue;
    const auto raw = files.text(base + name + "/raw", 4096);
    if (!raw || raw->size() < 0x15 || word_at(*raw, kSizeAt) == 0) continue;  // an empty socket
    Module module;
    module.kind = smbios_memory_kind(byte_at(*raw, kTypeAt));
    const int configured = word_at(*raw, kConfiguredSpeedAt), rated = word_at(*raw, kSpeedAt);
    const int speed = configured > 0 && configured < 0xffff ? configured : rated;
    module.speed_mts = speed < 0xffff ? speed : 0;
    const std::string bank = channel_in(string_at(*raw, byte_at(*raw, kBankLocatorAt)));
    module.channel = bank.empty() ? channel_in(string_at(*raw, byte_at(*raw, kDeviceLocatorAt))) : bank;
    modules.push_back(std::move(module));
  }
  return modules;
}

}  // namespace

MemoryInfo read_memory(const SystemFiles& files, const CgroupLimits& limits) {
  MemoryInfo memory;
  const std::string text = files.text("proc/meminfo").value_or("");
  memory.total_bytes = meminfo(text, "MemTotal");
  memory.available_bytes = meminfo(text, "MemAvailable");
  if (memory.available_bytes == 0)
    memory.available_bytes = meminfo(text, "MemFree") + meminfo(text, "Buffers") + meminfo(text, "Cached");
  if (memory.total_bytes > 0) memory.available_bytes = std::min(memory.available_bytes, memory.total_bytes);
  memory.swap_total_bytes = meminfo(text, "SwapTotal");
  memory.cgroup_version = limits.version;
  memory.usable_bytes = memory.available_bytes;
  const bool binding = limits.memory_bytes && (memory.total_bytes == 0 || *limits.memory_bytes < memory.total_bytes);
  if (binding) {  // a limit above what the machine has limits nothing
    memory.limit_bytes = limits.memory_bytes;
    memory.limit_used_bytes = limits.memory_used_bytes;
    const Bytes used = std::min(limits.memory_used_bytes.value_or(0), *limits.memory_bytes);
    const Bytes room = *limits.memory_bytes - used;
    memory.usable_bytes = memory.total_bytes == 0 ? room : std::min(memory.usable_bytes, room);
  }
  read_huge_pages(files, memory);
  take_modules(memory, edac_modules(files), "edac");
  take_modules(memory, dmi_modules(files), "dmi");
  return memory;
}

}  // namespace fathom::hardware
