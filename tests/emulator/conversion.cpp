// From one type to another: cvt, cvta.
#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>

#include "emulator/lanes.h"

namespace fathom::emulator {

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  const float size = exponent == 0 ? static_cast<float>(fraction) * 0x1p-24f
                                   : std::bit_cast<float>((exponent + 112) << 23 | fraction << 13);
  return sign != 0 ? -size : size;
}
std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  if (std::isnan(value)) return 0x7fff;
  const float size = std::abs(value);
  if (size >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (size < 0x1p-14f)
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(size * 0x1p24f)));
  std::uint32_t whole = bits & 0x7fffffffu;
  whole += 0xfffu + (whole >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((whole >> 13) - (112u << 10)));
}
float bfloat_to_float(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
std::uint16_t float_to_bfloat(float value) {
  if (std::isnan(value)) return 0x7fff;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
float e4m3_to_float(std::uint8_t bits) {
  const int exponent = bits >> 3 & 0xf, fraction = bits & 7;
  float size = 0;
  if (exponent == 15 && fraction == 7)
    size = std::numeric_limits<float>::quiet_NaN();
  else if (exponent == 0)
    size = static_cast<float>(fraction) * 0x1p-9f;
  else
    size = std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 120) << 23 | static_cast<std::uint32_t>(fraction)
                                                                                       << 20);
  return (bits & 0x80) != 0 ? -size : size;
}
std::uint8_t float_to_e4m3(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return 0x7f;
  const float size = std::abs(value);
  if (size >= 448.0f) return sign | 0x7e;
  int exponent = 0;
  std::frexp(size, &exponent);  // size in [0.5, 1) · 2^exponent
  exponent = std::max(exponent - 1, -6);
  const auto steps =
      static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));  // 8 to 16, below 8 where it is subnormal
  if (steps < 8) return static_cast<std::uint8_t>(sign | steps);
  const int code = steps == 16 ? (exponent + 8) << 3 : (exponent + 7) << 3 | (steps - 8);
  return static_cast<std::uint8_t>(sign | std::min(code, 0x7e));
}

namespace {

struct Type {
  std::uint8_t bytes = 0;
  bool real = false, is_signed = false, brain = false;
};
bool type_of(std::string_view name, Type& out) {
  static constexpr std::pair<std::string_view, Type> types[] = {
      {"u8", {1, false, false, false}},  {"s8", {1, false, true, false}},   {"u16", {2, false, false, false}},
      {"s16", {2, false, true, false}},  {"u32", {4, false, false, false}}, {"s32", {4, false, true, false}},
      {"u64", {8, false, false, false}}, {"s64", {8, false, true, false}},  {"f16", {2, true, true, false}},
      {"bf16", {2, true, true, true}},   {"f32", {4, true, true, false}},   {"f64", {8, true, true, false}}};
  for (const auto& [known, type] : types)
    if (known == name) return out = type, true;
  return false;
}
enum Rounding : std::uint8_t { kNone, kNearest, kZero, kDown, kUp, kWholeNearest, kWholeZero, kWholeDown, kWholeUp };
constexpr std::string_view kRoundings[] = {"", "rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"};

double whole(double value, Rounding rounding) {
  switch (rounding) {
    case kWholeNearest:
      return std::nearbyint(value);
    case kWholeZero:
      return std::trunc(value);
    case kWholeDown:
      return std::floor(value);
    case kWholeUp:
      return std::ceil(value);
    default:
      return value;
  }
}
double read_real(std::uint64_t bits, Type type) {
  if (type.bytes == 8) return std::bit_cast<double>(bits);
  if (type.bytes == 4) return std::bit_cast<float>(static_cast<std::uint32_t>(bits));
  return type.brain ? bfloat_to_float(static_cast<std::uint16_t>(bits))
                    : half_to_float(static_cast<std::uint16_t>(bits));
}
std::uint64_t write_real(double value, Type type) {
  if (type.bytes == 8) return std::bit_cast<std::uint64_t>(value);
  const auto single = static_cast<float>(value);
  if (type.bytes == 4) return std::bit_cast<std::uint32_t>(single);
  return type.brain ? float_to_bfloat(single) : float_to_half(single);
}
std::uint64_t to_whole(double value, Type type) {
  if (std::isnan(value)) return 0;
  const int bits = 8 * type.bytes;
  const double most = std::ldexp(1.0, type.is_signed ? bits - 1 : bits), least = type.is_signed ? -most : 0.0;
  if (value >= most)
    return type.is_signed ? (std::uint64_t{1} << (bits - 1)) - 1
           : bits == 64   ? ~std::uint64_t{0}
                          : (std::uint64_t{1} << bits) - 1;
  if (value <= least) return type.is_signed ? std::uint64_t{0} - (std::uint64_t{1} << (bits - 1)) : 0;
  return type.is_signed ? static_cast<std::uint64_t>(static_cast<std::int64_t>(value))
                        : static_cast<std::uint64_t>(value);
}
std::uint64_t extended(std::uint64_t bits, Type type) {
  switch (type.bytes) {
    case 1:
      return type.is_signed ? static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int8_t>(bits)))
                            : bits & 0xffu;
    case 2:
      return type.is_signed ? static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int16_t>(bits)))
                            : bits & 0xffffu;
    case 4:
      return type.is_signed ? static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(bits)))
                            : bits & 0xffffffffu;
    default:
      return bits;
  }
}

