// Sums, products, bits, moves.
#include <bit>
#include <cfenv>
#include <cmath>

#include "emulator/lanes.h"

namespace fathom::emulator {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, std::int32_t, std::uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

template <class T>
T divided(T a, T b) {
  if (b == 0) return static_cast<T>(~Unsigned<T>{0});  // not defined; lanes that are off may hold anything
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return static_cast<T>(0 - static_cast<Unsigned<T>>(a));
  return static_cast<T>(a / b);
}
template <class T>
T remainder_of(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return static_cast<T>(a % b);
}

/// d, a and b narrower than d: mul.wide, mad.wide.
template <class T, bool Adds>
void widened(Warp& warp, const Instruction& in, Mask mask) {
  using W = Wide<T>;
  if constexpr (sizeof(T) < 8) {
    const T *const a = warp.lanes<T>(in.operands[1]), *const b = warp.lanes<T>(in.operands[2]);
    W out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      out[lane] = static_cast<W>(static_cast<W>(a[lane]) * static_cast<W>(b[lane]));
    if constexpr (Adds) {
      const W* const c = warp.lanes<W>(in.operands[3]);
      for (int lane = 0; lane < kLanes; ++lane)
        out[lane] = static_cast<W>(static_cast<Unsigned<W>>(out[lane]) + static_cast<Unsigned<W>>(c[lane]));
    }
    store(warp, in.operands[0], out, mask);
  }
}

template <class T>
void select(Warp& warp, const Instruction& in, Mask mask) {
  const T *const a = warp.lanes<T>(in.operands[1]), *const b = warp.lanes<T>(in.operands[2]);
  const Mask p = warp.value(in.operands[3]);
  T out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = (p >> lane & 1u) != 0 ? a[lane] : b[lane];
  store(warp, in.operands[0], out, mask);
}

/// Registers of a vector as one, or one as those of a vector.
void pack(Warp& warp, const Instruction& in, Mask mask) {
  const int bits = in.operands[0].width * 8 / in.count;
  each_lane(mask, [&](int lane) {
    std::uint64_t value = 0;
    for (int i = 0; i < in.count; ++i)
      value |= (warp.get(in.operands[1 + i], lane) & ((std::uint64_t{1} << bits) - 1)) << (bits * i);
    warp.set(in.operands[0], lane, value);
  });
}
void unpack(Warp& warp, const Instruction& in, Mask mask) {
  const int bits = in.operands[in.count].width * 8 / in.count;
  each_lane(mask, [&](int lane) {
    const std::uint64_t value = warp.get(in.operands[in.count], lane);
    for (int i = 0; i < in.count; ++i)
      warp.set(in.operands[i], lane, value >> (bits * i) & ((std::uint64_t{1} << bits) - 1));
  });
}
void read_timer(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) { warp.set(in.operands[0], lane, warp.machine->time); });
}

float rounded_down_fma(float a, float b, float c) {
  const int before = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float va = a, vb = b, vc = c;
  const float out = std::fma(va, vb, vc);
  std::fesetround(before);
  return out;
}
template <class T>
T smaller(T a, T b) {
  return a != a ? b : b != b ? a : a < b ? a : b;
}
template <class T>
T larger(T a, T b) {
  return a != a ? b : b != b ? a : a > b ? a : b;
}

