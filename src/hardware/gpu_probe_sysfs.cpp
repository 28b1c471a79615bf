// AMD, Intel and driverless NVIDIA cards as the kernel shows them.
#include <algorithm>
#include <system_error>

#include "base/strings.h"
#include "hardware/gpu_probe.h"

namespace fathom::hardware {
namespace {

constexpr std::int64_t kVendorAmd = 0x1002, kVendorIntel = 0x8086, kVendorNvidia = 0x10de;
constexpr Bytes kSmallestCard = 2 * kGiB;  // below this AMD reports the slice of main memory that an APU reserves

std::string hex4(std::int64_t value) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text = "0000";
  for (std::size_t i = 4; i-- > 0; value >>= 4) text[i] = digits[value & 15];
  return text;
}

// "Aqua Vanjaram [Instinct MI300X]" -> "Instinct MI300X", from the pci.ids file that many systems carry.
std::string pci_name(const SystemFiles& files, std::int64_t vendor, std::int64_t device) {
  for (const char* place : {"usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"}) {
    const auto text = files.text(place);
    if (!text) continue;
    bool inside = false;
    for (const std::string_view line : lines_of(*text)) {
      if (line.empty() || line[0] == '#') continue;
      if (line[0] != '\t')
        inside = line.starts_with(hex4(vendor) + " ");
      else if (inside && line.size() > 6 && line[1] != '\t' && line.substr(1, 4) == hex4(device)) {
        const std::string_view name = trim(line.substr(5));
        const std::size_t open = name.rfind('['), close = name.rfind(']');
        const bool bracket = open != std::string_view::npos && close != std::string_view::npos && close > open;
        return std::string(bracket ? name.substr(open + 1, close - open - 1) : name);
      }
    }
  }
  return {};
}

// pp_dpm_sclk: "0: 500Mhz\n1: 2100Mhz *": the starred and the highest.
void read_levels(const SystemFiles& files, const std::string& file, std::optional<double>& now,
                 std::optional<double>& highest) {
  const auto text = files.text(file);
  if (!text) return;
  for (const std::string_view line : lines_of(*text)) {
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const auto mhz = parse_leading_number(line.substr(colon + 1));
    if (!mhz || *mhz <= 0) continue;
    highest = std::max(highest.value_or(0), *mhz);
    if (line.find('*') != std::string_view::npos) now = mhz;
  }
}

void read_pcie(const SystemFiles& files, const std::string& device, GpuInfo& gpu) {
  gpu.pcie_generation = pcie_generation(files.line(device + "current_link_speed").value_or(""));
  gpu.pcie_max_generation = pcie_generation(files.line(device + "max_link_speed").value_or(""));
  const auto width = [&](const char* name) -> std::optional<int> {
    const auto lanes = files.integer(device + name);
    return lanes && *lanes > 0 && *lanes <= 32 ? std::optional(static_cast<int>(*lanes)) : std::nullopt;
  };
  gpu.pcie_width = width("current_link_width");
  gpu.pcie_max_width = width("max_link_width");
  if (const auto node = files.integer(device + "numa_node"); node && *node >= 0 && *node < 65536)
    gpu.numa_node = static_cast<int>(*node);
}

Bytes bytes_file(const SystemFiles& files, const std::string& file) {
  const auto value = files.integer(file);
  return value && *value > 0 ? static_cast<Bytes>(*value) : 0;
}

// The compute driver's topology names the instruction set: gfx_target_version 90402 is gfx942.
std::string amd_gfx(const SystemFiles& files, const std::string& pci_address) {
  const std::string base = "sys/class/kfd/kfd/topology/nodes/";
  for (const std::string& node : files.names(base)) {
    const auto text = files.text(base + node + "/properties");
    if (!text) continue;
    std::int64_t version = 0, location = -1, domain = 0;
    for (const std::string_view line : lines_of(*text)) {
      const std::size_t blank = line.find(' ');
      if (blank == std::string_view::npos) continue;
      const auto value = parse_integer(line.substr(blank + 1)).value_or(0);
      if (line.starts_with("gfx_target_version ")) version = value;
      if (line.starts_with("location_id ")) location = value;
      if (line.starts_with("domain ")) domain = value;
    }
    if (version <= 0 || location < 0) continue;
    const std::string here = hex4(domain) + ":" + hex4(location >> 8 & 0xff).substr(2) + ":" +
                             hex4(location >> 3 & 0x1f).substr(2) + "." + hex4(location & 7).substr(3);
    if (here == pci_address)
      return "gfx" + std::to_string(version / 10000) + hex4(version / 100 % 100).substr(3) +
             hex4(version % 100).substr(3);
  }
  return {};
}

void read_amd(const SystemFiles& files, const std::string& device, GpuInfo& gpu) {
  gpu.vendor = GpuVendor::amd;
  gpu.memory_total_bytes = bytes_file(files, device + "mem_info_vram_total");
  gpu.memory_used_bytes = std::min(bytes_file(files, device + "mem_info_vram_used"), gpu.memory_total_bytes);
  gpu.memory_free_bytes = gpu.memory_total_bytes - gpu.memory_used_bytes;
  gpu.integrated = gpu.memory_total_bytes > 0 && gpu.memory_total_bytes < kSmallestCard;
  if (const auto name = files.line(device + "product_name")) gpu.name = *name;
  if (const auto id = files.line(device + "unique_id")) gpu.uuid = *id;
  read_levels(files, device + "pp_dpm_sclk", gpu.core_mhz, gpu.core_max_mhz);
  read_levels(files, device + "pp_dpm_mclk", gpu.memory_mhz, gpu.memory_max_mhz);
  for (const std::string& monitor : files.names(device + "hwmon"))
    if (const auto microwatts = files.integer(device + "hwmon/" + monitor + "/power1_cap");
        microwatts && *microwatts > 0)
      gpu.power_limit_watts = static_cast<double>(*microwatts) / 1e6;
  gpu.driver = files.line("sys/module/amdgpu/version").value_or("amdgpu");
  gpu.compute_capability = amd_gfx(files, gpu.pci_address);
}

// Bytes of the n-th window (from 0) in a PCI device's "resource" file: lines of first, last and flags.
Bytes window_bytes(const SystemFiles& files, const std::string& device, std::size_t n) {
  const auto text = files.text(device + "resource");
  if (!text) return 0;
  const auto lines = lines_of(*text);
  if (n >= lines.size()) return 0;
  const auto words = split(trim(lines[n]), ' ');
  if (words.size() < 2) return 0;
  const auto first = parse_integer(words[0]), last = parse_integer(words[1]);
  return first && last && *last > *first && *first > 0 ? static_cast<Bytes>(*last - *first) + 1 : 0;
}

void read_intel(const SystemFiles& files, const std::string& card, const std::string& device, GpuInfo& gpu) {
  constexpr std::size_t kMemoryWindow = 2;
  gpu.vendor = GpuVendor::intel;
  gpu.driver = files.link_name(device + "driver");
  gpu.integrated = gpu.pci_address.starts_with("0000:00:");
  if (gpu.integrated) return;
  gpu.memory_total_bytes = bytes_file(files, card + "lmem_total_bytes");
  gpu.memory_free_bytes = bytes_file(files, card + "lmem_avail_bytes");
  if (gpu.memory_total_bytes == 0) {  // neither driver tells; with a resizable window that spans all memory, it does
    gpu.memory_total_bytes = gpu.memory_free_bytes = window_bytes(files, device, kMemoryWindow);
    gpu.memory_is_estimate = gpu.memory_total_bytes > 0;
  }
  gpu.memory_used_bytes = gpu.memory_total_bytes - std::min(gpu.memory_free_bytes, gpu.memory_total_bytes);
  if (const auto mhz = files.integer(card + "gt_max_freq_mhz"); mhz && *mhz > 0)
    gpu.core_max_mhz = static_cast<double>(*mhz);
  if (const auto mhz = files.integer(device + "tile0/gt0/freq0/max_freq"); mhz && *mhz > 0)
    gpu.core_max_mhz = static_cast<double>(*mhz);
}

std::string fallback_name(const SystemFiles& files, const std::string& device, std::int64_t vendor) {
  const std::int64_t id = files.integer(device + "device").value_or(0);
  if (std::string name = pci_name(files, vendor, id); !name.empty()) return name;
  const char* maker = vendor == kVendorAmd ? "AMD" : vendor == kVendorIntel ? "Intel" : "NVIDIA";
  return std::string(maker) + " " + hex4(vendor) + ":" + hex4(id);
}

// nvidia-smi's words for where the paths of two PCI devices part.
std::string pci_relation(const SystemFiles& files, const GpuInfo& a, const GpuInfo& b) {
  std::error_code error;
  const Path first = std::filesystem::canonical(files.path("sys/bus/pci/devices/" + a.pci_address), error);
  if (error) return {};
  const Path second = std::filesystem::canonical(files.path("sys/bus/pci/devices/" + b.pci_address), error);
  if (error) return {};
  int bridges = 0;  // common PCI functions on the way down from the root complex
  bool same_root = false;
  auto i = first.begin(), j = second.begin();
  for (; i != first.end() && j != second.end() && *i == *j; ++i, ++j) {
    const std::string part = i->string();
    if (part.starts_with("pci"))
      same_root = true;
    else if (same_root && part.find(':') != std::string::npos)
      ++bridges;
  }
  if (bridges > 0) {
    const auto rest = std::distance(i, first.end());
    return rest <= 2 ? "PIX" : "PXB";  // one bridge of its own at most: the same switch
  }
  if (same_root) return "PHB";
  if (a.numa_node && a.numa_node == b.numa_node) return "NODE";
  return a.numa_node && b.numa_node ? "SYS" : "";
}

}  // namespace

