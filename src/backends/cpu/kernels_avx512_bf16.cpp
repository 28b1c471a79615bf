// Target `avx512_bf16`.
#include "backends/cpu/kernels.h"

namespace fathom::cpu {
const Kernels* avx512_bf16_kernels() { return avx512_kernels(); }
}  // namespace fathom::cpu
