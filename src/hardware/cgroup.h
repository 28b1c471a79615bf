// What a container or a service manager allows this process: cgroup v2 and v1, the tightest limit on the way to the
// root.
#pragma once
#include <optional>
#include <string>

#include "base/units.h"
#include "hardware/probe_files.h"

namespace fathom::hardware {

struct CgroupLimits {
  int version = 0;                         // 0: none found; 1 or 2: whose memory controller (else whose CPU) applies
  std::optional<Bytes> memory_bytes;       // absent: unlimited
  std::optional<Bytes> memory_used_bytes;  // in the group that sets the limit, without file pages that can be dropped
  std::optional<double> cpus;              // quota over period; absent: unlimited
  bool operator==(const CgroupLimits&) const = default;
};

CgroupLimits read_cgroup(const SystemFiles& files);

}  // namespace fathom::hardware
