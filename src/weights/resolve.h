// Which tensor of a checkpoint each weight comes from, and whether all of it is what the table expects.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "model/weight_table.h"
#include "weights/checkpoint.h"
#include "weights/storage.h"

namespace fathom::weights {

/// What the names of a weight's tensors (".weight", ".weight_packed", ".weight_scale" …) begin with.
std::string stem_of(std::string_view name);

/// How a tensor lies in its file.
enum class Encoding : std::uint8_t { kPlain, kFp8, kFp4, kInt8, kInt4 };

/// Rows and columns that share one scale.
struct ScaleBlock {
  std::int64_t rows = 0, cols = 0;
  bool operator==(const ScaleBlock&) const = default;
};
/// {0, 0} for plain formats; cols is tensor::kWholeRow where a scale covers a row.
ScaleBlock scale_block(tensor::WeightFormat format);
Encoding encoding_of(tensor::WeightCode code);

/// Where one weight comes from.
struct TensorSource {
  TensorPlace data, scales;  // scales: quantized only
  TensorPlace zeros;         // kInt4 with zero points
  bool one_scale = false;    // of the whole tensor
  Encoding encoding = Encoding::kPlain;
  ScaleBlock block;
};

/// Sources by parameter number; false places for parts that `policy` does not want. Names are the table's patterns or,
/// where the checkpoint uses another published naming, aliases. Scales of "X.weight" are "X.weight_scale_inv",
/// "X.scale" or "X.weight_scale"; int4 is "X.weight_packed" with "X.weight_shape" and, where it is asymmetric,
/// "X.weight_zero_point". Errors, each naming the tensor, its file, what was expected and what was found: missing
/// tensors, wrong shapes, types that cannot become the planned format, slices that cut through a block of scales.
Result<std::vector<TensorSource>> resolve_tensors(const model::WeightTable& table, const StoragePolicy& policy,
                                                  const WeightPlan& plan, const Checkpoint& checkpoint);

/// Every tensor of the checkpoint must be one of `whole` (the table of the unsplit model) or of the parts that are
/// knowingly left out: MTP blocks ("mtp.…", "model.layers.N.…" past the last layer when that block has an eh_proj),
/// vision towers and their aligners, image routing biases, rotary frequency buffers, a stored copy of a tied head. An
/// unknown one is an error that names it.
Status check_extra_tensors(const model::WeightTable& whole, const Checkpoint& checkpoint);

}  // namespace fathom::weights