std::uint32_t permuted(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t choice = selector >> (4 * i) & 0xfu;
    auto byte = static_cast<std::uint32_t>(bytes >> (8 * (choice & 7u)) & 0xffu);
    if ((choice & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0;
    out |= byte << (8 * i);
  }
  return out;
}
template <class T>
void insert_bits(Warp& warp, const Instruction& in, Mask mask) {  // bfi d, a, b, position, length
  const T *const a = warp.lanes<T>(in.operands[1]), *const b = warp.lanes<T>(in.operands[2]);
  const auto *const at = warp.lanes<std::uint32_t>(in.operands[3]), *const length =
                                                                        warp.lanes<std::uint32_t>(in.operands[4]);
  constexpr unsigned kBits = 8 * sizeof(T);
  T out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const unsigned begin = at[lane] & 0xffu, count = length[lane] & 0xffu;
    T ones = count >= kBits ? ~T{0} : static_cast<T>((T{1} << count) - 1);
    ones = begin >= kBits ? T{0} : static_cast<T>(ones << begin);
    out[lane] = static_cast<T>((b[lane] & ~ones) | ((begin >= kBits ? T{0} : static_cast<T>(a[lane] << begin)) & ones));
  }
  store(warp, in.operands[0], out, mask);
}
template <class T>
void extract_bits(Warp& warp, const Instruction& in, Mask mask) {  // bfe d, a, position, length
  const T* const a = warp.lanes<T>(in.operands[1]);
  const auto *const at = warp.lanes<std::uint32_t>(in.operands[2]), *const length =
                                                                        warp.lanes<std::uint32_t>(in.operands[3]);
  constexpr unsigned kBits = 8 * sizeof(T);
  T out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const unsigned begin = at[lane] & 0xffu, count = length[lane] & 0xffu;
    Unsigned<T> value = begin >= kBits ? 0 : static_cast<Unsigned<T>>(a[lane]) >> begin;
    bool sign = false;
    if constexpr (std::is_signed_v<T>)
      sign = count != 0 && (static_cast<Unsigned<T>>(a[lane]) >> std::min(begin + count - 1, kBits - 1) & 1u) != 0;
    if (count < kBits) {
      const Unsigned<T> ones = static_cast<Unsigned<T>>((Unsigned<T>{1} << count) - 1);
      value = sign ? value | ~ones : value & ones;
    }
    out[lane] = static_cast<T>(value);
  }
  store(warp, in.operands[0], out, mask);
}
template <class T>
std::uint32_t highest_bit(T value, bool as_shift) {
  Unsigned<T> bits = static_cast<Unsigned<T>>(value);
  if constexpr (std::is_signed_v<T>)
    if (value < 0) bits = ~bits;
  if (bits == 0) return ~0u;
  const auto position = static_cast<std::uint32_t>(8 * sizeof(T) - 1 - static_cast<unsigned>(std::countl_zero(bits)));
  return as_shift ? static_cast<std::uint32_t>(8 * sizeof(T) - 1) - position : position;
}
template <class T>
T reversed(T value) {
  T out = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) out = static_cast<T>(out << 1 | (value >> i & 1u));
  return out;
}
void lookup3(Warp& warp, const Instruction& in, Mask mask) {
  const auto *const a = warp.lanes<std::uint32_t>(in.operands[1]), *const b = warp.lanes<std::uint32_t>(in.operands[2]),
                    *const c = warp.lanes<std::uint32_t>(in.operands[3]);
  std::uint32_t out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    out[lane] = 0;
    for (unsigned i = 0; i < 8; ++i)
      if ((in.extra >> i & 1u) != 0)
        out[lane] |= ((i & 4u) != 0 ? a[lane] : ~a[lane]) & ((i & 2u) != 0 ? b[lane] : ~b[lane]) &
                     ((i & 1u) != 0 ? c[lane] : ~c[lane]);
  }
  store(warp, in.operands[0], out, mask);
}

