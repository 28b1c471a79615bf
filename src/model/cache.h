// What a sequence keeps between steps, as the architecture asks for it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/units.h"
#include "tensor/ops.h"

namespace fathom::model {

/// One cache tensor of one layer: [slots · rows_per_slot, row_elements].
struct CacheTensor {
  int layer = 0;
  tensor::RowsOf rows = tensor::RowsOf::kPosition;
  std::int64_t width = 0;      // elements a row
  std::int64_t heads = 1;      // each has a scale of its own where rows have scales (tensor/int8_rows.h)
  std::int64_t apart = 0;      // so have so many columns at a row's end: the rotated part of a latent
  std::int64_t ratio = 1;      // kEntry: tokens an entry
  std::int64_t ring_rows = 0;  // kRing: rows a sequence, whatever the context
  bool state = false;          // always f32 (compressor state), not in the KV precision
  bool index = false;          // keys of the indexer (their own precision in some formats)
  /// Rows a sequence needs for `context` tokens.
  std::int64_t rows_for(std::int64_t context) const;
  /// Elements from one row to the next; in i8 the bytes of codes and scales.
  std::int64_t row_elements(DType dtype) const;
  /// The first of the columns apart, among them.
  std::int64_t first_apart(DType dtype) const;
  /// What the cache's elements are when others' are `dtype`.
  DType type(DType dtype) const { return state && dtype != DType::f64 ? DType::f32 : dtype; }
};

/// All of them; engines allocate exactly these.
struct CacheSpec {
  std::vector<CacheTensor> tensors;
  /// Bytes for `slots` sequences of up to `context` tokens, element type `dtype`.
  Bytes bytes(std::int64_t slots, std::int64_t context, DType dtype) const;
};

/// The caches of a batch in memory (or on meta): one tensor an entry of CacheSpec, in its order.
struct CacheSet {
  const CacheSpec* spec = nullptr;
  std::vector<tensor::Tensor> tensors;
  std::vector<std::int64_t> rows_per_slot;
};

/// KV bytes as the field states them: growing per context token and fixed per sequence, keyed like the facts
/// ("16bit", "fp8", "fp8_flashmla", "bf16", "fp8_fp4index", …; fixed: "window_bytes_fp8", …).
struct KvFigure {
  std::string key;
  double bytes = 0;
};
struct KvFigures {
  std::vector<KvFigure> per_token;
  std::vector<KvFigure> fixed;
};

}  // namespace fathom::model
