#include "plan/layout.h"

namespace fathom::plan {

model::Sharding sharding_of(const Layout& layout) {
  return {.tp = layout.tp, .ep = layout.ep, .expert_tp = layout.expert_tp};
}

LayerSpan chunk_layers(std::int64_t layers, std::int64_t chunks, std::int64_t chunk) {
  // Where embedding and head count as layers of their own (Llama-3-405B: 126 layers on 16 stages), the two ends hold
  // one less.
  if (layers % chunks != 0 && (layers + 2) % chunks == 0 && chunks > 1) {
    const std::int64_t each = (layers + 2) / chunks, first = chunk == 0 ? 0 : chunk * each - 1;
    return {first, first + each - (chunk == 0 || chunk == chunks - 1 ? 1 : 0)};
  }
  const std::int64_t each = layers / chunks, more = layers % chunks;
  const std::int64_t first = chunk * each + (chunk < more ? chunk : more);
  return {first, first + each + (chunk < more ? 1 : 0)};
}

std::vector<LayerSpan> stage_layers(std::int64_t layers, int pp, int vp, int stage) {
  std::vector<LayerSpan> spans;
  for (int v = 0; v < vp; ++v)
    spans.push_back(
        chunk_layers(layers, static_cast<std::int64_t>(pp) * vp, static_cast<std::int64_t>(v) * pp + stage));
  return spans;
}

}  // namespace fathom::plan
