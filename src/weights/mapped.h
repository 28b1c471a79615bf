// Weights that stay in their files: mapped, not copied.
#pragma once
#include <span>

#include "weights/loader.h"
#include "weights/resolve.h"

namespace fathom::weights {

/// See LoadOptions::mmap. What every token reads is asked for ahead (willneed); routed experts, embeddings and Engram
/// tables, of which a token reads a little, are read without read-ahead (random).
Result<LoadedWeights> load_mapped(const model::WeightTable& table, WeightPlan plan,
                                  std::span<const TensorSource> sources, const LoadOptions& options);

}  // namespace fathom::weights
