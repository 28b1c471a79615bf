// What of latent attention of one token is done on the way of its attention (latents_absorbed.cuh): the short ops
// before it, and the product that carries queries into latent space.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fathom::cuda {

/// Widths of the one shape that is done so: DeepSeek-V2's, V3's and their kin's.
inline constexpr int kAbsorbedRank = 512, kAbsorbedRope = 64, kAbsorbedNope = 128,
                     kAbsorbedWidth = kAbsorbedRank + kAbsorbedRope;

struct FreshLatents {
  float* q = nullptr;  // [heads, nope + rope] as the product left it; its last columns are rotated in place. Null:
                       // nothing is done on the way
  std::int64_t q_head = 0;
  const std::byte* weight = nullptr;  // of head h: nope rows of `rank` bf16, h · weight_head bytes further on
  std::int64_t weight_head = 0;
  const float *kv = nullptr,
              *k_rope = nullptr;    // [rank] and [rope], as the product left them: to be normed, to be rotated
  const std::byte* norm = nullptr;  // [rank]
  DType norm_type = DType::f32;
  float eps = 0;
  const float *cosines = nullptr, *sines = nullptr;  // [rope / 2]
  bool interleaved = false;
  std::int64_t cache_rows = 0;  // of the whole cache
};

}  // namespace fathom::cuda
