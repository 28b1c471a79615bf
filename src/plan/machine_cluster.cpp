// A probed machine as a cluster of one node.
#include <algorithm>

#include "base/strings.h"
#include "plan/calibration.h"
#include "plan/cluster.h"

namespace fathom::plan {
namespace {

using hardware::GpuInfo;
using hardware::Isa;
using hardware::Machine;
using hardware::Precision;

struct KnownGpus {
  hardware::HardwareChoice choice;
  int count = 0;
  bool linked = false;
  Bytes memory = 0;
};

/// Of the accelerators that the catalog knows, those of the kind with the most memory together.
std::optional<KnownGpus> best_gpus(const Machine& machine) {
  std::vector<KnownGpus> kinds;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < machine.gpus.size(); ++i) {
    const GpuInfo& gpu = machine.gpus[i];
    if (gpu.integrated && gpu.memory_total_bytes == 0) continue;
    auto at = std::find(names.begin(), names.end(), gpu.name);
    if (at == names.end()) {
      const auto catalog = hardware::hardware_catalog();
      const auto choice = catalog ? (*catalog)->find(gpu.name, gpu.memory_is_estimate ? 0 : gpu.memory_total_bytes)
                                  : Result<hardware::HardwareChoice>(tl::unexpected<Error>(catalog.error()));
      if (!choice) continue;
      names.push_back(gpu.name);
      kinds.push_back({.choice = *choice, .memory = gpu.memory_total_bytes});
      at = names.end() - 1;
    }
    KnownGpus& kind = kinds[static_cast<std::size_t>(at - names.begin())];
    ++kind.count;
    kind.linked = kind.linked || gpu.active_nvlinks() > 0;
  }
  if (kinds.empty()) return std::nullopt;
  return *std::max_element(kinds.begin(), kinds.end(), [](const KnownGpus& a, const KnownGpus& b) {
    return static_cast<Bytes>(a.count) * a.choice.usable_bytes < static_cast<Bytes>(b.count) * b.choice.usable_bytes;
  });
}

// Without a measurement: FLOPs a cycle and core that the widest units do, and a clock that all cores hold.
constexpr double kFallbackHz = 2.5e9, kBytesPerSecondPerCore = 5e9;
double flops_per_cycle(const hardware::IsaSet& isa, Precision precision) {
  const bool sixteen = precision == Precision::bf16 || precision == Precision::fp16;
  if (sixteen && isa.has(Isa::amx_bf16)) return 1024;
  if (sixteen && isa.has(Isa::avx512_bf16)) return 128;
  if (isa.has(Isa::avx512f)) return 64;
  if (isa.has(Isa::avx2)) return 32;
  return isa.has(Isa::neon) ? 16 : 8;
}

Device host_device(const Machine& machine) {
  Device device{.id = "cpu", .name = machine.cpu.model, .cores = std::max(machine.cpu.usable_threads, 1)};
  device.capacity_bytes = machine.usable_memory_bytes();
  const auto catalog = hardware::hardware_catalog();
  if (const auto cpu = catalog ? (*catalog)->find_cpu(machine.cpu.model)
                               : Result<const hardware::Cpu*>(tl::unexpected<Error>(catalog.error()));
      cpu)
    device.cpu = *cpu;
  device.probed = machine.read_bandwidth().has_value();
  if (device.probed)
    device.bandwidth_bytes_per_second = *machine.read_bandwidth();
  else if (machine.memory.theoretical_bytes_per_second())
    device.bandwidth_bytes_per_second = 0.8 * *machine.memory.theoretical_bytes_per_second();
  else
    device.bandwidth_bytes_per_second = kBytesPerSecondPerCore * device.cores;
  const double hz = machine.cpu.max_mhz ? *machine.cpu.max_mhz * 1e6 : kFallbackHz;
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp16})
    device.peak_flops[static_cast<std::size_t>(precision)] = machine.peak_flops(precision).value_or(
        flops_per_cycle(machine.cpu.isa, precision) * hz * std::max(machine.cpu.usable_cores, 1));
  return device;
}

}  // namespace

Result<Cluster> machine_cluster(const Machine& machine, bool cpu_only) {
  const auto gpus = cpu_only ? std::nullopt : best_gpus(machine);
  if (!gpus) {
    // The host's memory is the device's own: there is nowhere to offload to.
    Cluster host{.device = host_device(machine)};
    FATHOM_TRY(host.device.calibration, find_calibration(host.device));
    return host;
  }
  FATHOM_TRY(Cluster cluster, make_cluster(gpus->choice, gpus->count, gpus->count));
  cluster.domain = cluster.devices_per_node = gpus->count;
  if (!gpus->linked && cluster.host.bytes_per_second > 0)
    cluster.intra = {cluster.host.id, cluster.host.bytes_per_second, cluster.host.latency_seconds};
  if (gpus->memory > 0) cluster.device.capacity_bytes = std::min(cluster.device.capacity_bytes, gpus->memory);
  cluster.host_memory_bytes = machine.memory.total_bytes;
  return cluster;
}

}  // namespace fathom::plan
