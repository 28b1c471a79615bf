#include "plan/layout.h"

namespace fathom::plan {

model::Sharding sharding_of(const Layout& layout) { return {.tp = layout.tp, .ep = layout.ep, .expert_tp = layout.expert_tp}; }

std::vector<LayerSpan> stage_layers(std::int64_t layers, int pp, int vp, int stage) {
  std::vector<LayerSpan> spans;
  const std::int64_t chunks = static_cast<std::int64_t>(pp) * vp, each = layers / chunks, more = layers % chunks;
  for (int v = 0; v < vp; ++v) {
    const std::int64_t chunk = static_cast<std::int64_t>(v) * pp + stage;
    const std::int64_t first = chunk * each + (chunk < more ? chunk : more);
    spans.push_back({first, first + each + (chunk < more ? 1 : 0)});
  }
  return spans;
}

}  // namespace fathom::plan
