#include "hardware/memory_bench_kernels.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fathom::hardware {
namespace {

enum class Hint { kNone, kNear, kSecondLevel, kOnce };

template <Hint H>
inline __attribute__((always_inline)) void prefetch_block(const std::byte* at) {
  // 256 bytes: four lines
  if constexpr (H == Hint::kNear)
    for (int i = 0; i < 256; i += 64) __builtin_prefetch(at + i, 0, 3);
  if constexpr (H == Hint::kSecondLevel)
    for (int i = 0; i < 256; i += 64) __builtin_prefetch(at + i, 0, 2);
  if constexpr (H == Hint::kOnce)
    for (int i = 0; i < 256; i += 64) __builtin_prefetch(at + i, 0, 0);
}

// One 64-byte step of plain C++; the compiler uses the registers that every chip of the family has.
std::uint64_t read_rest(const std::byte* data, std::size_t bytes) {
  std::uint64_t sum[4] = {};
  for (std::size_t i = 0; i + 32 <= bytes; i += 32) {
    std::uint64_t word[4];
    std::memcpy(word, data + i, sizeof word);
    for (int k = 0; k < 4; ++k) sum[k] ^= word[k];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

// The shape shared by all instruction sets: groups of S streams, `pitch` bytes apart, read 256 bytes from each in turn.
// BLOCK reads 256 bytes at `at` into accumulator `s`; FOLD answers the xor of all accumulators.
#define FATHOM_READ_LOOP(NAME, TARGET, DECLARE, BLOCK, FOLD)                                                  \
  template <int S, Hint H>                                                                                    \
  TARGET std::uint64_t NAME(const std::byte* data, std::size_t bytes, std::size_t pitch, std::size_t ahead) { \
    DECLARE;                                                                                                  \
    std::size_t group = 0;                                                                                    \
    for (; group + S * pitch <= bytes; group += S * pitch)                                                    \
      for (std::size_t i = 0; i + 256 <= pitch; i += 256)                                                     \
        for (int s = 0; s < S; ++s) {                                                                         \
          const std::byte* at = data + group + static_cast<std::size_t>(s) * pitch + i;                       \
          prefetch_block<H>(at + ahead);                                                                      \
          BLOCK;                                                                                              \
        }                                                                                                     \
    return (FOLD) ^ read_rest(data + group, bytes - group);                                                   \
  }

inline std::uint64_t fold_words(const std::uint64_t* words, int count) {
  std::uint64_t all = 0;
  for (int i = 0; i < count; ++i) all ^= words[i];
  return all;
}

FATHOM_READ_LOOP(read_plain, , std::uint64_t sum[S] = {}, sum[s] ^= read_rest(at, 256), fold_words(sum, S))

#if defined(__x86_64__)

#define FATHOM_AVX2 __attribute__((target("avx2")))
#define FATHOM_AVX512 __attribute__((target("avx512f")))

template <int S>
FATHOM_AVX2 inline std::uint64_t fold_avx2(const __m256i (&sum)[S]) {
  __m256i all = sum[0];
  for (int s = 1; s < S; ++s) all = _mm256_xor_si256(all, sum[s]);
  alignas(32) std::uint64_t words[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), all);
  return fold_words(words, 4);
}

template <int S>
FATHOM_AVX512 inline std::uint64_t fold_avx512(const __m512i (&sum)[S]) {
  __m512i all = sum[0];
  for (int s = 1; s < S; ++s) all = _mm512_xor_si512(all, sum[s]);
  alignas(64) std::uint64_t words[8];
  _mm512_store_si512(words, all);
  return fold_words(words, 8);
}

FATHOM_AVX2 inline __attribute__((always_inline)) __m256i load_avx2(const std::byte* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}
FATHOM_AVX512 inline __attribute__((always_inline)) __m512i load_avx512(const std::byte* at) {
  return _mm512_load_si512(at);
}
FATHOM_AVX512 inline __attribute__((always_inline)) __m512i load_once_avx512(const std::byte* at) {
  return _mm512_stream_load_si512(const_cast<std::byte*>(at));
}

FATHOM_READ_LOOP(read_avx2, FATHOM_AVX2, __m256i sum[S] = {},
                 for (int k = 0; k < 256; k += 32) sum[s] = _mm256_xor_si256(sum[s], load_avx2(at + k)), fold_avx2(sum))
FATHOM_READ_LOOP(read_avx512, FATHOM_AVX512, __m512i sum[S] = {},
                 for (int k = 0; k < 256; k += 64) sum[s] = _mm512_xor_si512(sum[s], load_avx512(at + k)),
                 fold_avx512(sum))
FATHOM_READ_LOOP(read_once_avx512, FATHOM_AVX512, __m512i sum[S] = {},
                 for (int k = 0; k < 256; k += 64) sum[s] = _mm512_xor_si512(sum[s], load_once_avx512(at + k)),
                 fold_avx512(sum))

#endif

// "avx512 8 streams" / "avx512 8 pages of 4 KiB, prefetch next".
ReadVariant variant(const char* set, const char* extra, ReadLoop loop, int streams, std::size_t pitch,
                    std::size_t ahead) {
  std::string name = std::string(set) + " " + std::to_string(streams) +
                     (pitch == 0 ? (streams == 1 ? " stream" : " streams") : " pages");
  if (*extra != '\0') name += std::string(", ") + extra;
  return {name, loop, streams, pitch, ahead};
}

// The same shapes for every instruction set.
#define FATHOM_MAIN_VARIANTS(list, set, loop)                                             \
  list.push_back(variant(set, "", loop<8, Hint::kNone>, 8, 0, 0));                        \
  list.push_back(variant(set, "", loop<12, Hint::kNone>, 12, 0, 0));                      \
  list.push_back(variant(set, "", loop<8, Hint::kNone>, 8, 4096, 0));                     \
  list.push_back(variant(set, "prefetch next", loop<8, Hint::kNear>, 8, 4096, 8 * 4096)); \
  list.push_back(variant(set, "prefetch 2048", loop<8, Hint::kNear>, 8, 0, 2048));        \
  list.push_back(variant(set, "", loop<4, Hint::kNone>, 4, 0, 0))
#define FATHOM_MORE_VARIANTS(list, set, loop)                                                   \
  list.push_back(variant(set, "", loop<16, Hint::kNone>, 16, 4096, 0));                         \
  list.push_back(variant(set, "prefetch 2048 to L2", loop<8, Hint::kSecondLevel>, 8, 0, 2048)); \
  list.push_back(variant(set, "prefetch 2048", loop<4, Hint::kNear>, 4, 0, 2048));              \
  list.push_back(variant(set, "prefetch 2048", loop<1, Hint::kNear>, 1, 0, 2048));              \
  list.push_back(variant(set, "prefetch once 1024", loop<4, Hint::kOnce>, 4, 0, 1024));         \
  list.push_back(variant(set, "", loop<1, Hint::kNone>, 1, 0, 0));                              \
  list.push_back(variant(set, "", loop<2, Hint::kNone>, 2, 0, 0))

constexpr float kTriadFactor = 3.0f;

void copy_plain(float* target, const float* a, const float*, std::size_t bytes) { std::memcpy(target, a, bytes); }
void triad_plain(float* target, const float* a, const float* b, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes / sizeof(float); ++i) target[i] = a[i] + kTriadFactor * b[i];
}

#if defined(__x86_64__)

// Copy and triad 256 bytes at a time from four places of the data, stored through the cache or past it.
#define FATHOM_WRITE_LOOPS(SUFFIX, TARGET, LANES, LOAD, STORE, ADD_SCALED, BROADCAST)                         \
  template <int S>                                                                                            \
  TARGET void copy_##SUFFIX(float* target, const float* a, const float*, std::size_t bytes) {                 \
    const std::size_t part = bytes / sizeof(float) / S / 64 * 64;                                             \
    for (std::size_t i = 0; i < part; i += 64)                                                                \
      for (std::size_t s = 0; s < S; ++s)                                                                     \
        for (std::size_t k = s * part + i; k < s * part + i + 64; k += LANES) STORE(target + k, LOAD(a + k)); \
    _mm_sfence();                                                                                             \
    copy_plain(target + S * part, a + S * part, nullptr, bytes - S * part * sizeof(float));                   \
  }                                                                                                           \
  template <int S>                                                                                            \
  TARGET void triad_##SUFFIX(float* target, const float* a, const float* b, std::size_t bytes) {              \
    const std::size_t part = bytes / sizeof(float) / S / 64 * 64;                                             \
    const auto factor = BROADCAST(kTriadFactor);                                                              \
    for (std::size_t i = 0; i < part; i += 64)                                                                \
      for (std::size_t s = 0; s < S; ++s)                                                                     \
        for (std::size_t k = s * part + i; k < s * part + i + 64; k += LANES)                                 \
          STORE(target + k, ADD_SCALED(LOAD(b + k), factor, LOAD(a + k)));                                    \
    _mm_sfence();                                                                                             \
    triad_plain(target + S * part, a + S * part, b + S * part, bytes - S * part * sizeof(float));             \
  }

