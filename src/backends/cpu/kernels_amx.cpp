// Target `amx`: the kernels of avx512, and products of bf16 weights with tiles. A tile of the weight is taken straight
// from memory, 16 rows × 32 columns as they lie; activations are packed in pairs along k, as tiles want their second
// operand:
//   group of 32 tokens: [k / 32][2 tiles][16 pairs][16 tokens][2] bf16, zero-padded.
// Sums are tiles [16 rows][16 tokens] f32, so a result is turned round when it is written.
// Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS: subnormals count as zero.
#include "backends/cpu/kernels.h"
#include "backends/cpu/target.inc"

#if defined(__x86_64__)
#if !defined(__clang__)  // g++ 12 warns of its own headers: _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16")
#endif

namespace fathom::cpu::amx {
namespace {
#include "backends/cpu/vector_avx512.inc"

constexpr std::int64_t kSide = 16;  // rows, and tokens, of a tile
constexpr std::int64_t kStep = 32;  // columns of a tile
constexpr std::int64_t kTileBytes = 1024;
constexpr std::int64_t kPair = 2 * kSide;  // rows, and tokens, of a block of 2 × 2 tiles
constexpr std::int64_t kRowBlock = 256;    // rows of the weight in one call
constexpr std::int64_t kMaxTokens = 512;   // tokens in one call
constexpr std::int64_t kDepth =
    512;  // columns at a time: 32 tokens × 512 take 32 KiB, two thirds of the first-level cache
constexpr std::int64_t kSteps = kDepth / kStep;
constexpr std::size_t kSumsBytes = kRowBlock * kMaxTokens * 4;
constexpr std::size_t kEdgeBytes = kRowBlock * kDepth * 2;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
constexpr TileConfig kConfig;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t min_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

std::size_t packed_bytes(std::int64_t k) { return static_cast<std::size_t>(ceil_div(k, kStep) * 2 * kTileBytes); }

/// 32 columns of a row from `from` on as 16 pairs; what lies behind the first `count` is zero.
FATHOM_INLINE F pairs_of(const float* from, std::int64_t count) {
  const F low = count >= 16 ? load(from) : load_part(from, static_cast<int>(count));
  const F high = count >= 32  ? load(from + 16)
                 : count > 16 ? load_part(from + 16, static_cast<int>(count - 16))
                              : zero();
  return reinterpret_cast<F>(_mm512_cvtne2ps_pbh(high, low));
}

// Some steps at a time: rows of 16 pairs are laid into the tiles as they come, then every tile is turned round in
// place.
void pack(const PackedTokens& args) {
  const std::int64_t steps = ceil_div(args.k, kStep);
  for (std::int64_t first = 0; first < steps; first += 8) {
    const std::int64_t last = min_of(first + 8, steps);
    for (std::int64_t m = 0; m < kPair; ++m) {
      auto* to = reinterpret_cast<float*>(args.out + m / kSide * kTileBytes) + m % kSide * kSide;
      const float* from = m < args.m_count ? args.x[m] + args.x_offset : nullptr;
      for (std::int64_t step = first; step < last; ++step)
        store(to + step * 2 * (kTileBytes / 4),
              from != nullptr ? pairs_of(from + step * kStep, args.k - step * kStep) : zero());
    }
    for (std::int64_t tile = 2 * first; tile < 2 * last; ++tile) {
      auto* at = reinterpret_cast<float*>(args.out + tile * kTileBytes);
      F pairs[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) pairs[i] = load(at + i * kSide);
      transpose(pairs);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store(at + i * kSide, pairs[i]);
    }
  }
}

/// Where the 32 rows of a block of the weight are: tiles one step after the other, rows `stride` apart.
struct Rows {
  const std::byte* tile[2];
  std::int64_t stride, step;
};

// 32 rows × 32 (or 16) tokens over `steps` steps, added to the four tiles at `sums`. While the tiles multiply,
// `ahead_rows` rows of the block that comes next are fetched, row after row: memory gives consecutive lines faster than
// strided ones.
template <bool kBothTokens>
FATHOM_INLINE void multiply_tiles(const Rows& rows, const std::byte* tokens, std::int64_t steps, bool first,
                                  std::byte* sums, const std::byte* ahead, std::int64_t ahead_rows,
                                  std::int64_t ahead_stride) {
  if (first) {
    _tile_zero(0);
    _tile_zero(2);
    if (kBothTokens) {
      _tile_zero(1);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(2, sums + 2 * kTileBytes, 64);
    if (kBothTokens) {
      _tile_loadd(1, sums + kTileBytes, 64);
      _tile_loadd(3, sums + 3 * kTileBytes, 64);
    }
  }
  std::int64_t ahead_line = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, rows.tile[0] + step * rows.step, rows.stride);
    _tile_loadd(6, tokens + step * 2 * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kBothTokens) {
      _tile_loadd(7, tokens + (step * 2 + 1) * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, rows.tile[1] + step * rows.step, rows.stride);
    _tile_dpbf16ps(2, 5, 6);
    if (kBothTokens) _tile_dpbf16ps(3, 5, 7);
    for (std::int64_t line = 0; line < ahead_rows; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + ahead_line * 64), _MM_HINT_T1);
      if (++ahead_line == steps) ahead_line = 0, ahead += ahead_stride;
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(2, sums + 2 * kTileBytes, 64);
  if (kBothTokens) {
    _tile_stored(1, sums + kTileBytes, 64);
    _tile_stored(3, sums + 3 * kTileBytes, 64);
  }
}

/// 32 rows from `row` on, columns [k0, k0 + steps · 32): where they lie when all of that is inside the weight, else a
/// copy padded with zeros in `edge`.
Rows rows_at(const PackedProduct& args, std::int64_t row, std::int64_t k0, std::int64_t steps, std::byte* edge) {
  const std::byte* from = args.weight + row * args.weight_stride + k0 * 2;
  if (row + kPair <= args.rows && k0 + steps * kStep <= args.k)
    return {{from, from + kSide * args.weight_stride}, args.weight_stride, 64};
  for (std::int64_t step = 0; step < steps; ++step)
    for (std::int64_t r = 0; r < kPair; ++r) {
      const std::int64_t count = row + r < args.rows ? min_of(kStep, args.k - k0 - step * kStep) : 0;
      const auto mask = static_cast<__mmask32>((std::uint64_t{1} << count) - 1);
      const __m512i line = _mm512_maskz_loadu_epi16(mask, from + r * args.weight_stride + step * 64);
      _mm512_store_si512(edge + (step * kPair + r) * 64, line);
    }
  return {{edge, edge + kTileBytes}, 64, 2 * kTileBytes};
}

/// Four tiles [2 × 2][16 rows][16 tokens] to out[token][row], from `row` and `token` on.
void write(const PackedProduct& args, const std::byte* tiles, std::int64_t row, std::int64_t token) {
  for (std::int64_t i = 0; i < 4; ++i) {
    const std::int64_t n = row + i / 2 * kSide, m = token + i % 2 * kSide;
    const std::int64_t columns = min_of(kSide, args.rows - n), tokens = min_of(kSide, args.m_count - m);
    if (columns <= 0 || tokens <= 0) continue;
    const auto* from = reinterpret_cast<const float*>(tiles + i * kTileBytes);
    F v[kSide];
#pragma GCC unroll 16
    for (int j = 0; j < kSide; ++j) v[j] = load(from + j * kSide);
    transpose(v);
    float* to = args.out + m * args.out_stride + n;
    if (columns == kSide && tokens == kSide && !args.accumulate) {
#pragma GCC unroll 16
      for (int j = 0; j < kSide; ++j) store(to + j * args.out_stride, v[j]);
    } else {
      const auto lanes = static_cast<int>(columns);
      for (std::int64_t j = 0; j < tokens; ++j, to += args.out_stride)
        store_part(to, args.accumulate ? load_part(to, lanes) + v[j] : v[j], lanes);
    }
  }
}

void multiply(const PackedProduct& args) {
  _tile_loadconfig(&kConfig);
  std::byte *sums = args.scratch, *edge = args.scratch + kSumsBytes;
  const std::int64_t groups = ceil_div(args.m_count, kPair), pairs = ceil_div(args.rows, kPair);
  const std::size_t group_bytes = packed_bytes(args.k);
  const std::int64_t ahead_rows = ceil_div(kPair, groups);
  for (std::int64_t k0 = 0; k0 < args.k; k0 += kDepth) {
    const std::int64_t steps = min_of(kSteps, ceil_div(args.k - k0, kStep));
    Rows rows[kRowBlock / kPair];
    for (std::int64_t pair = 0; pair < pairs; ++pair)
      rows[pair] = rows_at(args, pair * kPair, k0, steps, edge + pair * kDepth * kPair * 2);
    // What this thread reads next: the following columns of these rows, or the first of the rows of its next call.
    const bool more = k0 + kDepth < args.k;
    const std::byte* next = more ? args.weight + (k0 + kDepth) * 2 : args.ahead;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::byte* tokens =
          args.tokens + static_cast<std::size_t>(group) * group_bytes + k0 / kStep * 2 * kTileBytes;
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        std::byte* to = sums + (pair * groups + group) * 4 * kTileBytes;
        const std::int64_t row = pair * kPair + group * ahead_rows;
        const std::int64_t fetch =
            next == nullptr ? 0 : min_of(min_of(ahead_rows, kPair - group * ahead_rows), args.rows - row);
        const std::byte* ahead = next + row * args.weight_stride;
        if (args.m_count - group * kPair > kSide)
          multiply_tiles<true>(rows[pair], tokens, steps, k0 == 0, to, ahead, fetch, args.weight_stride);
        else
          multiply_tiles<false>(rows[pair], tokens, steps, k0 == 0, to, ahead, fetch, args.weight_stride);
        if (!more) write(args, to, pair * kPair, group * kPair);
      }
    }
  }
  _tile_release();
}

constexpr PackedKernels kPacked = {
    .token_tile = kPair,
    .least_tokens = 5,
    .row_block = kRowBlock,
    .max_tokens = kMaxTokens,
    .scratch_bytes = kSumsBytes + kEdgeBytes,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .multiply = multiply,
};

}  // namespace
}  // namespace fathom::cpu::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fathom::cpu {
const Kernels* amx_kernels() {
  static const Kernels table = [] {
    Kernels kernels = *avx512_kernels();
    kernels.packed = &amx::kPacked;
    kernels.dot_codes = dot_codes_vnni;
    return kernels;
  }();
  return &table;
}
}  // namespace fathom::cpu

#else
namespace fathom::cpu {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace fathom::cpu
#endif
