// One plain loop, compiled for the baseline and for AVX2, chosen once at run time.
#pragma once

#define FATHOM_KERNEL __attribute__((always_inline)) inline

namespace fathom::weights {

/// Whether this processor has AVX2. (Without FMA on purpose: no loop here may round differently on different machines.)
bool has_avx2();

#if defined(__x86_64__)
template <auto Loop, class... Args>
__attribute__((target("avx2"))) auto on_avx2(Args... args) {
  return Loop(args...);
}
#endif

template <auto Loop, class... Args>
auto dispatch(Args... args) {
#if defined(__x86_64__)
  if (has_avx2()) return on_avx2<Loop>(args...);
#endif
  return Loop(args...);
}

}  // namespace fathom::weights
