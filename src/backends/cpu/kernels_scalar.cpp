// Target `scalar`: what every processor can do.
#include "backends/cpu/kernels.h"
#include "backends/cpu/target.inc"
#include "base/result.h"

#define FATHOM_PACKED_KERNELS nullptr
#define FATHOM_DOT_CODES dot_codes_plain

namespace fathom::cpu {
namespace scalar {
namespace {
// The order matters: the last two are written over the first.
// clang-format off
#include "backends/cpu/vector_scalar.inc"
#include "backends/cpu/kernels_body.inc"
#include "backends/cpu/kernels_elementwise.inc"
// clang-format on
}  // namespace
}  // namespace scalar

const Kernels* scalar_kernels() { return &scalar::kTable; }

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Element::kF32;
    case DType::f16:
      return Element::kF16;
    case DType::bf16:
      return Element::kBf16;
    case DType::f8e4m3:
      return Element::kE4m3;
    case DType::i8:
      return Element::kI8;
    default:
      FATHOM_CHECK(false, "the cpu backend computes with f32, f16, bf16, e4m3 and i8");
  }
}

}  // namespace fathom::cpu
