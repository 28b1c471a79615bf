// What executors share: results of all lanes stored for those of a mask, and choosing an executor by a type's name.
#pragma once
#include <cstring>
#include <type_traits>

#include "emulator/machine.h"

namespace fathom::emulator {

/// use(lane) for the lanes of a mask.
template <class Use>
inline void each_lane(Mask mask, Use use) {
  for (int lane = 0; lane < kLanes; ++lane)
    if ((mask >> lane & 1u) != 0) use(lane);
}
/// Of instructions that only tell a device how to be fast, or order what is ordered here.
inline void nothing(Warp&, const Instruction&, Mask) {}

template <class T>
inline void store(Warp& warp, const Operand& to, const T (&values)[kLanes], Mask mask) {
  T* const out = warp.lanes<T>(to);
  if (mask == kAll) {
    std::memcpy(out, values, sizeof values);
    return;
  }
  each_lane(mask, [&](int lane) { out[lane] = values[lane]; });
}
template <class T, auto F>
void unary(Warp& warp, const Instruction& in, Mask mask) {
  const T* const a = warp.lanes<T>(in.operands[1]);
  std::remove_cv_t<decltype(F(T{}))> out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = F(a[lane]);
  store(warp, in.operands[0], out, mask);
}
template <class T, auto F>
void binary(Warp& warp, const Instruction& in, Mask mask) {
  const T *const a = warp.lanes<T>(in.operands[1]), *const b = warp.lanes<T>(in.operands[2]);
  std::remove_cv_t<decltype(F(T{}, T{}))> out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = F(a[lane], b[lane]);
  store(warp, in.operands[0], out, mask);
}
/// The second operand is a number of bits.
template <class T, auto F>
void shifted(Warp& warp, const Instruction& in, Mask mask) {
  const T* const a = warp.lanes<T>(in.operands[1]);
  const auto* const b = warp.lanes<std::uint32_t>(in.operands[2]);
  T out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = F(a[lane], b[lane]);
  store(warp, in.operands[0], out, mask);
}
template <class T, auto F>
void ternary(Warp& warp, const Instruction& in, Mask mask) {
  const T *const a = warp.lanes<T>(in.operands[1]), *const b = warp.lanes<T>(in.operands[2]),
                 *const c = warp.lanes<T>(in.operands[3]);
  T out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = F(a[lane], b[lane], c[lane]);
  store(warp, in.operands[0], out, mask);
}

/// choose(T()) with the type that PTX calls `name`; null where it is none of those. What has no sign is unsigned.
template <class Choose>
Execute by_integer(std::string_view name, Choose choose) {
  if (name == "u32" || name == "b32") return choose(std::uint32_t{});
  if (name == "s32") return choose(std::int32_t{});
  if (name == "u64" || name == "b64") return choose(std::uint64_t{});
  if (name == "s64") return choose(std::int64_t{});
  if (name == "u16" || name == "b16") return choose(std::uint16_t{});
  if (name == "s16") return choose(std::int16_t{});
  return nullptr;
}
template <class Choose>
Execute by_real(std::string_view name, Choose choose) {
  if (name == "f32") return choose(float{});
  if (name == "f64") return choose(double{});
  return nullptr;
}

/// IEEE half and bfloat16 and e4m3, by their bits, apart from base/dtype.h, which the reference that kernels are
/// compared with uses. To a narrower type: to nearest, ties to even; NaN becomes the device's.
float half_to_float(std::uint16_t bits);
std::uint16_t float_to_half(float value);
float bfloat_to_float(std::uint16_t bits);
std::uint16_t float_to_bfloat(float value);
float e4m3_to_float(std::uint8_t bits);
std::uint8_t float_to_e4m3(float value);  // beyond 448: 448 (satfinite)

}  // namespace fathom::emulator
