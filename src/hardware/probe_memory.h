// Main memory: sizes, limits, huge pages, and its modules where the firmware or EDAC can be read.
#pragma once
#include "hardware/cgroup.h"
#include "hardware/machine.h"
#include "hardware/probe_files.h"

namespace fathom::hardware {

MemoryInfo read_memory(const SystemFiles& files, const CgroupLimits& limits);

}  // namespace fathom::hardware
