// Target `amx`.
#include "backends/cpu/kernels.h"

namespace fathom::cpu {
const Kernels* amx_kernels() { return avx512_kernels(); }
}  // namespace fathom::cpu
