#include "hardware/probe_compute.h"

#include <algorithm>
#include <cstring>

namespace fathom::hardware {
namespace {

// Twelve independent chains hide the latency of two units of four cycles each, with room to spare.
// Vectors of 16 bytes exist on every target; the compiler fuses multiply and add where the base instruction set can.
void run_plain_fp32(std::uint64_t rounds) {
  using Vector = float __attribute__((vector_size(16)));
  Vector sum[12], factor = {0.9995f, 0.9999f, 0.9996f, 0.9998f}, step = {0.5f, 0.25f, 0.125f, 0.0625f};
  for (int k = 0; k < 12; ++k) sum[k] = step * static_cast<float>(k);
  for (std::uint64_t i = 0; i < rounds; ++i)
    for (int k = 0; k < 12; ++k) sum[k] = sum[k] * factor + step;
  Vector all = sum[0];
  for (int k = 1; k < 12; ++k) all += sum[k];
  __asm__ volatile("" : : "m"(all));
}

#if defined(__x86_64__)

// The numbers that the instructions see: ordinary ones, since zeros draw less power than real work.
struct alignas(64) Operands {
  float fp32[16];
  std::uint16_t bf16[32];
  std::uint16_t fp16[32];
  std::uint8_t int8[64];
};

Operands operands() {
  Operands o;
  for (int i = 0; i < 16; ++i) o.fp32[i] = 0.75f + 0.01f * static_cast<float>(i);
  for (int i = 0; i < 32; ++i) o.bf16[i] = static_cast<std::uint16_t>(0x3f40 + i);  // 0.75 and a little more each
  for (int i = 0; i < 32; ++i) o.fp16[i] = static_cast<std::uint16_t>(0x1400 + i);  // about 0.001
  for (int i = 0; i < 64; ++i) o.int8[i] = static_cast<std::uint8_t>(37 * i + 11);
  return o;
}

// INSTRUCTION accumulates registers 14 and 15 into each of registers 0 to 11.
#define FATHOM_TWELVE(INSTRUCTION, R)                                                                             \
  INSTRUCTION " %%" R "14, %%" R "15, %%" R "0\n\t" INSTRUCTION " %%" R "14, %%" R "15, %%" R "1\n\t" INSTRUCTION \
              " %%" R "14, %%" R "15, %%" R "2\n\t" INSTRUCTION " %%" R "14, %%" R "15, %%" R "3\n\t" INSTRUCTION \
              " %%" R "14, %%" R "15, %%" R "4\n\t" INSTRUCTION " %%" R "14, %%" R "15, %%" R "5\n\t" INSTRUCTION \
              " %%" R "14, %%" R "15, %%" R "6\n\t" INSTRUCTION " %%" R "14, %%" R "15, %%" R "7\n\t" INSTRUCTION \
              " %%" R "14, %%" R "15, %%" R "8\n\t" INSTRUCTION " %%" R "14, %%" R "15, %%" R "9\n\t" INSTRUCTION \
              " %%" R "14, %%" R "15, %%" R "10\n\t" INSTRUCTION " %%" R "14, %%" R "15, %%" R "11\n\t"
#define FATHOM_ZERO_TWELVE                                                                              \
  "vxorps %%xmm0, %%xmm0, %%xmm0\n\tvxorps %%xmm1, %%xmm1, %%xmm1\n\tvxorps %%xmm2, %%xmm2, %%xmm2\n\t" \
  "vxorps %%xmm3, %%xmm3, %%xmm3\n\tvxorps %%xmm4, %%xmm4, %%xmm4\n\tvxorps %%xmm5, %%xmm5, %%xmm5\n\t" \
  "vxorps %%xmm6, %%xmm6, %%xmm6\n\tvxorps %%xmm7, %%xmm7, %%xmm7\n\tvxorps %%xmm8, %%xmm8, %%xmm8\n\t" \
  "vxorps %%xmm9, %%xmm9, %%xmm9\n\tvxorps %%xmm10, %%xmm10, %%xmm10\n\tvxorps %%xmm11, %%xmm11, %%xmm11\n\t"
#define FATHOM_CLOBBERED                                                                                            \
  "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
      "xmm14", "xmm15"

// A function that runs `rounds` times twelve INSTRUCTIONs on registers R ("ymm", "zmm"), operands loaded with LOAD.
#define FATHOM_PEAK(NAME, TARGET, INSTRUCTION, R, LOAD, FIELD)                                                \
  __attribute__((target(TARGET))) void NAME(std::uint64_t rounds) {                                           \
    static const Operands source = operands();                                                                \
    __asm__ volatile(FATHOM_ZERO_TWELVE LOAD                                                                  \
                     " %1, %%" R "14\n\t" LOAD " %1, %%" R                                                    \
                     "15\n\t"                                                                                 \
                     ".p2align 4\n1:\n\t" FATHOM_TWELVE(INSTRUCTION, R) "decq %0\n\tjnz 1b\n\tvzeroupper\n\t" \
                     : "+r"(rounds)                                                                           \
                     : "m"(source.FIELD)                                                                      \
                     : FATHOM_CLOBBERED);                                                                     \
  }

FATHOM_PEAK(run_avx2_fp32, "avx2,fma", "vfmadd231ps", "ymm", "vmovaps", fp32)
FATHOM_PEAK(run_avx512_fp32, "avx512f", "vfmadd231ps", "zmm", "vmovaps", fp32)
FATHOM_PEAK(run_avx512_bf16, "avx512f,avx512bf16", "vdpbf16ps", "zmm", "vmovaps", bf16)
FATHOM_PEAK(run_avx512_fp16, "avx512f,avx512fp16", "vfmadd231ph", "zmm", "vmovaps", fp16)
FATHOM_PEAK(run_avx512_int8, "avx512f,avx512vnni", "vpdpbusd", "zmm", "vmovaps", int8)
FATHOM_PEAK(run_avx_vnni_int8, "avx2,avxvnni", "%{vex%} vpdpbusd", "ymm", "vmovaps", int8)

// Eight tiles of 16 rows of 64 bytes, as the instruction set wants them described.
struct alignas(64) TileShape {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShape) == 64);

// Four accumulating tiles, 0 to 3, from the pairs of tiles 4, 5 and 6, 7: as a matrix product blocked two by two.
#define FATHOM_AMX_PEAK(NAME, TARGET, INSTRUCTION)                                                     \
  __attribute__((target(TARGET))) void NAME(std::uint64_t rounds) {                                    \
    static const TileShape shape;                                                                      \
    alignas(64) std::uint16_t source[16 * 32];                                                         \
    for (int i = 0; i < 16 * 32; ++i) source[i] = static_cast<std::uint16_t>(0x3f40 + i % 32);         \
    __asm__ volatile(                                                                                  \
        "ldtilecfg %1\n\ttilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t" \
        "tileloadd (%2,%3,1), %%tmm4\n\ttileloadd (%2,%3,1), %%tmm5\n\t"                               \
        "tileloadd (%2,%3,1), %%tmm6\n\ttileloadd (%2,%3,1), %%tmm7\n\t"                               \
        ".p2align 4\n1:\n\t" INSTRUCTION " %%tmm6, %%tmm4, %%tmm0\n\t" INSTRUCTION                     \
        " %%tmm7, %%tmm4, %%tmm1\n\t" INSTRUCTION " %%tmm6, %%tmm5, %%tmm2\n\t" INSTRUCTION            \
        " %%tmm7, %%tmm5, %%tmm3\n\t"                                                                  \
        "decq %0\n\tjnz 1b\n\ttilerelease\n\t"                                                         \
        : "+r"(rounds)                                                                                 \
        : "m"(shape), "r"(source), "r"(std::uint64_t{64})                                              \
        : "cc", "memory");                                                                             \
  }

FATHOM_AMX_PEAK(run_amx_bf16, "amx-tile,amx-bf16", "tdpbf16ps")
FATHOM_AMX_PEAK(run_amx_int8, "amx-tile,amx-int8", "tdpbuud")

#endif

struct Budget {
  double seconds;  // of one timed run
  int runs;
};

Budget budget_for(Effort effort) {
  switch (effort) {
    case Effort::kNone:
    case Effort::kTiny:
      return {0.0002, 1};
    case Effort::kQuick:
      return {0.001, 2};
    case Effort::kDefault:
      return {0.003, 3};
    case Effort::kThorough:
      return {0.02, 6};
  }
  return {0.003, 3};
}

// Rounds that take about `seconds` on one thread.
std::uint64_t calibrate(const PeakKernel& kernel, Crew& crew, double seconds) {
  const std::function<void(int)> warm = [&](int) { kernel.run(1000); };
  crew.run(1, warm);
  std::uint64_t rounds = 1000;
  for (;;) {
    const double took = crew.run(1, [&](int) { kernel.run(rounds); });
    if (took >= seconds / 4)
      return std::max<std::uint64_t>(static_cast<std::uint64_t>(static_cast<double>(rounds) * seconds / took), 1);
    if (rounds > (std::uint64_t{1} << 40)) return rounds;
    rounds *= 4;
  }
}

double rate(const PeakKernel& kernel, Crew& crew, int threads, std::uint64_t rounds) {
  const double seconds = crew.run(threads, [&](int) { kernel.run(rounds); });
  return kernel.flops_per_round * static_cast<double>(rounds) * threads / std::max(seconds, 1e-9);
}

}  // namespace

