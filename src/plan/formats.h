// Formats: what a precision means for every class of weight and for the cache, as data (data/formats/*.json).
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "hardware/catalog.h"
#include "model/cache.h"
#include "model/spec.h"
#include "model/weight_table.h"

namespace fathom::plan {

/// How the elements of one tensor lie in memory: element bits, scales by blocks, and what a row, a column, a tensor
/// costs beside.
struct Storage {
  std::string name;                             // "bf16", "q4_k"
  double bits = 16;                             // of one element, without scales
  std::int64_t block_rows = 1, block_cols = 0;  // block_cols 0: no blocks
  double block_bits = 0;                        // of everything that one block adds
  double row_bytes = 0, column_bytes = 0, tensor_bytes = 0;
  std::int16_t fallback = -1;  // storage of tensors whose columns do not divide into blocks; -1: blocks are padded
};

/// Storage numbers that are no index: the released type; the released type where it is plain, else bf16.
inline constexpr std::int16_t kNativeStorage = -1, kWideStorage = -2;

/// A weight format: storage by class of weight.
struct WeightFormatRule {
  std::string name;
  std::vector<std::string> aliases;
  bool native = false;  // every tensor as released
  std::array<std::int16_t, model::kWeightClassCount>
      storage{};  // index into Formats::storages, or one of the two above
  enum class Layers : std::uint8_t { kAll, kMore, kFirstFour, kFirstEighth, kFirstSixteenth };
  struct Override {
    std::vector<std::string> tensors;  // parts of names in the file: "v_proj", "down_proj"
    Layers layers = Layers::kAll;      // kMore: llama.cpp's use_more_bits
    std::int16_t storage = 0;
  };
  std::vector<Override> overrides;      // the first that matches counts
  bool tied_embedding_as_head = false;  // a table that serves as head too is stored as a head
  /// Precision of the matrix products with weights in this format.
  hardware::Precision math = hardware::Precision::bf16;
  bool unpacks = false;  // weights are widened to it on the way (int4, nf4, K-quants)
};

/// A cache format. A part that is not given (bits 0) is as `all`.
struct KvFormat {
  struct Part {
    double bits = 0;
    std::int64_t block = 0;
    double block_bits = 0;
  };
  std::string name;  // "bf16", "fp8", "int8", "fp8_ds_mla"
  std::vector<std::string> aliases;
  Part all, index, latent, rope;  // latent, rope: the two parts of a latent cache (V2, V3)
  Part entry_latent, entry_rope;  // of a V4 entry
  double entry_pad_bits = 0;      // and what pads it
  Part window;                    // V4.1: of windows, when they differ
  bool own_kernels = false;       // as this program lays it out; otherwise as other engines do
  bool int8_rows = false;         // rows of codes with a scale a head, as the engine lays them out
  /// What the streams of a cache in this format are for kernels: bits of an element, scales included, of a plain cache.
  double element_bits() const {
    return all.bits + (all.block > 0 ? all.block_bits / static_cast<double>(all.block) : 0);
  }
};

/// All of them, loaded once.
struct Formats {
  std::vector<Storage> storages;
  std::vector<WeightFormatRule> weights;
  std::vector<KvFormat> kv;
};
/// Loaded at the first call, thread-safe. Errors are those of the data files.
Result<const Formats*> formats();
/// By name or alias, case does not matter; unknown: an error with the known ones.
Result<const WeightFormatRule*> find_weight_format(std::string_view name);
/// `own_kernels`: as this program lays it out.
Result<const KvFormat*> find_kv_format(std::string_view name, bool own_kernels = false);

/// Bytes of a [rows, cols] tensor.
Bytes storage_bytes(const Formats& formats, const Storage& storage, std::int64_t rows, std::int64_t cols);
/// Bytes of all tensors of an entry under a rule, tied entries 0. `layers`: of the model, for rules that depend on
/// depth.
Bytes entry_bytes(const Formats& formats, const WeightFormatRule& rule, const model::WeightEntry& entry,
                  std::int64_t layers, bool tied_embeddings);
/// Bytes of one row of a cache tensor.
double cache_row_bytes(const KvFormat& kv, const model::ModelSpec& spec, const model::CacheTensor& tensor);

}  // namespace fathom::plan
