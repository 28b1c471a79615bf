// x becomes e4m3 codes as codes_wide.cuh wants them: by itself, or as it is made.
#pragma once
#include "backends/cuda/codes_view.cuh"

namespace fathom::cuda {

struct RoundCodes {
  const float* x = nullptr;
  std::int64_t x_stride = 0, tokens = 0;
  int cols = 0, depths = 0;
  bool powers = false;
  bool tiles = false;  // else rows of 128 · depths codes and of `depths` scales
  std::uint8_t* codes = nullptr;
  float* scales = nullptr;

  /// The stretch `depth` of token t: its byte `column`, and its scale among those of the same kind.
  __device__ std::int64_t byte_of(std::int64_t t, int depth, int column) const {
    if (!tiles) return (t * depths + depth) * kCodeDepth + column;
    const std::int64_t run = t / kCodeHits, first = run * kCodeHits, padded = padded_hits(min(tokens - first, static_cast<std::int64_t>(kCodeHits)));
    return (slot_of(first, run) * depths + depth * padded) * kCodeDepth + tile_byte(static_cast<int>(t - first), column);
  }
  __device__ std::int64_t scale_of(std::int64_t t, int depth) const {
    if (!tiles) return t * depths + depth;
    const std::int64_t run = t / kCodeHits, first = run * kCodeHits, padded = padded_hits(min(tokens - first, static_cast<std::int64_t>(kCodeHits)));
    return slot_of(first, run) * depths + depth * padded + t - first;
  }
};

/// Rows of x, or with `stretches` their every 128 columns, share a scale.
void round_codes(Context& context, const RoundCodes& args, bool stretches);
/// Dense rows to tiles at context.rounded_data, their scales behind them.
RoundCodes codes_at_rounded_data(const Context& context, const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t cols, const CodesKind& kind);
/// What context.rounded says of them.
RoundedActivations codes_of(const RoundCodes& codes, const CodesKind& kind);

}  // namespace fathom::cuda
