// The feed-forward half of a layer that may be dense or a mixture of experts, with the tensor names of V1 … V3.2.
#pragma once
#include <string>

#include "model/blocks.h"

namespace fathom::model {

struct FeedForwardIds {
  bool experts = false;
  FfnIds dense;
  MoeIds moe;
};
/// Adds the dense or the expert feed-forward that spec.layer[layer] asks for, under `prefix` ("model.layers.3.").
FeedForwardIds add_feed_forward(EntryMaker& make, const std::string& prefix, int layer);
/// Only the mixture of experts (the MTP block has no entry in spec.layer).
MoeIds add_moe(EntryMaker& make, const std::string& prefix, int layer);
/// x [T, h] normed -> [T, h], summed over its groups.
tensor::Value run_feed_forward(Pass& pass, const ModelSpec& spec, const FeedForwardIds& ids, const tensor::Tensor& x);

}  // namespace fathom::model