FATHOM_AVX2 inline __attribute__((always_inline)) __m256 add_scaled_avx2(__m256 b, __m256 factor, __m256 a) {
  return _mm256_add_ps(a, _mm256_mul_ps(b, factor));
}
FATHOM_WRITE_LOOPS(avx2, FATHOM_AVX2, 8, _mm256_load_ps, _mm256_store_ps, add_scaled_avx2, _mm256_set1_ps)
FATHOM_WRITE_LOOPS(past_avx2, FATHOM_AVX2, 8, _mm256_load_ps, _mm256_stream_ps, add_scaled_avx2, _mm256_set1_ps)
FATHOM_WRITE_LOOPS(avx512, FATHOM_AVX512, 16, _mm512_load_ps, _mm512_store_ps, _mm512_fmadd_ps, _mm512_set1_ps)
FATHOM_WRITE_LOOPS(past_avx512, FATHOM_AVX512, 16, _mm512_load_ps, _mm512_stream_ps, _mm512_fmadd_ps, _mm512_set1_ps)

#endif

}  // namespace

std::vector<ReadVariant> read_variants(IsaSet isa) {
  std::vector<ReadVariant> list;
#if defined(__x86_64__)
  const bool avx512 = isa.has(Isa::avx512f), avx2 = isa.has(Isa::avx2);
  if (avx512) {
    FATHOM_MAIN_VARIANTS(list, "avx512", read_avx512);
    FATHOM_MORE_VARIANTS(list, "avx512", read_avx512);
    list.push_back(variant("avx512", "streaming loads", read_once_avx512<8, Hint::kNone>, 8, 0, 0));
  }
  if (avx2) {
    FATHOM_MAIN_VARIANTS(list, "avx2", read_avx2);
    if (!avx512) {
      FATHOM_MORE_VARIANTS(list, "avx2", read_avx2);
    }
  }
  if (avx512 || avx2) {
    list.push_back(variant("plain", "", read_plain<4, Hint::kNone>, 4, 0, 0));
    return list;
  }
#else
  static_cast<void>(isa);
#endif
  FATHOM_MAIN_VARIANTS(list, "plain", read_plain);
  FATHOM_MORE_VARIANTS(list, "plain", read_plain);
  return list;
}

