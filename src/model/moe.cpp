#include "model/moe.h"

namespace fathom::model {

MoeIds add_moe(EntryMaker& make, const std::string& prefix, int layer) {
  const ModelSpec& spec = make.spec();
  const std::string p = prefix + "mlp.";
  const std::int64_t inner = spec.expert_intermediate;
  MoeIds ids;
  ids.gate = make.experts(p + "experts.{e}.gate_proj.weight", layer, spec.routing.experts, inner, spec.hidden,
                          spec.expert_format, Split::kRows);
  ids.up = make.experts(p + "experts.{e}.up_proj.weight", layer, spec.routing.experts, inner, spec.hidden,
                        spec.expert_format, Split::kRows);
  ids.down = make.experts(p + "experts.{e}.down_proj.weight", layer, spec.routing.experts, spec.hidden, inner,
                          spec.expert_format, Split::kColumns);
  ids.first_expert = make.table()[ids.gate].first_expert;
  if (spec.shared_experts > 0) {
    ids.shared =
        add_ffn(make, p + "shared_experts.gate_proj", p + "shared_experts.up_proj", p + "shared_experts.down_proj",
                WeightClass::kSharedExpert, layer, inner * spec.shared_experts, false);
    ids.has_shared = true;
  }
  ids.router =
      make.matrix(p + "gate.weight", WeightClass::kRouter, layer, spec.routing.experts, spec.hidden, spec.plain_format);
  if (spec.routing.scoring != tensor::Scoring::kSoftmax)
    ids.bias = make.vector(p + "gate.e_score_correction_bias", WeightClass::kRouter, layer, spec.routing.experts,
                           tensor::WeightFormat::f32);
  return ids;
}

FeedForwardIds add_feed_forward(EntryMaker& make, const std::string& prefix, int layer) {
  const ModelSpec& spec = make.spec();
  FeedForwardIds ids;
  ids.experts = spec.layer[static_cast<std::size_t>(layer)].experts;
  if (ids.experts)
    ids.moe = add_moe(make, prefix, layer);
  else
    ids.dense = add_ffn(make, prefix + "mlp.gate_proj", prefix + "mlp.up_proj", prefix + "mlp.down_proj",
                        WeightClass::kDenseFfn, layer, spec.intermediate, spec.mlp_bias);
  return ids;
}

tensor::Value run_feed_forward(Pass& pass, const ModelSpec& spec, const FeedForwardIds& ids, const tensor::Tensor& x) {
  if (ids.experts) return run_moe(pass, spec, ids.moe, x);
  tensor::Value out = run_ffn(pass, spec, ids.dense, x);
  pass.comm.all_reduce(tensor::Group::kTensor, out);
  return out;
}

}  // namespace fathom::model
