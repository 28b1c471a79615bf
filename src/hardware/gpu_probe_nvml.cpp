#include "hardware/gpu_probe_nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/strings.h"

namespace fathom::hardware {
namespace {

constexpr unsigned kMaxLinks = 36;  // no device has more; the library refuses indices beyond its own
constexpr int kClockCore = 1, kClockMemory = 2;
constexpr unsigned kRemoteGpu = 0, kRemoteSwitch = 2;
constexpr int kP2pRead = 0;
constexpr unsigned kP2pOk = 0;
constexpr unsigned kFieldCommonLinkSpeed = 90, kFieldLinkSpeed = 164;  // 10^6 bytes per second; the second of one link
constexpr unsigned kLevelBoard = 0, kLevelSwitch = 10, kLevelSwitches = 20, kLevelHostBridge = 30, kLevelNode = 40,
                   kLevelSystem = 50;

template <class F>
void look_up(void* library, F& function, const char* name) {
  function = reinterpret_cast<F>(::dlsym(library, name));
}

// Calls when the function is there; true when it answered.
template <class F, class... Args>
bool ask(F function, Args... args) {
  return function != nullptr && function(args...) == kNvmlSuccess;
}

std::string text_of(const char* buffer, std::size_t size) { return std::string(buffer, ::strnlen(buffer, size)); }

template <class F>
std::string ask_text(F function, NvmlDevice device) {
  char buffer[128] = {};
  return ask(function, device, buffer, static_cast<unsigned>(sizeof buffer)) ? text_of(buffer, sizeof buffer)
                                                                             : std::string();
}

template <class F>
std::optional<int> ask_int(F function, NvmlDevice device) {
  unsigned value = 0;
  return ask(function, device, &value) && value < (1u << 30) ? std::optional(static_cast<int>(value)) : std::nullopt;
}

template <class F>
std::optional<double> ask_clock(F function, NvmlDevice device, int type) {
  unsigned mhz = 0;
  return ask(function, device, type, &mhz) && mhz > 0 ? std::optional(static_cast<double>(mhz)) : std::nullopt;
}

std::string pci_text(const NvmlPci& pci) {
  const std::string full = text_of(pci.bus_id, sizeof pci.bus_id);
  return normal_pci_address(full.empty() ? text_of(pci.bus_id_legacy, sizeof pci.bus_id_legacy) : full);
}

std::vector<NvLinkPort> read_links(const NvmlApi& api, NvmlDevice device) {
  std::vector<NvLinkPort> ports;
  for (unsigned link = 0; link < kMaxLinks; ++link) {
    unsigned active = 0;
    if (!ask(api.nvlink_state, device, link, &active)) {
      if (link == 0) continue;  // some report no state for the first while others work
      break;
    }
    NvLinkPort port;
    port.index = static_cast<int>(link);
    port.active = active != 0;
    if (port.active) {
      unsigned value = 0;
      if (ask(api.nvlink_version, device, link, &value)) port.version = static_cast<int>(value);
      if (ask(api.nvlink_remote_type, device, link, &value))
        port.remote_kind = value == kRemoteGpu ? "gpu" : value == kRemoteSwitch ? "switch" : "other";
      NvmlPci pci = {};
      if (ask(api.nvlink_remote_pci, device, link, &pci)) port.remote_pci = pci_text(pci);
      if (port.remote_pci.starts_with("ffffffff"))
        port.remote_pci.clear();  // a switch that is not shown to this machine
    }
    ports.push_back(std::move(port));
  }
  return ports;
}

// Bytes per second of one link and direction: of all links, or where the driver no longer tells that, of the first
// active.
std::optional<double> link_speed(const NvmlApi& api, NvmlDevice device, const std::vector<NvLinkPort>& ports) {
  const auto active = std::find_if(ports.begin(), ports.end(), [](const NvLinkPort& port) { return port.active; });
  if (active == ports.end()) return std::nullopt;
  for (const unsigned id : {kFieldCommonLinkSpeed, kFieldLinkSpeed}) {
    NvmlField field = {};
    field.field = id;
    field.scope = id == kFieldLinkSpeed ? static_cast<unsigned>(active->index) : 0;
    if (ask(api.field_values, device, 1, &field) && field.result == kNvmlSuccess && field.value.as_unsigned > 0)
      return field.value.as_unsigned * 1e6;
  }
  return std::nullopt;
}

GpuInfo read_device(const NvmlApi& api, NvmlDevice device) {
  GpuInfo gpu;
  gpu.vendor = GpuVendor::nvidia;
  gpu.source = "nvml";
  gpu.name = ask_text(api.name, device);
  gpu.uuid = ask_text(api.uuid, device);
  NvmlPci pci = {};
  if (ask(api.pci, device, &pci)) gpu.pci_address = pci_text(pci);
  NvmlMemory memory = {};
  if (ask(api.memory, device, &memory))
    gpu.memory_total_bytes = memory.total, gpu.memory_free_bytes = memory.free, gpu.memory_used_bytes = memory.used;
  gpu.core_mhz = ask_clock(api.clock, device, kClockCore);
  gpu.memory_mhz = ask_clock(api.clock, device, kClockMemory);
  gpu.core_max_mhz = ask_clock(api.max_clock, device, kClockCore);
  gpu.memory_max_mhz = ask_clock(api.max_clock, device, kClockMemory);
  if (const auto milliwatts = ask_int(api.power_limit, device)) gpu.power_limit_watts = *milliwatts / 1000.0;
  gpu.pcie_generation = ask_int(api.pcie_generation, device);
  gpu.pcie_width = ask_int(api.pcie_width, device);
  gpu.pcie_max_generation = ask_int(api.pcie_max_generation, device);
  gpu.pcie_max_width = ask_int(api.pcie_max_width, device);
  gpu.memory_bus_bits = ask_int(api.bus_width, device);
  int major = 0, minor = 0;
  if (ask(api.compute_capability, device, &major, &minor))
    gpu.compute_capability = std::to_string(major) + "." + std::to_string(minor);
  unsigned current = 0, pending = 0;
  if (ask(api.mig_mode, device, &current, &pending)) gpu.mig = current != 0;
  gpu.nvlinks = read_links(api, device);
  gpu.nvlink_bytes_per_second = link_speed(api, device, gpu.nvlinks);
  return gpu;
}

// The instances of a partitioned card, each as a device with its own part of the memory and no links.
std::vector<std::pair<NvmlDevice, GpuInfo>> mig_instances(const NvmlApi& api, NvmlDevice parent, const GpuInfo& whole) {
  std::vector<std::pair<NvmlDevice, GpuInfo>> instances;
  unsigned count = 0;
  if (!whole.mig.value_or(false) || !ask(api.mig_count, parent, &count)) return instances;
  for (unsigned i = 0; i < std::min(count, 64u); ++i) {
    NvmlDevice handle = nullptr;
    if (!ask(api.mig_by_index, parent, i, &handle)) continue;
    GpuInfo gpu = whole;
    gpu.nvlinks.clear();
    gpu.nvlink_bytes_per_second.reset();
    if (const std::string name = ask_text(api.name, handle); !name.empty()) gpu.name = name;
    gpu.uuid = ask_text(api.uuid, handle);
    NvmlMemory memory = {};
    if (ask(api.memory, handle, &memory))
      gpu.memory_total_bytes = memory.total, gpu.memory_free_bytes = memory.free, gpu.memory_used_bytes = memory.used;
    instances.emplace_back(parent, std::move(gpu));
  }
  return instances;
}

// Links that lead straight to the other card, else those that both have into switches.
int links_between(const GpuInfo& a, const GpuInfo& b) {
  int direct = 0, switched_a = 0, switched_b = 0;
  for (const NvLinkPort& port : a.nvlinks) {
    direct +=
        port.active && port.remote_kind != "switch" && !port.remote_pci.empty() && port.remote_pci == b.pci_address;
    switched_a += port.active && port.remote_kind == "switch";
  }
  for (const NvLinkPort& port : b.nvlinks) switched_b += port.active && port.remote_kind == "switch";
  return direct > 0 ? direct : std::min(switched_a, switched_b);
}

const char* level_name(unsigned level) {
  switch (level) {
    case kLevelBoard:
      return "BOARD";
    case kLevelSwitch:
      return "PIX";
    case kLevelSwitches:
      return "PXB";
    case kLevelHostBridge:
      return "PHB";
    case kLevelNode:
      return "NODE";
    case kLevelSystem:
      return "SYS";
    default:
      return "";
  }
}

GpuLink read_link(const NvmlApi& api, int a, int b, const std::vector<std::pair<NvmlDevice, GpuInfo>>& devices) {
  const auto& [handle_a, gpu_a] = devices[static_cast<std::size_t>(a)];
  const auto& [handle_b, gpu_b] = devices[static_cast<std::size_t>(b)];
  GpuLink link{a, b, "", links_between(gpu_a, gpu_b), std::nullopt};
  unsigned value = 0;
  if (handle_a == handle_b)
    link.path = "BOARD";
  else if (link.nvlinks > 0)
    link.path = "NV" + std::to_string(link.nvlinks);
  else if (ask(api.common_ancestor, handle_a, handle_b, &value))
    link.path = level_name(value);
  if (handle_a != handle_b && ask(api.p2p_status, handle_a, handle_b, kP2pRead, &value))
    link.peer_to_peer = value == kP2pOk;
  return link;
}

std::string cuda_text(int version) {
  return "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::optional<NvmlApi> load_nvml() {
  void* library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::nullopt;
  NvmlApi api;
  look_up(library, api.init, "nvmlInit_v2");
  look_up(library, api.shutdown, "nvmlShutdown");
  look_up(library, api.driver_version, "nvmlSystemGetDriverVersion");
  look_up(library, api.cuda_version, "nvmlSystemGetCudaDriverVersion_v2");
  look_up(library, api.device_count, "nvmlDeviceGetCount_v2");
  look_up(library, api.device_by_index, "nvmlDeviceGetHandleByIndex_v2");
  look_up(library, api.name, "nvmlDeviceGetName");
  look_up(library, api.uuid, "nvmlDeviceGetUUID");
  look_up(library, api.memory, "nvmlDeviceGetMemoryInfo");
  look_up(library, api.pci, "nvmlDeviceGetPciInfo_v3");
  look_up(library, api.clock, "nvmlDeviceGetClockInfo");
  look_up(library, api.max_clock, "nvmlDeviceGetMaxClockInfo");
  look_up(library, api.power_limit, "nvmlDeviceGetEnforcedPowerLimit");
  look_up(library, api.pcie_generation, "nvmlDeviceGetCurrPcieLinkGeneration");
  look_up(library, api.pcie_width, "nvmlDeviceGetCurrPcieLinkWidth");
  look_up(library, api.pcie_max_generation, "nvmlDeviceGetMaxPcieLinkGeneration");
  look_up(library, api.pcie_max_width, "nvmlDeviceGetMaxPcieLinkWidth");
  look_up(library, api.bus_width, "nvmlDeviceGetMemoryBusWidth");
  look_up(library, api.compute_capability, "nvmlDeviceGetCudaComputeCapability");
  look_up(library, api.mig_mode, "nvmlDeviceGetMigMode");
  look_up(library, api.mig_count, "nvmlDeviceGetMaxMigDeviceCount");
  look_up(library, api.mig_by_index, "nvmlDeviceGetMigDeviceHandleByIndex");
  look_up(library, api.nvlink_state, "nvmlDeviceGetNvLinkState");
  look_up(library, api.nvlink_version, "nvmlDeviceGetNvLinkVersion");
  look_up(library, api.nvlink_remote_pci, "nvmlDeviceGetNvLinkRemotePciInfo_v2");
  look_up(library, api.nvlink_remote_type, "nvmlDeviceGetNvLinkRemoteDeviceType");
  look_up(library, api.common_ancestor, "nvmlDeviceGetTopologyCommonAncestor");
  look_up(library, api.p2p_status, "nvmlDeviceGetP2PStatus");
  look_up(library, api.field_values, "nvmlDeviceGetFieldValues");
  if (api.init == nullptr || api.device_count == nullptr || api.device_by_index == nullptr) return std::nullopt;
  return api;
}

GpuReport gpus_from_nvml(const NvmlApi& api) {
  GpuReport report;
  if (const int code = api.init == nullptr ? -1 : api.init(); code != kNvmlSuccess) {
    report.notes.push_back({"hardware_probe.nvml_failed", {{"code", std::to_string(code)}}});
    return report;
  }
  char driver[96] = {};
  int cuda = 0;
  ask(api.driver_version, driver, static_cast<unsigned>(sizeof driver));
  ask(api.cuda_version, &cuda);
  unsigned count = 0;
  ask(api.device_count, &count);
  std::vector<std::pair<NvmlDevice, GpuInfo>> devices;
  for (unsigned i = 0; i < std::min(count, 256u); ++i) {
    NvmlDevice handle = nullptr;
    if (!ask(api.device_by_index, i, &handle)) {
      report.notes.push_back({"hardware_probe.gpu_not_readable", {{"index", std::to_string(i)}}});
      continue;
    }
    GpuInfo gpu = read_device(api, handle);
    gpu.driver = text_of(driver, sizeof driver);
    if (cuda > 0) gpu.runtime = cuda_text(cuda);
    auto instances = mig_instances(api, handle, gpu);
    if (instances.empty())
      devices.emplace_back(handle, std::move(gpu));
    else
      std::move(instances.begin(), instances.end(), std::back_inserter(devices));
  }
  for (int a = 0; a < static_cast<int>(devices.size()); ++a)
    for (int b = a + 1; b < static_cast<int>(devices.size()); ++b)
      report.links.push_back(read_link(api, a, b, devices));
  for (auto& entry : devices) report.gpus.push_back(std::move(entry.second));
  if (api.shutdown != nullptr) api.shutdown();
  return report;
}

}  // namespace fathom::hardware
