// Cluster: the devices of a plan and what lies between them, resolved from the catalog, a file, or this machine.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/units.h"
#include "hardware/catalog.h"
#include "hardware/machine.h"

namespace fathom::plan {

/// What Fathom's own kernels reach on a device, timed on it (measure/kernels.h). FLOPs and bytes a second.
struct KernelRates {
  double product_flops = 0;    // large products: hundreds of tokens, weights from memory
  double attention_flops = 0;  // prefill of attention_keys keys
  double attention_keys = 0;
  double decode_attention_flops = 0;  // of one new token a sequence
  double expert_flops = 0;            // grouped products, some dozens of tokens an expert
  double stream_bytes = 0;            // weights of one token's products
  double expert_bytes = 0;            // weights of one token's experts
  double elementwise_bytes = 0;       // read and written
  bool operator==(const KernelRates&) const = default;
};

struct Calibration;  // calibration.h

/// One device. On a machine without an accelerator the whole host is one device.
struct Device {
  std::string id, name;
  const hardware::Accelerator* accelerator = nullptr;  // null: a host CPU
  const hardware::Cpu* cpu = nullptr;                  // the CPU's facts when it is one and is known
  Bytes capacity_bytes = 0;                            // what a plan may count on
  double bandwidth_bytes_per_second = 0;  // of its memory: peak for accelerators, measured for a probed host
  std::array<std::optional<double>, hardware::kPrecisionCount> peak_flops;  // dense
  int cores = 0;                                                            // CPU: threads that a plan uses
  bool probed = false;                                                      // figures were measured on this machine
  std::optional<KernelRates> kernels;                                       // for engines that run them
  std::shared_ptr<const Calibration> calibration;  // tables of what they take; where `kernels` were timed, those count
  bool is_cpu() const { return accelerator == nullptr; }
};

/// A way between devices: each direction, one device.
struct Wire {
  std::string id;               // of the link, "" unknown
  double bytes_per_second = 0;  // 0: none
  double latency_seconds = 0;
};

struct Cluster {
  Device device;
  int devices = 1;
  int devices_per_node = 1;     // physical node: host and network card boundary
  int domain = 1;               // devices that reach each other over `intra` (an NVL72 rack is wider than a node)
  Wire intra;                   // within the domain, of one device
  Wire inter;                   // between domains, of one device (the node's ports shared by its devices)
  Wire host;                    // device to its host's memory
  Bytes host_memory_bytes = 0;  // of one node; 0: not known
};

/// One device of a catalog's choice.
Device device_of(const hardware::HardwareChoice& choice);
/// `devices` of it. per_node, network (link ids): instead of what the hardware is sold with; an unknown link is an
/// error.
Result<Cluster> make_cluster(const hardware::HardwareChoice& choice, int devices, std::optional<int> per_node = {},
                             std::span<const std::string> network = {});
/// This machine as probed: its accelerators of the most capable kind, or else the host itself as one device.
/// `cpu_only`: the host even when there are accelerators.
Result<Cluster> machine_cluster(const hardware::Machine& machine, bool cpu_only = false);

}  // namespace fathom::plan