/// extra: to's bytes and kind, from's, one byte each; variant: rounding, 0x80: clamped to [0, 1].
std::uint32_t packed(Type type) {
  return type.bytes | (type.real ? 0x10u : 0) | (type.is_signed ? 0x20u : 0) | (type.brain ? 0x40u : 0);
}
Type unpacked(std::uint32_t bits) {
  return {static_cast<std::uint8_t>(bits & 0xfu), (bits & 0x10u) != 0, (bits & 0x20u) != 0, (bits & 0x40u) != 0};
}
void convert(Warp& warp, const Instruction& in, Mask mask) {
  const Type to = unpacked(in.extra & 0xffu), from = unpacked(in.extra >> 8);
  const auto rounding = static_cast<Rounding>(in.variant & 0x7fu);
  each_lane(mask, [&](int lane) {
    const std::uint64_t bits = warp.get(in.operands[1], lane);
    std::uint64_t out = 0;
    if (from.real) {
      double value = whole(read_real(bits, from), rounding);
      if ((in.variant & 0x80u) != 0) value = std::isnan(value) ? 0.0 : std::min(std::max(value, 0.0), 1.0);
      out = to.real ? write_real(value, to) : to_whole(value, to);
    } else if (to.real) {
      const std::uint64_t whole_bits = extended(bits, from);
      // One rounding: a 64-bit whole number goes to f32 without passing f64.
      if (to.bytes == 4)
        out = std::bit_cast<std::uint32_t>(from.is_signed ? static_cast<float>(static_cast<std::int64_t>(whole_bits))
                                                          : static_cast<float>(whole_bits));
      else
        out = write_real(from.is_signed ? static_cast<double>(static_cast<std::int64_t>(whole_bits))
                                        : static_cast<double>(whole_bits),
                         to);
    } else {
      out = extended(extended(bits, from), to);
    }
    warp.set(in.operands[0], lane, out);
  });
}
template <class To, class From>
void widen(Warp& warp, const Instruction& in, Mask mask) {
  const From* const a = warp.lanes<From>(in.operands[1]);
  To out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = static_cast<To>(a[lane]);
  store(warp, in.operands[0], out, mask);
}
void half_to_single(Warp& warp, const Instruction& in, Mask mask) {
  const auto* const a = warp.lanes<std::uint16_t>(in.operands[1]);
  float out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = half_to_float(a[lane]);
  store(warp, in.operands[0], out, mask);
}
void bfloat_to_single(Warp& warp, const Instruction& in, Mask mask) {
  const auto* const a = warp.lanes<std::uint16_t>(in.operands[1]);
  float out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = bfloat_to_float(a[lane]);
  store(warp, in.operands[0], out, mask);
}