bool decode_integers(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0], type = op.type();
  const auto choose = [&](auto f) { return (out.execute = by_integer(type, f)) != nullptr; };
  if (base == "add")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) {
        return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
      }>);
    });
  if (base == "sub")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) {
        return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
      }>);
    });
  if (base == "mul" && op.has("lo"))
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) {
        return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
      }>);
    });
  if (base == "mul" && op.has("hi"))
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) {
        return static_cast<T>((static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b)) >> (8 * sizeof(T)));
      }>);
    });
  if (base == "mul" && op.has("wide")) return choose([](auto t) { return Execute(&widened<decltype(t), false>); });
  if (base == "mad" && op.has("wide")) return choose([](auto t) { return Execute(&widened<decltype(t), true>); });
  if (base == "mad" && op.has("lo"))
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&ternary<T, [](T a, T b, T c) {
        return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b) +
                              static_cast<std::uint64_t>(c));
      }>);
    });
  if (base == "div")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, divided<T>>);
    });
  if (base == "rem")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, remainder_of<T>>);
    });
  if (base == "min")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return a < b ? a : b; }>);
    });
  if (base == "max")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return b < a ? a : b; }>);
    });
  if (base == "neg")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&unary<T, [](T a) { return static_cast<T>(0 - static_cast<Unsigned<T>>(a)); }>);
    });
  if (base == "abs")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&unary<T, [](T a) {
        return static_cast<T>(a < T{0} ? 0 - static_cast<Unsigned<T>>(a) : static_cast<Unsigned<T>>(a));
      }>);
    });
  if (base == "and")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return static_cast<T>(a & b); }>);
    });
  if (base == "or")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return static_cast<T>(a | b); }>);
    });
  if (base == "xor")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return static_cast<T>(a ^ b); }>);
    });
  if (base == "not")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&unary<T, [](T a) { return static_cast<T>(~a); }>);
    });
  if (base == "shl")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&shifted<T, [](T a, std::uint32_t n) {
        return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<Unsigned<T>>(a) << n);
      }>);
    });
  if (base == "shr")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&shifted<T, [](T a, std::uint32_t n) {
        return n >= 8 * sizeof(T) ? static_cast<T>(a < T{0} ? -1 : 0) : static_cast<T>(a >> n);
      }>);
    });
  if (base == "selp") return choose([](auto t) { return Execute(&select<decltype(t)>); });
  if (base == "bfi") return choose([](auto t) { return Execute(&insert_bits<Unsigned<decltype(t)>>); });
  if (base == "bfe") return choose([](auto t) { return Execute(&extract_bits<decltype(t)>); });
  if (base == "brev")
    return choose([](auto t) {
      using T = Unsigned<decltype(t)>;
      return Execute(&unary<T, reversed<T>>);
    });
  if (base == "popc")
    return choose([](auto t) {
      using T = Unsigned<decltype(t)>;
      return Execute(&unary<T, [](T a) { return static_cast<std::uint32_t>(std::popcount(a)); }>);
    });
  if (base == "clz")
    return choose([](auto t) {
      using T = Unsigned<decltype(t)>;
      return Execute(&unary<T, [](T a) { return static_cast<std::uint32_t>(std::countl_zero(a)); }>);
    });
  if (base == "bfind") {
    if (op.has("shiftamt"))
      return choose([](auto t) {
        using T = decltype(t);
        return Execute(&unary<T, [](T a) { return highest_bit(a, true); }>);
      });
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&unary<T, [](T a) { return highest_bit(a, false); }>);
    });
  }
  if (base == "prmt" && op.parts.size() == 2) return out.execute = &ternary<std::uint32_t, permuted>, true;
  if (base == "lop3")
    return out.execute = &lookup3, out.extra = static_cast<std::uint32_t>(written.immediates[4]), true;
  if (base == "shf") {
    const bool left = op.has("l"), wraps = op.has("wrap");
    using T = std::uint32_t;
    if (left && wraps)
      return out.execute =
                 &ternary<T,
                          [](T a, T b, T n) {
                            return static_cast<T>((static_cast<std::uint64_t>(b) << 32 | a) << (n & 31u) >> 32);
                          }>,
             true;
    if (!left && wraps)
      return out.execute = &ternary<T,
                                    [](T a, T b, T n) {
                                      return static_cast<T>((static_cast<std::uint64_t>(b) << 32 | a) >> (n & 31u));
                                    }>,
             true;
  }
  return false;
}

