// Target `avx512`: AVX-512 F, BW, DQ and VL.
#include "backends/cpu/kernels.h"
#include "backends/cpu/target.inc"

#if defined(__x86_64__)
#if !defined(__clang__)  // g++ 12 warns of its own headers: _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define FATHOM_PACKED_KERNELS nullptr
#define FATHOM_DOT_CODES dot_codes_avx512

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace fathom::cpu::avx512 {
namespace {
// The order matters: the last two are written over the first.
// clang-format off
#include "backends/cpu/vector_avx512.inc"
#include "backends/cpu/kernels_body.inc"
#include "backends/cpu/kernels_elementwise.inc"
// clang-format on
}  // namespace
}  // namespace fathom::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fathom::cpu {
const Kernels* avx512_kernels() { return &avx512::kTable; }
}  // namespace fathom::cpu

#else
namespace fathom::cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace fathom::cpu
#endif
