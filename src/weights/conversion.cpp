#include "weights/conversion.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/result.h"
#include "weights/simd.h"

// Loops below are written so that compilers turn them into vectors: no branches, no calls, selects only. simd.h
// compiles each for plain x86-64 and for AVX2 and picks at run time. None contracts a·b + c, so both give the same
// bits.
namespace fathom::weights {
namespace {

template <class To, class From>
FATHOM_KERNEL To bits(From from) {
  return __builtin_bit_cast(To, from);
}

FATHOM_KERNEL float widen_bf16(std::uint16_t value) { return bits<float>(static_cast<std::uint32_t>(value) << 16); }

FATHOM_KERNEL std::uint16_t narrow_bf16(float value) {
  const auto b = bits<std::uint32_t>(value);
  const std::uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16, nan = (b >> 16) | 0x40u;
  return static_cast<std::uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Without a branch that a compiler could put arithmetic behind.
FATHOM_KERNEL std::uint32_t choose(bool condition, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

// A small float without a hidden bit, m · 2^lowest, as (1 + m) · 2^lowest - 2^lowest: `magnitude` is already shifted to
// f32's place, `bias` is f32's exponent of the small float's exponent 0.
FATHOM_KERNEL float widen_small(std::uint32_t magnitude, std::uint32_t bias, bool denormal) {
  const std::uint32_t one = (bias + 1) << 23;
  return bits<float>(magnitude + choose(denormal, one, bias << 23)) - bits<float>(choose(denormal, one, 0));
}

FATHOM_KERNEL float widen_f16(std::uint16_t value) {
  const std::uint32_t magnitude = value & 0x7fffu, sign = (value & 0x8000u) << 16;
  const auto finite = bits<std::uint32_t>(widen_small(magnitude << 13, 112, magnitude < 0x400u));
  return bits<float>(sign | choose(magnitude >= 0x7c00u, (magnitude << 13) | 0x7f800000u, finite));
}

// Below 2^-14, adding 1/2 leaves the value, rounded to 2^-24, in the low bits of the sum.
FATHOM_KERNEL std::uint16_t narrow_f16(float value) {
  const auto b = bits<std::uint32_t>(value);
  const std::uint32_t sign = (b >> 16) & 0x8000u, magnitude = b & 0x7fffffffu;
  const bool small = magnitude < 0x38800000u;
  const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const std::uint32_t denormal = bits<std::uint32_t>(bits<float>(choose(small, magnitude, 0)) + 0.5f) - 0x3f000000u;
  const std::uint32_t special = choose(magnitude > 0x7f800000u, 0x7e00u, 0x7c00u);
  return static_cast<std::uint16_t>(sign | choose(magnitude >= 0x477ff000u, special, choose(small, denormal, normal)));
}

FATHOM_KERNEL float decode_e4m3(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7fu, sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  const auto finite = bits<std::uint32_t>(widen_small(magnitude << 20, 120, magnitude < 8u));
  return bits<float>(sign | choose(magnitude == 0x7fu, 0x7fc00000u, finite));
}

FATHOM_KERNEL float decode_e2m1(std::uint32_t code) {
  const std::uint32_t magnitude = code & 7u, sign = (code & 8u) << 28;
  const std::uint32_t normal = (magnitude << 22) + (126u << 23);
  return bits<float>(sign | (magnitude == 0 ? 0u : magnitude == 1 ? 0x3f000000u : normal));
}

// f64 to f32 so that a second rounding to 16 bits is right: an inexact result is made odd, towards zero.
FATHOM_KERNEL float round_to_odd(double value) {
  const auto near = static_cast<float>(value);
  const double back = near;
  auto b = bits<std::uint32_t>(near);
  const bool beyond = (bits<std::uint64_t>(back) & ~(1ull << 63)) > (bits<std::uint64_t>(value) & ~(1ull << 63));
  const bool inexact = back != value && value == value;
  b = inexact ? (b - (beyond ? 1u : 0u)) | 1u : b;
  return bits<float>(b);
}

struct Loops {
  static FATHOM_KERNEL void bf16_f32(const std::uint16_t* in, float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = widen_bf16(in[i]);
  }
  static FATHOM_KERNEL void f16_f32(const std::uint16_t* in, float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = widen_f16(in[i]);
  }
  static FATHOM_KERNEL void f32_bf16(const float* in, std::uint16_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = narrow_bf16(in[i]);
  }
  static FATHOM_KERNEL void f32_f16(const float* in, std::uint16_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = narrow_f16(in[i]);
  }
  static FATHOM_KERNEL void f32_f64(const float* in, double* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = in[i];
  }
  static FATHOM_KERNEL void f64_f32(const double* in, float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
  }
  static FATHOM_KERNEL void f64_odd(const double* in, float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = round_to_odd(in[i]);
  }
  static FATHOM_KERNEL void fp8(const std::uint8_t* in, const float* scales, std::size_t block, float* out,
                                std::size_t n) {
    for (std::size_t first = 0; first < n; first += block, ++scales) {
      const std::size_t last = first + block < n ? first + block : n;
      const float scale = *scales;
      for (std::size_t i = first; i < last; ++i) out[i] = decode_e4m3(in[i]) * scale;
    }
  }
  // n packed bytes, 16 of them under one scale.
  static FATHOM_KERNEL void fp4(const std::uint8_t* in, const float* scales, float* out, std::size_t n) {
    for (std::size_t first = 0; first < n; first += 16, ++scales) {
      const std::size_t count = n - first < 16 ? n - first : 16;
      const float scale = *scales;
      for (std::size_t i = 0; i < count; ++i) {
        out[2 * (first + i)] = decode_e2m1(in[first + i] & 15u) * scale;
        out[2 * (first + i) + 1] = decode_e2m1(in[first + i] >> 4) * scale;
      }
    }
  }
  // Whether any element has all bits of `mask`.
  static FATHOM_KERNEL bool any16(const std::uint16_t* in, std::uint16_t mask, std::size_t n) {
    std::uint16_t found = 0;
    for (std::size_t i = 0; i < n; ++i) found |= (in[i] & mask) == mask ? 1 : 0;
    return found != 0;
  }
  static FATHOM_KERNEL bool any32(const std::uint32_t* in, std::uint32_t mask, std::size_t n) {
    std::uint32_t found = 0;
    for (std::size_t i = 0; i < n; ++i) found |= (in[i] & mask) == mask ? 1u : 0u;
    return found != 0;
  }
  static FATHOM_KERNEL bool any8(const std::uint8_t* in, std::uint8_t mask, std::size_t n) {
    std::uint8_t found = 0;
    for (std::size_t i = 0; i < n; ++i) found |= (in[i] & mask) == mask ? 1 : 0;
    return found != 0;
  }
};

template <class T>
const T* as(std::span<const std::byte> bytes) {
  return reinterpret_cast<const T*>(bytes.data());
}
template <class T>
T* as(std::span<std::byte> bytes) {
  return reinterpret_cast<T*>(bytes.data());
}

void to_f32(DType from, std::span<const std::byte> in, std::span<float> out, bool then_16_bit) {
  switch (from) {
    case DType::bf16:
      return dispatch<Loops::bf16_f32>(as<std::uint16_t>(in), out.data(), out.size());
    case DType::f16:
      return dispatch<Loops::f16_f32>(as<std::uint16_t>(in), out.data(), out.size());
    case DType::f64:
      return then_16_bit ? dispatch<Loops::f64_odd>(as<double>(in), out.data(), out.size())
                         : dispatch<Loops::f64_f32>(as<double>(in), out.data(), out.size());
    default:
      FATHOM_CHECK(false, "not a plain float");
  }
}

void from_f32(std::span<const float> in, DType to, std::span<std::byte> out) {
  switch (to) {
    case DType::bf16:
      return dispatch<Loops::f32_bf16>(in.data(), as<std::uint16_t>(out), in.size());
    case DType::f16:
      return dispatch<Loops::f32_f16>(in.data(), as<std::uint16_t>(out), in.size());
    case DType::f64:
      return dispatch<Loops::f32_f64>(in.data(), as<double>(out), in.size());
    default:
      FATHOM_CHECK(false, "not a plain float");
  }
}

template <class T>
std::optional<std::size_t> find_mask(std::span<const std::byte> values, T mask) {
  const T* in = as<T>(values);
  for (std::size_t i = 0; i < values.size() / sizeof(T); ++i)
    if ((in[i] & mask) == mask) return i;
  return std::nullopt;
}

}  // namespace

void convert(DType from, std::span<const std::byte> in, DType to, std::span<std::byte> out) {
  const std::size_t n = in.size() / static_cast<std::size_t>(dtype_bytes(from));
  FATHOM_CHECK(out.size() == n * static_cast<std::size_t>(dtype_bytes(to)));
  if (from == to) {
    std::memcpy(out.data(), in.data(), in.size());
  } else if (to == DType::f32) {
    to_f32(from, in, {as<float>(out), n}, false);
  } else if (from == DType::f32) {
    from_f32({as<float>(in), n}, to, out);
  } else {
    std::array<float, 2048> middle;
    const auto step_in = static_cast<std::size_t>(dtype_bytes(from)),
               step_out = static_cast<std::size_t>(dtype_bytes(to));
    for (std::size_t done = 0; done < n; done += middle.size()) {
      const std::span part(middle.data(), std::min(middle.size(), n - done));
      to_f32(from, in.subspan(done * step_in, part.size() * step_in), part, true);
      from_f32(part, to, out.subspan(done * step_out, part.size() * step_out));
    }
  }
}

void dequantize_fp8(std::span<const std::uint8_t> codes, std::span<const float> scales, std::size_t block,
                    std::span<float> out) {
  FATHOM_CHECK(out.size() == codes.size() && scales.size() * block >= codes.size());
  dispatch<Loops::fp8>(codes.data(), scales.data(), block, out.data(), codes.size());
}

void dequantize_fp4(std::span<const std::uint8_t> packed, std::span<const float> scales, std::span<float> out) {
  FATHOM_CHECK(out.size() == 2 * packed.size() && scales.size() * 16 >= packed.size());
  dispatch<Loops::fp4>(packed.data(), scales.data(), out.data(), packed.size());
}

void decode_e8m0(std::span<const std::uint8_t> codes, std::span<float> out) {
  FATHOM_CHECK(out.size() == codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) out[i] = e8m0_to_f32(codes[i]);
}

std::optional<std::size_t> first_not_finite(DType dtype, std::span<const std::byte> values) {
  const auto search = [&](auto mask, bool found) { return found ? find_mask(values, mask) : std::nullopt; };
  switch (dtype) {
    case DType::f64:
      return find_mask<std::uint64_t>(values, 0x7ff0000000000000u);
    case DType::f32:
      return search(std::uint32_t{0x7f800000u},
                    dispatch<Loops::any32>(as<std::uint32_t>(values), 0x7f800000u, values.size() / 4));
    case DType::bf16:
      return search(std::uint16_t{0x7f80u},
                    dispatch<Loops::any16>(as<std::uint16_t>(values), std::uint16_t{0x7f80u}, values.size() / 2));
    case DType::f16:
      return search(std::uint16_t{0x7c00u},
                    dispatch<Loops::any16>(as<std::uint16_t>(values), std::uint16_t{0x7c00u}, values.size() / 2));
    case DType::f8e4m3:
      return search(std::uint8_t{0x7fu},
                    dispatch<Loops::any8>(as<std::uint8_t>(values), std::uint8_t{0x7fu}, values.size()));
    case DType::e8m0:
      return search(std::uint8_t{0xffu},
                    dispatch<Loops::any8>(as<std::uint8_t>(values), std::uint8_t{0xffu}, values.size()));
    default:
      return std::nullopt;
  }
}

}  // namespace fathom::weights
