#include "measure/calibrate_before.h"

namespace fathom::measure {
using namespace tensor;  // NOLINT: the vocabulary

HeadRows::HeadRows(Rig& rig, std::int64_t tokens, std::int64_t queries, std::int64_t keys, std::int64_t width)
    : q(rig.tensor(DType::f32, {tokens, queries})),
      k(rig.tensor(DType::f32, {tokens, keys})),
      v(rig.tensor(DType::f32, {tokens, keys})),
      cos(rig.tensor(DType::f32, {tokens, width / 2})),
      sin(rig.tensor(DType::f32, {tokens, width / 2})) {}

void HeadRows::make(Ops& ops, const Tensor& k_cache, const Tensor& v_cache, const Batch& batch,
                    std::int64_t rows_per_slot) const {
  const std::int64_t width = 2 * cos.dim(1);
  ops.rope({.x = q.split_last(width), .cos = cos, .sin = sin});
  ops.rope({.x = k.split_last(width), .cos = cos, .sin = sin});
  ops.cache_write({.src = k, .cache = k_cache, .rows_per_slot = rows_per_slot, .batch = &batch});
  ops.cache_write({.src = v, .cache = v_cache, .rows_per_slot = rows_per_slot, .batch = &batch});
}

LatentRows::LatentRows(Rig& rig, std::int64_t tokens, std::int64_t heads)
    : q(rig.tensor(DType::f32, {tokens, heads, kHead + kRope})),
      kv(rig.tensor(DType::f32, {tokens, kLatent + kRope})),
      latent(rig.tensor(DType::f32, {tokens, kLatent})),
      absorbed(rig.tensor(DType::f32, {tokens, heads, kLatent + kRope})),
      cos(rig.tensor(DType::f32, {tokens, kRope / 2})),
      sin(rig.tensor(DType::f32, {tokens, kRope / 2})),
      norm(rig.tensor(DType::f32, {kLatent})) {}

void LatentRows::make(Ops& ops, const Tensor& cache, const Batch& batch, std::int64_t rows_per_slot,
                      bool absorbs) const {
  ops.rope({.x = q, .cos = cos, .sin = sin, .first_dim = kHead, .interleaved = true});
  ops.rope({.x = kv.columns(kLatent, kRope).split_last(kRope), .cos = cos, .sin = sin, .interleaved = true});
  ops.rms_norm({.x = kv.columns(0, kLatent), .weight = norm, .eps = 1e-6, .out = latent});
  ops.cache_write({.src = latent, .cache = cache.columns(0, kLatent), .rows_per_slot = rows_per_slot, .batch = &batch});
  ops.cache_write({.src = kv.columns(kLatent, kRope),
                   .cache = cache.columns(kLatent, kRope),
                   .rows_per_slot = rows_per_slot,
                   .batch = &batch});
  if (absorbs) ops.copy({.x = q.columns(kHead, kRope), .out = absorbed.columns(kLatent, kRope)});
}

void LatentRows::absorb(Rig& rig, WeightFormat format) const {
  rig.ops().grouped_linear({.x = q.columns(0, kHead),
                            .weight = rig.weight(format, q.dim(1) * 2 * kHead, kLatent),
                            .group_rows = 2 * kHead,
                            .row_offset = 0,
                            .rows = kHead,
                            .transposed = true,
                            .out = absorbed.columns(0, kLatent)});
}

}  // namespace fathom::measure
