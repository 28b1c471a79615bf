// The implementations of the kernels, best first, and why one cannot run here.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "backends/cpu/kernels.h"
#include "base/result.h"
#include "hardware/machine.h"

namespace fathom::cpu {

struct Implementation {
  std::string_view name;                  // what FATHOM_ISA and --isa call it
  std::span<const hardware::Isa> needs;   // all of these must be executable
  const Kernels* (*kernels)() = nullptr;  // null when not built for this processor
};

/// amx, avx512_bf16, avx512, avx2, scalar. The last runs everywhere.
std::span<const Implementation> implementations();
/// What `implementation` needs and this process cannot execute; empty when it runs here.
std::string missing_for(const Implementation& implementation, hardware::IsaSet executable);
/// `wanted` by name; "" is the value of FATHOM_ISA, and without that the best that runs here.
/// kInput "cpu.unknown_isa" or kEnvironment "cpu.isa_unavailable", each naming what there is.
Result<const Implementation*> choose_implementation(std::string_view wanted);

}  // namespace fathom::cpu
