// Accelerators of this machine and what lies between them: NVIDIA through its management library, AMD and Intel through
// sysfs (names through rocm-smi or pci.ids), Ascend through npu-smi. Nothing needs to be installed; what is not there
// is simply not found.
#pragma once
#include <string_view>
#include <vector>

#include "hardware/machine.h"
#include "hardware/probe_files.h"

namespace fathom::hardware {

struct GpuReport {
  std::vector<GpuInfo> gpus;
  std::vector<GpuLink> links;  // a < b index gpus
  std::vector<Note> notes;
};

/// All of it. On the real root also asks libraries and tools, each under a time limit.
GpuReport probe_gpus(const SystemFiles& files);

/// AMD and Intel, and NVIDIA cards without a working driver (then with a note), from sysfs alone.
GpuReport gpus_from_sysfs(const SystemFiles& files);
/// Names from `rocm-smi --showproductname --showbus --json`, matched by PCI address. Malformed text changes nothing.
void add_rocm_names(std::string_view json, std::vector<GpuInfo>& gpus);
/// The table that `npu-smi info` prints.
std::vector<GpuInfo> parse_npu_smi(std::string_view table);
/// "0000:1b:00.0" out of "00000000:1B:00.0" and the like; lower case, four digits of domain.
std::string normal_pci_address(std::string_view address);
/// PCIe generation of a speed as sysfs prints it: "16.0 GT/s PCIe" -> 4.
std::optional<int> pcie_generation(std::string_view speed);

}  // namespace fathom::hardware