std::optional<int> pcie_generation(std::string_view speed) {
  const auto rate = parse_leading_number(speed);
  if (!rate || speed.find("GT/s") == std::string_view::npos) return std::nullopt;
  constexpr double rates[] = {2.5, 5, 8, 16, 32, 64, 128};
  for (int i = 0; i < 7; ++i)
    if (*rate == rates[i]) return i + 1;
  return std::nullopt;
}

std::string normal_pci_address(std::string_view address) {
  const std::string lower = to_lower(trim(address));
  const std::size_t colon = lower.find(':');
  if (colon == std::string::npos) return lower;
  std::string domain = lower.substr(0, colon);
  while (domain.size() > 4 && domain.front() == '0') domain.erase(0, 1);
  while (domain.size() < 4) domain.insert(0, 1, '0');
  return domain + lower.substr(colon);
}

GpuReport gpus_from_sysfs(const SystemFiles& files) {
  GpuReport report;
  std::vector<std::string> hives;  // AMD: cards of one hive are joined by xGMI
  for (const std::string& name : files.names("sys/class/drm")) {
    if (!name.starts_with("card") || name.find('-') != std::string::npos) continue;
    const std::string card = "sys/class/drm/" + name + "/", device = card + "device/";
    const std::int64_t vendor = files.integer(device + "vendor").value_or(0);
    if (vendor != kVendorAmd && vendor != kVendorIntel) continue;
    GpuInfo gpu;
    gpu.source = "sysfs";
    std::error_code error;
    const Path real = std::filesystem::canonical(files.path(device), error);
    if (!error) gpu.pci_address = normal_pci_address(real.filename().string());
    read_pcie(files, device, gpu);
    if (vendor == kVendorAmd)
      read_amd(files, device, gpu);
    else
      read_intel(files, card, device, gpu);
    if (gpu.name.empty()) gpu.name = fallback_name(files, device, vendor);
    hives.push_back(files.line(device + "xgmi_hive_info/xgmi_hive_id").value_or(""));
    report.gpus.push_back(std::move(gpu));
  }
  for (const std::string& address : files.names("sys/bus/pci/devices")) {
    const std::string device = "sys/bus/pci/devices/" + address + "/";
    const std::int64_t kind = files.integer(device + "class").value_or(0) >> 16;
    if (files.integer(device + "vendor").value_or(0) != kVendorNvidia || kind != 0x03) continue;
    GpuInfo gpu;
    gpu.vendor = GpuVendor::nvidia;
    gpu.source = "pci";
    gpu.pci_address = normal_pci_address(address);
    gpu.name = fallback_name(files, device, kVendorNvidia);
    gpu.driver = files.link_name(device + "driver");
    read_pcie(files, device, gpu);
    report.notes.push_back(
        {"hardware_probe.nvidia_without_library", {{"name", gpu.name}, {"address", gpu.pci_address}}});
    hives.emplace_back();
    report.gpus.push_back(std::move(gpu));
  }
  for (int a = 0; a < static_cast<int>(report.gpus.size()); ++a)
    for (int b = a + 1; b < static_cast<int>(report.gpus.size()); ++b) {
      const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
      const bool hive = !hives[i].empty() && hives[i] != "0" && hives[i] == hives[j];
      report.links.push_back(
          {a, b, hive ? "XGMI" : pci_relation(files, report.gpus[i], report.gpus[j]), 0, std::nullopt});
    }
  return report;
}

}  // namespace fathom::hardware
