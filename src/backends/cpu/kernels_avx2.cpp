// Target `avx2`: AVX2, FMA and F16C.
#include "backends/cpu/kernels.h"
#include "backends/cpu/target.inc"

#if defined(__x86_64__)
#include <immintrin.h>

#define FATHOM_PACKED_KERNELS nullptr
#define FATHOM_DOT_CODES dot_codes_avx2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace fathom::cpu::avx2 {
namespace {
// The order matters: the last two are written over the first.
// clang-format off
#include "backends/cpu/vector_avx2.inc"
#include "backends/cpu/kernels_body.inc"
#include "backends/cpu/kernels_elementwise.inc"
// clang-format on
}  // namespace
}  // namespace fathom::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fathom::cpu {
const Kernels* avx2_kernels() { return &avx2::kTable; }
}  // namespace fathom::cpu

#else
namespace fathom::cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace fathom::cpu
#endif
