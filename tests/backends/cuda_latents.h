// The ops around latent attention of DeepSeek-V2 and its kin, for tests that launch them together and one by one.
#pragma once
#include "backends/cuda_fixture.h"

namespace fathom::test {

inline constexpr std::int64_t kLatentRank = 512, kLatentRope = 64, kLatentNope = 128, kLatentValues = 128,
                              kLatentWidth = kLatentRank + kLatentRope;

/// Tokens and what their ops read and write: q [T, heads · (nope + rope)], kv [T, width], cache [slots · rows_per_slot,
/// width], latent [T, rank], carried [T, heads, width].
struct LatentTokens {
  tensor::Tensor q, kv, cache, latent, carried, cosines, sines, norm;
  tensor::Weight kv_b;  // [heads · (nope + values), rank]
  std::int64_t rows_per_slot = 0;
  const tensor::Batch* batch = nullptr;
  bool interleaved = false;
};

/// All before attention: rotations, the latent's norm, its rows and the rotated keys' to the cache, queries carried
/// into latent space; pause() between them.
template <class Pause>
void prepare_latents(tensor::Ops& ops, const LatentTokens& t, Pause pause) {
  const tensor::Tensor heads = t.q.split_last(kLatentNope + kLatentRope);
  const tensor::Tensor k_rope = t.kv.columns(kLatentRank, kLatentRope);
  ops.rope({.x = heads, .cos = t.cosines, .sin = t.sines, .first_dim = kLatentNope, .interleaved = t.interleaved});
  pause();
  ops.rope({.x = k_rope.split_last(kLatentRope), .cos = t.cosines, .sin = t.sines, .interleaved = t.interleaved});
  pause();
  ops.rms_norm({.x = t.kv.columns(0, kLatentRank), .weight = t.norm, .eps = 1e-6, .out = t.latent});
  pause();
  ops.cache_write(
      {.src = t.latent, .cache = t.cache.columns(0, kLatentRank), .rows_per_slot = t.rows_per_slot, .batch = t.batch});
  pause();
  ops.cache_write({.src = k_rope,
                   .cache = t.cache.columns(kLatentRank, kLatentRope),
                   .rows_per_slot = t.rows_per_slot,
                   .batch = t.batch});
  pause();
  ops.copy({.x = heads.columns(kLatentNope, kLatentRope), .out = t.carried.columns(kLatentRank, kLatentRope)});
  pause();
  ops.grouped_linear({.x = heads.columns(0, kLatentNope),
                      .weight = t.kv_b,
                      .group_rows = kLatentNope + kLatentValues,
                      .row_offset = 0,
                      .rows = kLatentNope,
                      .transposed = true,
                      .out = t.carried.columns(0, kLatentRank)});
}

/// The cache's rows as attention reads them: the latent is key and value.
inline tensor::KvSegment latent_segment(const tensor::Tensor& cache, std::int64_t rows_per_slot) {
  const tensor::Tensor keys = cache.columns(0, kLatentRank).split_last(kLatentRank);
  return {.kind = tensor::KvSegment::Kind::kCache,
          .k = keys,
          .k_shared = cache.columns(kLatentRank, kLatentRope),
          .v = keys,
          .rows_per_slot = rows_per_slot};
}

}  // namespace fathom::test