std::uint64_t run_read(const ReadVariant& variant, std::span<const std::byte> data) {
  const std::size_t even = data.size() / static_cast<std::size_t>(variant.streams) / 256 * 256;
  const std::size_t pitch = variant.pitch == 0 ? std::max<std::size_t>(even, 256) : variant.pitch;
  return variant.loop(data.data(), data.size(), pitch, variant.ahead);
}

std::vector<WriteVariant> write_variants(IsaSet isa) {
  std::vector<WriteVariant> list;
#if defined(__x86_64__)
  if (isa.has(Isa::avx512f)) {
    list.push_back({"avx512 past the cache", copy_past_avx512<1>, triad_past_avx512<1>});
    list.push_back({"avx512 4 streams past the cache", copy_past_avx512<4>, triad_past_avx512<4>});
    list.push_back({"avx512", copy_avx512<1>, triad_avx512<1>});
  } else if (isa.has(Isa::avx2)) {
    list.push_back({"avx2 past the cache", copy_past_avx2<1>, triad_past_avx2<1>});
    list.push_back({"avx2 4 streams past the cache", copy_past_avx2<4>, triad_past_avx2<4>});
    list.push_back({"avx2", copy_avx2<1>, triad_avx2<1>});
  }
#else
  static_cast<void>(isa);
#endif
  list.push_back({"plain", copy_plain, triad_plain});
  return list;
}

}  // namespace fathom::hardware
