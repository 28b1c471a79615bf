// Products of eight-bit codes for every target: plain, AVX2, AVX-512 BW (pairs multiplied in 16 bits), AVX-512 VNNI
// (fours at once). All exact.
#include "backends/cpu/kernels.h"
#include "backends/cpu/target.inc"

#if defined(__x86_64__)
#if !defined(__clang__)  // g++ 12 warns of its own headers: _mm512_undefined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

namespace fathom::cpu {

namespace plain_codes {
namespace {
using V = std::int32_t;
constexpr std::int64_t kCodes = 1;
FATHOM_INLINE V none() { return 0; }
FATHOM_INLINE V multiply_add(V acc, const std::uint8_t* x, const std::int8_t* w) {
  return acc + static_cast<V>(*x) * static_cast<V>(*w);
}
FATHOM_INLINE V multiply_add_part(V acc, const std::uint8_t*, const std::int8_t*, int) { return acc; }
FATHOM_INLINE std::int32_t sum(V v) { return v; }
#include "backends/cpu/kernels_codes.inc"
}  // namespace
}  // namespace plain_codes
void dot_codes_plain(const DotCodes& args) { plain_codes::dot_codes(args); }

}  // namespace fathom::cpu

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace fathom::cpu::avx2_codes {
namespace {
using V = __m256i;
constexpr std::int64_t kCodes = 16;
FATHOM_INLINE V none() { return _mm256_setzero_si256(); }
FATHOM_INLINE V pairs(V acc, __m128i x, __m128i w) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_cvtepu8_epi16(x), _mm256_cvtepi8_epi16(w)));
}
FATHOM_INLINE V multiply_add(V acc, const std::uint8_t* x, const std::int8_t* w) {
  return pairs(acc, _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)),
               _mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}
FATHOM_INLINE V multiply_add_part(V acc, const std::uint8_t* x, const std::int8_t* w, int n) {
  alignas(16) std::uint8_t xs[16] = {};
  alignas(16) std::int8_t ws[16] = {};
  __builtin_memcpy(xs, x, static_cast<std::size_t>(n));
  __builtin_memcpy(ws, w, static_cast<std::size_t>(n));
  return multiply_add(acc, xs, ws);
}
FATHOM_INLINE std::int32_t sum(V v) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
#include "backends/cpu/kernels_codes.inc"
}  // namespace
}  // namespace fathom::cpu::avx2_codes
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx2"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx2")
#endif
namespace fathom::cpu::avx512_codes {
namespace {
using V = __m512i;
constexpr std::int64_t kCodes = 32;
FATHOM_INLINE V none() { return _mm512_setzero_si512(); }
FATHOM_INLINE V pairs(V acc, __m256i x, __m256i w) {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_cvtepu8_epi16(x), _mm512_cvtepi8_epi16(w)));
}
FATHOM_INLINE V multiply_add(V acc, const std::uint8_t* x, const std::int8_t* w) {
  return pairs(acc, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}
FATHOM_INLINE V multiply_add_part(V acc, const std::uint8_t* x, const std::int8_t* w, int n) {
  const auto mask = static_cast<__mmask32>((std::uint64_t{1} << n) - 1);
  return pairs(acc, _mm256_maskz_loadu_epi8(mask, x), _mm256_maskz_loadu_epi8(mask, w));
}
FATHOM_INLINE std::int32_t sum(V v) { return _mm512_reduce_add_epi32(v); }
#include "backends/cpu/kernels_codes.inc"
}  // namespace
}  // namespace fathom::cpu::avx512_codes
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2")
#endif
namespace fathom::cpu::vnni_codes {
namespace {
using V = __m512i;
constexpr std::int64_t kCodes = 64;
FATHOM_INLINE V none() { return _mm512_setzero_si512(); }
FATHOM_INLINE V multiply_add(V acc, const std::uint8_t* x, const std::int8_t* w) {
  return _mm512_dpbusd_epi32(acc, _mm512_loadu_si512(x), _mm512_loadu_si512(w));
}
FATHOM_INLINE V multiply_add_part(V acc, const std::uint8_t* x, const std::int8_t* w, int n) {
  const __mmask64 mask = (std::uint64_t{1} << n) - 1;
  return _mm512_dpbusd_epi32(acc, _mm512_maskz_loadu_epi8(mask, x), _mm512_maskz_loadu_epi8(mask, w));
}
FATHOM_INLINE std::int32_t sum(V v) { return _mm512_reduce_add_epi32(v); }
#include "backends/cpu/kernels_codes.inc"
}  // namespace
}  // namespace fathom::cpu::vnni_codes
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fathom::cpu {
void dot_codes_avx2(const DotCodes& args) { avx2_codes::dot_codes(args); }
void dot_codes_avx512(const DotCodes& args) { avx512_codes::dot_codes(args); }
void dot_codes_vnni(const DotCodes& args) { vnni_codes::dot_codes(args); }
}  // namespace fathom::cpu
#endif
