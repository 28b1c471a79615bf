// The processor: from /proc/cpuinfo and sysfs under a given root, completed by hwloc (which asks the chip itself) where
// the real machine's sysfs says nothing.
#pragma once
#include <vector>

#include "hardware/cgroup.h"
#include "hardware/machine.h"
#include "hardware/probe_files.h"

namespace fathom::hardware {

/// Everything about the CPU but its speed. `limits` bounds usable_threads.
CpuInfo read_cpu(const SystemFiles& files, const CgroupLimits& limits);

/// Instruction sets named by a "flags" (x86) or "Features" (ARM) line of /proc/cpuinfo.
IsaSet isa_from_flags(std::string_view flags);
/// What this process can execute right now, asked of the chip and the operating system (CPUID and XCR0, or the
/// auxiliary vector). AMX counts only after the kernel granted its use, which the first call requests.
IsaSet executable_isa();

/// Fills caches and NUMA nodes that are still unknown from hwloc. Of the real machine only.
void complete_with_hwloc(CpuInfo& cpu);

/// The usable CPUs in the order in which threads should take them: one per physical core first, spread over NUMA nodes.
struct CpuPlace {
  int cpu = 0;
  int node = 0;
  bool operator==(const CpuPlace&) const = default;
};
std::vector<CpuPlace> thread_places(const SystemFiles& files, const CpuInfo& cpu);

}  // namespace fathom::hardware
