#include "plan/layout.h"

namespace fathom::plan {

model::Sharding sharding_of(const Layout& layout) { return {.tp = layout.tp, .ep = layout.ep, .expert_tp = layout.expert_tp}; }

LayerSpan chunk_layers(std::int64_t layers, std::int64_t chunks, std::int64_t chunk) {
  const std::int64_t each = layers / chunks, more = layers % chunks;
  const std::int64_t first = chunk * each + (chunk < more ? chunk : more);
  return {first, first + each + (chunk < more ? 1 : 0)};
}

std::vector<LayerSpan> stage_layers(std::int64_t layers, int pp, int vp, int stage) {
  std::vector<LayerSpan> spans;
  for (int v = 0; v < vp; ++v) spans.push_back(chunk_layers(layers, static_cast<std::int64_t>(pp) * vp, static_cast<std::int64_t>(v) * pp + stage));
  return spans;
}

}  // namespace fathom::plan
