// Layout: how a model is spread over devices. Complete: nothing is left to be guessed.
#pragma once
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "model/architecture.h"

namespace fathom::plan {

enum class Offload : std::uint8_t { kNone, kOptimizer, kWeights };
enum class Recompute : std::uint8_t { kNone, kSelective, kFull };

/// tp · pp · cp · dp · dp_attention = devices. Ranks are numbered with tp innermost, then cp, dp_attention, dp, pp.
/// Inference: attention is split tp ways in each of dp_attention groups; the routed experts of a replica are spread
/// over tp · dp_attention devices: ep ways whole experts, expert_tp = tp · dp_attention / ep ways within experts.
/// Training: ep ways over the data-parallel ranks (and tp · cp when it exceeds dp); expert_tp = tp when ep is 1.
struct Layout {
  int tp = 1, pp = 1, dp = 1, dp_attention = 1, ep = 1, expert_tp = 1, cp = 1, vp = 1;
  bool sequence_parallel = false;  // training with tp: norms and residuals hold 1/tp of the tokens
  int zero = 0;
  Offload offload = Offload::kNone;
  Recompute recompute = Recompute::kNone;
  double recompute_share =
      1;  // of a stage's layers that are computed again (full recompute of engines that can stop at some)
  std::int64_t micro_batch = 1;    // sequences a device works on at once (training)
  std::int64_t micro_batches = 1;  // a pipeline runs one after the other in a step (training)
  int devices() const { return tp * pp * dp * dp_attention * cp; }
  bool operator==(const Layout&) const = default;
};

/// The share of the model that the first rank of a stage holds (pipeline boundaries are not part of a trace's key).
model::Sharding sharding_of(const Layout& layout);

/// Layers [first, last) of pipeline stage `stage`; with vp > 1 a stage holds vp such stretches, layers / (pp · vp)
/// apart. Layers that do not divide: earlier stages hold one more, as engines do.
struct LayerSpan {
  std::int64_t first = 0, last = 0;
};
/// Layers of stretch `chunk` of `chunks`.
LayerSpan chunk_layers(std::int64_t layers, std::int64_t chunks, std::int64_t chunk);
std::vector<LayerSpan> stage_layers(std::int64_t layers, int pp, int vp, int stage);

}  // namespace fathom::plan
