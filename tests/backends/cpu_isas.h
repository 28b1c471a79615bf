// The instruction sets of this machine that backend cpu has code for.
#pragma once
#include <string>
#include <vector>

#include "backends/cpu/isa.h"
#include "hardware/cpu_info.h"

namespace fathom::test {

inline std::vector<std::string> isas_here() {
  std::vector<std::string> names;
  for (const cpu::Implementation& each : cpu::implementations())
    if (cpu::missing_for(each, hardware::executable_isa()).empty()) names.emplace_back(each.name);
  return names;
}

}  // namespace fathom::test