template <auto F>
Execute each_real(std::string_view type) {
  return by_real(type, [](auto t) {
    using T = decltype(t);
    return Execute(&unary<T, [](T a) { return static_cast<T>(F(a)); }>);
  });
}

bool decode_reals(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0], type = op.type();
  for (const std::string_view other :
       {"sat", "rm", "rp", "rz", "ftz"})  // ftz: only of approximations, whose last bits are anybody's
    if (op.has(other) && !(base == "fma" && other == "rm" && type == "f32") && !(other == "ftz" && op.has("approx")))
      return false;
  const auto found = [&](Execute execute) { return (out.execute = execute) != nullptr; };
  const auto choose = [&](auto f) { return found(by_real(type, f)); };
  if (base == "add")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return a + b; }>);
    });
  if (base == "sub")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return a - b; }>);
    });
  if (base == "mul")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return a * b; }>);
    });
  if (base == "div")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return a / b; }>);
    });
  if (base == "fma" && op.has("rm")) return out.execute = &ternary<float, rounded_down_fma>, true;
  if (base == "fma")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&ternary<T, [](T a, T b, T c) { return std::fma(a, b, c); }>);
    });
  if (base == "neg") return found(each_real<[](auto a) { return -a; }>(type));
  if (base == "abs") return found(each_real<[](auto a) { return std::abs(a); }>(type));
  if (base == "min")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, smaller<T>>);
    });
  if (base == "max")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, larger<T>>);
    });
  if (base == "selp") return choose([](auto t) { return Execute(&select<decltype(t)>); });
  if (base == "copysign")
    return choose([](auto t) {
      using T = decltype(t);
      return Execute(&binary<T, [](T a, T b) { return std::copysign(b, a); }>);
    });
  if (base == "rcp") return found(each_real<[](auto a) { return decltype(a){1} / a; }>(type));
  if (base == "sqrt") return found(each_real<[](auto a) { return std::sqrt(a); }>(type));
  if (base == "rsqrt") return found(each_real<[](auto a) { return 1.0 / std::sqrt(static_cast<double>(a)); }>(type));
  if (base == "ex2") return found(each_real<[](auto a) { return std::exp2(a); }>(type));
  if (base == "lg2") return found(each_real<[](auto a) { return std::log2(a); }>(type));
  if (base == "sin") return found(each_real<[](auto a) { return std::sin(a); }>(type));
  if (base == "cos") return found(each_real<[](auto a) { return std::cos(a); }>(type));
  if (base == "tanh") return found(each_real<[](auto a) { return std::tanh(a); }>(type));
  return false;
}

bool decode_moves(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  if (op.parts[0] != "mov") return false;
  const Operands &to = written.operands[0], &from = written.operands[1];
  if (from.size() == 1 && from[0].width == 0) return out.execute = &read_timer, true;
  if (from.size() > 1) return out.count = static_cast<std::uint8_t>(from.size()), out.execute = &pack, true;
  if (to.size() > 1) return out.count = static_cast<std::uint8_t>(to.size()), out.execute = &unpack, true;
  switch (to[0].width) {
    case 2:
      out.execute = &unary<std::uint16_t, [](std::uint16_t a) { return a; }>;
      break;
    case 4:
      out.execute = &unary<std::uint32_t, [](std::uint32_t a) { return a; }>;
      break;
    case 8:
      out.execute = &unary<std::uint64_t, [](std::uint64_t a) { return a; }>;
      break;
    default:
      return false;
  }
  return from[0].width == to[0].width;
}

}  // namespace

bool decode_arithmetic(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0];
  if (base == "mov") return decode_moves(written, out);
  if (op.parts.size() < 2) return false;
  if (op.type() == "f32" || op.type() == "f64") return decode_reals(written, out);
  // Names that other families share are theirs by what follows.
  if (base == "ld" || base == "st" || base == "cvt" || base == "atom" || base == "red") return false;
  return decode_integers(written, out);
}

}  // namespace fathom::emulator
