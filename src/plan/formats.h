// Formats: what a precision means for every class of weight and for the cache, as data (data/formats/*.json).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "hardware/catalog.h"
#include "model/cache.h"
#include "model/weight_table.h"

namespace fathom::plan {

/// How the elements of one tensor lie in memory: element bits, one scale a block, and what a row, a column, a tensor costs beside.
struct Storage {
  std::string name;                     // "bf16", "q4_K"
  double bits = 16;                     // of one element, without scales
  std::int64_t block_rows = 1, block_cols = 0;  // block_cols 0: no scales
  double block_bits = 0;                // of everything that one block adds
  double row_bytes = 0, column_bytes = 0, tensor_bytes = 0;
  /// Bytes of a [rows, cols] tensor, ragged blocks rounded up.
  Bytes bytes(std::int64_t rows, std::int64_t cols) const;
  /// Bytes an element, scales included, of a large matrix.
  double bytes_per_element() const;
};

/// A weight format: storage by class of weight. "native" stores each tensor as released.
struct WeightFormatRule {
  std::string name;
  std::vector<std::string> aliases;
  bool native = false;
  /// Storage of each class; a class may split by layer or by tensor (GGUF's mixtures): see `overrides`.
  std::array<std::int16_t, model::kWeightClassCount> storage{};  // index into storages()
  struct Override {
    std::vector<std::string> tensors;  // parts of names in the file: "v_proj", "down_proj", "lm_head"
    std::string layers;                // "", "half": i < n/8 or i >= 7n/8 or (i - n/8) % 3 == 2 (llama.cpp's use_more_bits)
    std::int16_t storage = 0;
  };
  std::vector<Override> overrides;
  /// Precision of the matrix products of weights in this format: of the activations when weights are unpacked on the fly.
  hardware::Precision math = hardware::Precision::bf16;
  bool unpacks = false;                // weights are widened before the product (int4, nf4, K-quants)
  bool on_disk_larger = false;         // file and memory differ
};

/// A cache format: bytes of one cache tensor's row, by what it holds.
struct KvFormat {
  std::string name;                    // "bf16", "fp8", "int8", "fp8_ds_mla"
  std::vector<std::string> aliases;
  double bits = 16;                    // of an element of a plain cache
  std::int64_t block = 0;              // elements that share a scale; 0: none
  double block_bits = 0;
  double rope_bits = 0;                // latent caches: bits of the rotary part when it differs; 0: as `bits`
  double latent_bits = 0;              // latent caches: bits of the latent part when it differs
  std::int64_t latent_block = 0;       // and its scales
  double latent_block_bits = 0;
  double index_bits = 0;               // keys of the indexer
  std::int64_t index_block = 0;
  double index_block_bits = 0;
};

/// All of them, loaded once. Thread-safe.
struct Formats {
  std::vector<Storage> storages;
  std::vector<WeightFormatRule> weights;
  std::vector<KvFormat> kv;
};
Result<const Formats*> formats();
/// By name or alias; unknown: an error with the nearest names.
Result<const WeightFormatRule*> find_weight_format(std::string_view name);
Result<const KvFormat*> find_kv_format(std::string_view name);

}  // namespace fathom::plan
