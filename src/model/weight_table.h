// WeightTable: every tensor of a checkpoint, its shape here (on one rank of a layout) and there (in the file), and how
// it is stored. One table drives loading, synthesizing, planning and the engine, so they cannot disagree.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/units.h"
#include "tensor/weight.h"

namespace fathom::model {

/// What a tensor is for; formats and engines choose precision by it.
enum class WeightClass : std::uint8_t {
  kEmbedding,
  kHead,
  kNorm,
  kBias,
  kAttention,
  kDenseFfn,
  kSharedExpert,
  kRoutedExpert,
  kRouter,
  kIndexer,
  kCompressor,
  kHyper,
  kHashTable,
  kSink,
  kEngramTable,
  kEngramProjection,
  kMtp,
  kVision,
};
inline constexpr int kWeightClassCount = 18;
std::string_view weight_class_name(WeightClass cls);

/// Which part of the checkpoint: the main model runs; the others are counted, and loaded only by what needs them.
enum class WeightPart : std::uint8_t { kMain, kMtp, kVision, kEngram };

/// How a rank's share is cut from the whole.
enum class Split : std::uint8_t {
  kNone,     // replicated
  kRows,     // rows [first, first + rows) of the whole
  kColumns,  // columns
  kExperts,  // whole experts
};

struct WeightEntry {
  std::string pattern;               // name in the file; {e} stands for the expert
  std::vector<std::string> aliases;  // the same tensor's name in other published namings
  WeightClass cls = WeightClass::kAttention;
  WeightPart part = WeightPart::kMain;
  int layer = -1;                   // -1: global
  std::int64_t rows = 0, cols = 0;  // this rank's share; a vector is [1, cols]
  std::int64_t full_rows = 0, full_cols = 0;
  std::int64_t first_row = 0, first_col = 0;
  bool vector = false;                   // one dimension in the file
  std::vector<std::int64_t> file_shape;  // when the file's shape is neither [rows, cols] nor [cols]
  std::int64_t experts = 1;              // tensors of this shape, one an expert, on this rank
  std::int64_t first_expert = 0;
  bool per_expert = false;
  Split split = Split::kNone;
  tensor::WeightFormat native = tensor::WeightFormat::bf16;  // in the released checkpoint
  tensor::Activations activations =
      tensor::Activations::kAsTheyAre;  // of products with it, when it is kept in its native format
  int tied_to = -1;                     // the entry whose memory this one uses (tied head); it has no tensor of its own
  std::int32_t first_parameter = -1;    // parameter number of its first tensor

  std::uint64_t elements() const {
    return static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(cols) * static_cast<std::uint64_t>(experts);
  }
  /// Name of its tensor number `expert` (local) in the file, by `naming` 0 (pattern) or 1 + index of alias.
  std::string name(std::int64_t expert = 0, int naming = 0) const;
};

/// Index of an entry in the table.
using WeightId = int;

class WeightTable {
 public:
  /// Appends and numbers an entry; returns its id.
  WeightId add(WeightEntry entry);
  /// Another name under which the tensor may lie in a file.
  void add_alias(WeightId id, std::string name) {
    entries_[static_cast<std::size_t>(id)].aliases.push_back(std::move(name));
  }
  std::span<const WeightEntry> entries() const { return entries_; }
  const WeightEntry& operator[](WeightId id) const { return entries_[static_cast<std::size_t>(id)]; }
  /// Tensors in total (experts counted one by one): parameter numbers are 0 … parameters() - 1.
  std::int32_t parameters() const { return parameters_; }

 private:
  std::vector<WeightEntry> entries_;
  std::int32_t parameters_ = 0;
};

/// The weights of one rank, in memory or on meta: entry id -> Weight, or a span of them for experts.
class WeightSet {
 public:
  WeightSet() = default;
  explicit WeightSet(
      const WeightTable& table);  // undefined weights, shapes and parameter numbers filled in (enough for meta)
  tensor::Weight& operator[](WeightId id) {
    return weights_[static_cast<std::size_t>(first_[static_cast<std::size_t>(id)])];
  }
  const tensor::Weight& operator[](WeightId id) const {
    return weights_[static_cast<std::size_t>(first_[static_cast<std::size_t>(id)])];
  }
  std::span<const tensor::Weight> experts(WeightId id) const;
  std::span<tensor::Weight> experts(WeightId id);
  std::span<const tensor::Weight> all() const { return weights_; }

 private:
  std::vector<tensor::Weight> weights_;  // by parameter number
  std::vector<std::int32_t> first_, count_;
};

/// Figures of the whole checkpoint, from the table of an unsplit model.
struct ModelSizes {
  std::uint64_t parameters_total = 0;  // all elements in the checkpoint, hash-table integers included, scales not
  std::uint64_t parameters_main = 0;   // without MTP / DSpark
  std::uint64_t parameters_active =
      0;  // per token: main text model without input embedding, idle experts, vision, Engram tables, integers
  std::uint64_t parameters_active_with_embedding = 0;
  std::uint64_t parameters_embedding = 0;
  Bytes checkpoint_bytes = 0;  // with scales, without file headers
  Bytes checkpoint_bytes_mtp = 0;
  std::uint64_t tensors = 0;  // with scale tensors
};
ModelSizes model_sizes(const WeightTable& table, std::int64_t experts_per_token);

}  // namespace fathom::model
