// Activations: how many bytes a pass has alive, from its trace and from what an engine does differently.
#pragma once
#include <vector>

#include "backends/meta/trace.h"
#include "plan/memory_profile.h"
#include "plan/model_trace.h"

namespace fathom::plan {

/// Of one layer kind while training. Rates are a micro-batch's on one rank; `replicated` is the part that every tensor
/// rank holds whole and sequence parallelism divides.
struct SavedActivations {
  meta::Rate none, none_replicated;  // kept from forward to backward
  meta::Rate selective, selective_replicated;
  meta::Rate full;      // the layer's input
  meta::Rate backward;  // gradients alive beside, at the layer's worst moment
};

struct ActivationModel {
  // inference: largest sums alive at once
  meta::Peak embed, head;  // head: beside the hidden state
  meta::Peak layers;       // the worst of all kinds
  meta::Rate hidden;       // what goes from layer to layer, with what callers hold
  meta::Rate rotary;       // held through the pass
  meta::Rate logits;       // elements
  double expand_bytes_per_context =
      0;  // keys and values repeated for every query head: bytes a cached token, one layer
  double cache_layer_bytes_per_context = 0;  // one layer's keys (or values): what growing by concatenation holds twice
  /// Peak of a pass of T tokens that gives O rows of logits.
  double at(double tokens, double outputs) const;
  // training
  std::vector<SavedActivations> kinds;  // as ModelTrace::kinds
  std::vector<std::uint8_t> kind_of_layer;
  double loss_logits_per_token = 0;  // logits a token on this rank
};

ActivationModel make_activations(const ModelTrace& trace, const model::ModelSpec& spec, const MemoryProfile& profile,
                                 bool fp8_products);

}  // namespace fathom::plan
