// Target `avx512_bf16`: the kernels of avx512, and products of bf16 weights by VDPBF16PS, which multiplies pairs along
// k and sums in f32. Weights are packed into panels [k / 2][64 rows][2] bf16, activations into groups [k / 2][6
// tokens][2] bf16.
#include "backends/cpu/kernels.h"
#include "backends/cpu/target.inc"

#if defined(__x86_64__)
#if !defined(__clang__)  // g++ 12 warns of its own headers: _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

namespace fathom::cpu::avx512_bf16 {
namespace {
#include "backends/cpu/vector_avx512.inc"

constexpr std::int64_t kTokens = 6;       // of a group
constexpr std::int64_t kRows = 64;        // of a panel: four vectors of sums
constexpr std::int64_t kMaxTokens = 252;  // in one call
constexpr std::int64_t kDepth = 512;      // columns at a time: a panel takes 64 KiB of the second-level cache
constexpr std::size_t kPanelBytes = kRows * kDepth * 2;
constexpr std::size_t kSumsBytes = kRows * kMaxTokens * 4;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t min_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

std::size_t packed_bytes(std::int64_t k) { return static_cast<std::size_t>(ceil_div(k, 2) * kTokens * 4); }

void pack(const PackedTokens& args) {
  auto* to = reinterpret_cast<std::uint32_t*>(args.out);
  for (std::int64_t i = 0; i < ceil_div(args.k, 2); i += 16) {  // 32 columns of a token are 16 pairs
    for (std::int64_t m = 0; m < kTokens; ++m) {
      alignas(64) std::uint32_t pairs[16] = {};
      if (m < args.m_count) {
        const float* from = args.x[m] + args.x_offset + 2 * i;
        const std::int64_t rest = args.k - 2 * i;
        const F low = rest >= 16 ? load(from) : load_part(from, static_cast<int>(rest));
        const F high = rest >= 32  ? load(from + 16)
                       : rest > 16 ? load_part(from + 16, static_cast<int>(rest - 16))
                                   : zero();
        _mm512_store_si512(pairs, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
      }
      for (std::int64_t p = 0; p < min_of(16, ceil_div(args.k, 2) - i); ++p) to[(i + p) * kTokens + m] = pairs[p];
    }
  }
}

/// Columns [k0, k0 + count) of up to 64 rows, as pairs: 16 rows × 16 pairs are turned round at a time.
void pack_panel(const PackedProduct& args, std::int64_t k0, std::int64_t count, float* panel) {
  for (std::int64_t row = 0; row < kRows; row += 16)
    for (std::int64_t k = 0; k < count; k += 32) {
      F pairs[16];
      const std::int64_t columns = min_of(32, count - k);
      const auto mask = static_cast<__mmask32>((std::uint64_t{1} << columns) - 1);
      for (std::int64_t r = 0; r < 16; ++r) {
        const std::byte* from = args.weight + (row + r) * args.weight_stride + (k0 + k) * 2;
        pairs[r] = row + r < args.rows ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from)) : zero();
      }
      transpose(pairs);
      for (std::int64_t p = 0; p < ceil_div(columns, 2); ++p) store(panel + (k / 2 + p) * kRows + row, pairs[p]);
    }
}

template <int M>
FATHOM_INLINE void product_tile(const float* panel, const std::uint32_t* tokens, std::int64_t pairs, bool first,
                                float* sums) {
  F acc[M][4];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 4; ++v) acc[m][v] = first ? zero() : load(sums + m * kRows + v * 16);
  for (std::int64_t p = 0; p < pairs; ++p) {
    __m512bh w[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) w[v] = reinterpret_cast<__m512bh>(load(panel + p * kRows + v * 16));
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(tokens[p * kTokens + m])));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], x, w[v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 4; ++v) store(sums + m * kRows + v * 16, acc[m][v]);
}

void multiply_group(const float* panel, const std::uint32_t* tokens, std::int64_t pairs, bool first, float* sums,
                    std::int64_t count) {
  switch (count) {
    case 1:
      return product_tile<1>(panel, tokens, pairs, first, sums);
    case 2:
      return product_tile<2>(panel, tokens, pairs, first, sums);
    case 3:
      return product_tile<3>(panel, tokens, pairs, first, sums);
    case 4:
      return product_tile<4>(panel, tokens, pairs, first, sums);
    case 5:
      return product_tile<5>(panel, tokens, pairs, first, sums);
    default:
      return product_tile<6>(panel, tokens, pairs, first, sums);
  }
}

void multiply(const PackedProduct& args) {
  auto *panel = reinterpret_cast<float*>(args.scratch), *sums = reinterpret_cast<float*>(args.scratch + kPanelBytes);
  for (std::int64_t k0 = 0; k0 < args.k; k0 += kDepth) {
    const std::int64_t count = min_of(kDepth, args.k - k0);
    pack_panel(args, k0, count, panel);
    for (std::int64_t m = 0; m < args.m_count; m += kTokens) {
      const std::byte* tokens =
          args.tokens + static_cast<std::size_t>(m / kTokens) * packed_bytes(args.k) + k0 / 2 * kTokens * 4;
      multiply_group(panel, reinterpret_cast<const std::uint32_t*>(tokens), ceil_div(count, 2), k0 == 0,
                     sums + m * kRows, min_of(kTokens, args.m_count - m));
    }
  }
  for (std::int64_t m = 0; m < args.m_count; ++m)
    for (std::int64_t n = 0; n < args.rows; n += 16) {
      const int columns = static_cast<int>(min_of(16, args.rows - n));
      float* to = args.out + m * args.out_stride + n;
      const F v = load(sums + m * kRows + n);
      store_part(to, args.accumulate ? load_part(to, columns) + v : v, columns);
    }
}

constexpr PackedKernels kPacked = {
    .token_tile = kTokens,
    .least_tokens = 9,
    .row_block = kRows,
    .max_tokens = kMaxTokens,
    .scratch_bytes = kPanelBytes + kSumsBytes,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .multiply = multiply,
};

}  // namespace
}  // namespace fathom::cpu::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fathom::cpu {
const Kernels* avx512_bf16_kernels() {
  static const Kernels table = [] {
    Kernels kernels = *avx512_kernels();
    kernels.packed = &avx512_bf16::kPacked;
    kernels.dot_codes = dot_codes_vnni;
    return kernels;
  }();
  return &table;
}
}  // namespace fathom::cpu

#else
namespace fathom::cpu {
const Kernels* avx512_bf16_kernels() { return nullptr; }
}  // namespace fathom::cpu
#endif
