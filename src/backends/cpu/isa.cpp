#include "backends/cpu/isa.h"

#include <cstdlib>
#include <vector>

#include "base/strings.h"
#include "hardware/cpu_info.h"

namespace fathom::cpu {
namespace {
using hardware::Isa;

constexpr Isa kAvx2[] = {Isa::avx2, Isa::fma, Isa::f16c};
constexpr Isa kAvx512[] = {Isa::avx512f, Isa::avx512bw, Isa::avx512dq, Isa::avx512vl, Isa::avx2, Isa::fma, Isa::f16c};
constexpr Isa kAvx512Bf16[] = {Isa::avx512_bf16, Isa::avx512_vnni, Isa::avx512f, Isa::avx512bw, Isa::avx512dq,
                               Isa::avx512vl,    Isa::avx2,        Isa::fma,     Isa::f16c};
constexpr Isa kAmx[] = {Isa::amx_bf16, Isa::amx_tile, Isa::avx512_bf16, Isa::avx512_vnni, Isa::avx512f, Isa::avx512bw,
                        Isa::avx512dq, Isa::avx512vl, Isa::avx2,        Isa::fma,         Isa::f16c};

constexpr Implementation kImplementations[] = {
    {"amx", kAmx, amx_kernels},          {"avx512_bf16", kAvx512Bf16, avx512_bf16_kernels},
    {"avx512", kAvx512, avx512_kernels}, {"avx2", kAvx2, avx2_kernels},
    {"scalar", {}, scalar_kernels},
};

std::string available_names(hardware::IsaSet executable) {
  std::vector<std::string> names;
  for (const Implementation& each : kImplementations)
    if (missing_for(each, executable).empty()) names.emplace_back(each.name);
  return fathom::join(names);
}
}  // namespace

std::span<const Implementation> implementations() { return kImplementations; }

std::string missing_for(const Implementation& implementation, hardware::IsaSet executable) {
  std::vector<std::string> missing;
  for (const Isa isa : implementation.needs)
    if (!executable.has(isa)) missing.emplace_back(hardware::isa_name(isa));
  if (missing.empty() && implementation.kernels() == nullptr) missing.emplace_back(implementation.name);
  return fathom::join(missing);
}

Result<const Implementation*> choose_implementation(std::string_view wanted) {
  const hardware::IsaSet executable = hardware::executable_isa();
  const char* environment = std::getenv("FATHOM_ISA");
  if (wanted.empty() && environment != nullptr) wanted = environment;
  for (const Implementation& each : kImplementations) {
    if (!wanted.empty() && each.name != wanted) continue;
    const std::string missing = missing_for(each, executable);
    if (missing.empty()) return &each;
    if (!wanted.empty())
      return fail_environment(
          "cpu.isa_unavailable",
          {{"name", std::string(wanted)}, {"missing", missing}, {"available", available_names(executable)}});
  }
  return fail("cpu.unknown_isa", {{"name", printable(wanted)}, {"available", available_names(executable)}});
}

}  // namespace fathom::cpu
