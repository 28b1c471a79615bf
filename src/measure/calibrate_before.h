// What goes before attention: rotations of q and k, and rows written to the cache. Private to calibrate_*.cpp.
#pragma once
#include "measure/calibrate_rig.h"

namespace fathom::measure {

/// Of heads of `width` columns: q, k and v as products leave them.
struct HeadRows {
  tensor::Tensor q, k, v;   // [tokens, columns]
  tensor::Tensor cos, sin;  // [tokens, width / 2]

  HeadRows(Rig& rig, std::int64_t tokens, std::int64_t queries, std::int64_t keys, std::int64_t width);
  /// Caches: [rows, columns].
  void make(tensor::Ops& ops, const tensor::Tensor& k_cache, const tensor::Tensor& v_cache, const tensor::Batch& batch,
            std::int64_t rows_per_slot) const;
};

/// Of latents with the rotated key beside them, as DeepSeek-V2 has them: the norm of the latent, too.
struct LatentRows {
  static constexpr std::int64_t kHead = 128, kLatent = 512, kRope = 64;
  tensor::Tensor q;         // [tokens, heads, kHead + kRope]
  tensor::Tensor kv;        // [tokens, kLatent + kRope]
  tensor::Tensor latent;    // [tokens, kLatent]
  tensor::Tensor absorbed;  // [tokens, heads, kLatent + kRope]: the queries in latent space
  tensor::Tensor cos, sin, norm;

  LatentRows(Rig& rig, std::int64_t tokens, std::int64_t heads);
  /// `cache`: [rows, kLatent + kRope]. `absorbs`: the rotated part of q is copied to that of `absorbed`.
  void make(tensor::Ops& ops, const tensor::Tensor& cache, const tensor::Batch& batch, std::int64_t rows_per_slot,
            bool absorbs) const;
  /// The rest of `absorbed`, by weights of this format.
  void absorb(Rig& rig, tensor::WeightFormat format) const;
};

}  // namespace fathom::measure
