// The peak rate of this CPU's arithmetic, instruction family by instruction family, with everything in registers.
#pragma once
#include <vector>

#include "hardware/probe.h"
#include "hardware/probe_crew.h"

namespace fathom::hardware {

/// One result for each family that `isa` has: plain, AVX2 and AVX-512 fp32; AVX-512 bf16 dot and fp16; VNNI int8; AMX
/// bf16 and int8. First one thread alone, then all of the crew. A multiply-add counts two.
std::vector<PeakResult> measure_peaks(Crew& crew, IsaSet isa, Effort effort);

/// One family: how often `run` repeats its block of instructions, and what one block computes.
struct PeakKernel {
  const char* name;
  Precision precision;
  double flops_per_round;
  void (*run)(std::uint64_t rounds);
};
std::vector<PeakKernel> peak_kernels(IsaSet isa);

}  // namespace fathom::hardware