std::vector<PeakKernel> peak_kernels(IsaSet isa) {
  std::vector<PeakKernel> kernels;
  constexpr double kChains = 12, kMultiplyAdd = 2;
  kernels.push_back({"plain_fp32", Precision::fp32, kChains * kMultiplyAdd * 4, run_plain_fp32});
#if defined(__x86_64__)
  constexpr double kTileProducts = 4, kTileMultiplyAdds16 = 16 * 16 * 32, kTileMultiplyAdds8 = 16 * 16 * 64;
  if (isa.has(Isa::avx2) && isa.has(Isa::fma))
    kernels.push_back({"avx2_fp32", Precision::fp32, kChains * kMultiplyAdd * 8, run_avx2_fp32});
  if (isa.has(Isa::avx_vnni))
    kernels.push_back({"avx_vnni_int8", Precision::int8, kChains * kMultiplyAdd * 32, run_avx_vnni_int8});
  if (isa.has(Isa::avx512f))
    kernels.push_back({"avx512_fp32", Precision::fp32, kChains * kMultiplyAdd * 16, run_avx512_fp32});
  if (isa.has(Isa::avx512_fp16))
    kernels.push_back({"avx512_fp16", Precision::fp16, kChains * kMultiplyAdd * 32, run_avx512_fp16});
  if (isa.has(Isa::avx512_bf16))
    kernels.push_back({"avx512_bf16", Precision::bf16, kChains * kMultiplyAdd * 32, run_avx512_bf16});
  if (isa.has(Isa::avx512_vnni))
    kernels.push_back({"avx512_vnni_int8", Precision::int8, kChains * kMultiplyAdd * 64, run_avx512_int8});
  if (isa.has(Isa::amx_bf16))
    kernels.push_back({"amx_bf16", Precision::bf16, kTileProducts * kMultiplyAdd * kTileMultiplyAdds16, run_amx_bf16});
  if (isa.has(Isa::amx_int8))
    kernels.push_back({"amx_int8", Precision::int8, kTileProducts * kMultiplyAdd * kTileMultiplyAdds8, run_amx_int8});
#else
  static_cast<void>(isa);
#endif
  return kernels;
}

std::vector<PeakResult> measure_peaks(Crew& crew, IsaSet isa, Effort effort) {
  std::vector<PeakResult> results;
  if (crew.size() == 0) return results;
  const Budget budget = budget_for(effort);
  const auto kernels = peak_kernels(isa);
  std::vector<std::uint64_t> rounds;
  for (const PeakKernel& kernel : kernels) {
    rounds.push_back(calibrate(kernel, crew, budget.seconds));
    results.push_back({kernel.name, kernel.precision, 0, crew.size(), 0});
  }
  // Taken in turns: who shares our core (AMX is one a core) comes and goes, and each kernel shall have its quiet
  // moment.
  for (int run = 0; run < budget.runs; ++run)
    for (std::size_t k = 0; k < kernels.size(); ++k) {
      results[k].one_thread_flops = std::max(results[k].one_thread_flops, rate(kernels[k], crew, 1, rounds[k]));
      if (crew.size() > 1)
        results[k].all_threads_flops =
            std::max(results[k].all_threads_flops, rate(kernels[k], crew, crew.size(), rounds[k]));
      else
        results[k].all_threads_flops = results[k].one_thread_flops;
    }
  return results;
}

}  // namespace fathom::hardware