/// d, high, low.
template <auto Narrow, int Bits>
void pair_of(Warp& warp, const Instruction& in, Mask mask) {
  const auto *const high = warp.lanes<float>(in.operands[1]), *const low = warp.lanes<float>(in.operands[2]);
  for (int lane = 0; lane < kLanes; ++lane)
    if ((mask >> lane & 1u) != 0)
      warp.set(in.operands[0], lane, static_cast<std::uint32_t>(Narrow(high[lane])) << Bits | Narrow(low[lane]));
}
void halves_of_e4m3(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    const std::uint64_t bits = warp.get(in.operands[1], lane);
    warp.set(in.operands[0], lane,
             static_cast<std::uint32_t>(float_to_half(e4m3_to_float(static_cast<std::uint8_t>(bits >> 8)))) << 16 |
                 float_to_half(e4m3_to_float(static_cast<std::uint8_t>(bits))));
  });
}
void e4m3_of_halves(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    const std::uint64_t bits = warp.get(in.operands[1], lane);
    warp.set(in.operands[0], lane,
             static_cast<std::uint32_t>(float_to_e4m3(half_to_float(static_cast<std::uint16_t>(bits >> 16)))) << 8 |
                 float_to_e4m3(half_to_float(static_cast<std::uint16_t>(bits))));
  });
}

template <std::uint64_t Window, bool ToGeneric>
void change_window(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    const std::uint64_t address = warp.address(in.operands[1], lane);
    warp.set(in.operands[0], lane, ToGeneric ? address | Window : address & ~Window);
  });
}
bool decode_window(const Opcode& op, Instruction& out) {
  const bool to = op.has("to");
  if (op.has("shared"))
    out.execute = to ? &change_window<kSharedWindow, false> : &change_window<kSharedWindow, true>;
  else if (op.has("local"))
    out.execute = to ? &change_window<kLocalWindow, false> : &change_window<kLocalWindow, true>;
  else if (op.has("global") || op.has("param") || op.has("const"))
    out.execute = &change_window<0, true>;
  return out.execute != nullptr;
}

}  // namespace

bool decode_conversion(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  if (op.parts[0] == "cvta") return decode_window(op, out);
  if (op.parts[0] != "cvt" || op.has("ftz")) return false;
  const std::string_view to_name = op.type(1), from_name = op.type();
  const bool nearest = op.has("rn");
  if (nearest && from_name == "f32" && written.operands.size() == 3) {
    if (to_name == "f16x2") return out.execute = &pair_of<float_to_half, 16>, true;
    if (to_name == "bf16x2") return out.execute = &pair_of<float_to_bfloat, 16>, true;
    if (to_name == "e4m3x2" && op.has("satfinite")) return out.execute = &pair_of<float_to_e4m3, 8>, true;
    return false;
  }
  if (nearest && to_name == "f16x2" && from_name == "e4m3x2") return out.execute = &halves_of_e4m3, true;
  if (nearest && to_name == "e4m3x2" && from_name == "f16x2" && op.has("satfinite"))
    return out.execute = &e4m3_of_halves, true;
  Type to, from;
  if (!type_of(to_name, to) || !type_of(from_name, from)) return false;
  const std::uint8_t to_width = written.operands[0][0].width, from_width = written.operands[1][0].width;
  if (to_width == 4 && from_width == 2 && to_name == "f32" && from_name == "f16")
    return out.execute = &half_to_single, true;
  if (to_width == 4 && from_width == 2 && to_name == "f32" && from_name == "bf16")
    return out.execute = &bfloat_to_single, true;
  if (to_width == to.bytes && from_width == from.bytes) {
    if (to_name == "s64" && from_name == "s32") return out.execute = &widen<std::int64_t, std::int32_t>, true;
    if (to_name == "u64" && from_name == "u32") return out.execute = &widen<std::uint64_t, std::uint32_t>, true;
    if (to_name == "u32" && from_name == "u64") return out.execute = &widen<std::uint32_t, std::uint64_t>, true;
    if (to_name == "u32" && from_name == "u16") return out.execute = &widen<std::uint32_t, std::uint16_t>, true;
    if (to_name == "u16" && from_name == "u32") return out.execute = &widen<std::uint16_t, std::uint32_t>, true;
  }
  Rounding rounding = kNone;
  for (std::size_t r = 1; r < std::size(kRoundings); ++r)
    if (op.has(kRoundings[r])) rounding = static_cast<Rounding>(r);
  if (op.has("satfinite") || (op.has("sat") && !to.real)) return false;
  // Towards zero, down or up is only known of whole numbers.
  const bool exact = to.real && from.real && to.bytes > from.bytes;
  if ((rounding == kZero || rounding == kDown || rounding == kUp) && !exact) return false;
  out.variant = static_cast<std::uint8_t>(rounding | (op.has("sat") ? 0x80 : 0));
  out.extra = packed(to) | packed(from) << 8;
  out.execute = &convert;
  return true;
}

}  // namespace fathom::emulator
