// The part of NVIDIA's management library that we use, found at run time. Declared here from the documented ABI, so
// that nothing of NVIDIA's is needed to build.
#pragma once
#include <memory>

#include "hardware/gpu_probe.h"

namespace fathom::hardware {

inline constexpr int kNvmlSuccess = 0;
using NvmlDevice = void*;

struct NvmlMemory {
  unsigned long long total, free, used;
};
static_assert(sizeof(NvmlMemory) == 24);

struct NvmlPci {
  char bus_id_legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
static_assert(sizeof(NvmlPci) == 68);

struct NvmlField {
  unsigned field, scope;
  long long timestamp, latency_us;
  int value_type, result;
  union {
    double as_double;
    unsigned as_unsigned;
    unsigned long long as_u64;
  } value;
};
static_assert(sizeof(NvmlField) == 40);

/// Functions of the library; one that this version lacks is null, and what it would tell stays unknown.
struct NvmlApi {
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*driver_version)(char*, unsigned) = nullptr;
  int (*cuda_version)(int*) = nullptr;
  int (*device_count)(unsigned*) = nullptr;
  int (*device_by_index)(unsigned, NvmlDevice*) = nullptr;
  int (*name)(NvmlDevice, char*, unsigned) = nullptr;
  int (*uuid)(NvmlDevice, char*, unsigned) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*pci)(NvmlDevice, NvmlPci*) = nullptr;
  int (*clock)(NvmlDevice, int type, unsigned*) = nullptr;
  int (*max_clock)(NvmlDevice, int type, unsigned*) = nullptr;
  int (*power_limit)(NvmlDevice, unsigned*) = nullptr;
  int (*pcie_generation)(NvmlDevice, unsigned*) = nullptr;
  int (*pcie_width)(NvmlDevice, unsigned*) = nullptr;
  int (*pcie_max_generation)(NvmlDevice, unsigned*) = nullptr;
  int (*pcie_max_width)(NvmlDevice, unsigned*) = nullptr;
  int (*bus_width)(NvmlDevice, unsigned*) = nullptr;
  int (*compute_capability)(NvmlDevice, int*, int*) = nullptr;
  int (*mig_mode)(NvmlDevice, unsigned* current, unsigned* pending) = nullptr;
  int (*mig_count)(NvmlDevice, unsigned*) = nullptr;
  int (*mig_by_index)(NvmlDevice, unsigned, NvmlDevice*) = nullptr;
  int (*nvlink_state)(NvmlDevice, unsigned link, unsigned* active) = nullptr;
  int (*nvlink_version)(NvmlDevice, unsigned link, unsigned*) = nullptr;
  int (*nvlink_remote_pci)(NvmlDevice, unsigned link, NvmlPci*) = nullptr;
  int (*nvlink_remote_type)(NvmlDevice, unsigned link, unsigned*) = nullptr;
  int (*common_ancestor)(NvmlDevice, NvmlDevice, unsigned* level) = nullptr;
  int (*p2p_status)(NvmlDevice, NvmlDevice, int capability, unsigned*) = nullptr;
  int (*field_values)(NvmlDevice, int count, NvmlField*) = nullptr;
};

/// libnvidia-ml.so.1 opened with dlopen, kept open; nullopt when it is not there or lacks the basics.
std::optional<NvmlApi> load_nvml();
/// Every device that the library shows, MIG instances in place of a partitioned card. Initialises and shuts down.
GpuReport gpus_from_nvml(const NvmlApi& api);

}  // namespace fathom::hardware
