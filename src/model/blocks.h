// The pieces that architectures share: their weights in the table, and their part of a forward pass. Shapes are this
// rank's.
#pragma once
#include <string>

#include "model/architecture.h"

namespace fathom::model {

/// Adds entries under a name prefix ("model.layers.3."), in the format of their class.
class EntryMaker {
 public:
  EntryMaker(WeightTable& table, const ModelSpec& spec, const Sharding& sharding)
      : table_(table), spec_(spec), sharding_(sharding) {}
  /// A tensor cut as `split` says over `parts` ranks, of which this is `part`.
  WeightId matrix(const std::string& name, WeightClass cls, int layer, std::int64_t rows, std::int64_t cols,
                  tensor::WeightFormat native, Split split = Split::kNone, int parts = 1, int part = 0);
  WeightId vector(const std::string& name, WeightClass cls, int layer, std::int64_t size, tensor::WeightFormat native,
                  Split split = Split::kNone, int parts = 1, int part = 0);
  /// One tensor an expert; `name` holds {e}. Whole experts over ep ranks, then rows or columns within over expert_tp.
  WeightId experts(const std::string& name, int layer, std::int64_t experts, std::int64_t rows, std::int64_t cols,
                   tensor::WeightFormat native, Split within);
  /// Entries added from now on belong to this part of the checkpoint.
  void set_part(WeightPart part) { part_ = part; }
  const Sharding& sharding() const { return sharding_; }
  const ModelSpec& spec() const { return spec_; }
  WeightTable& table() { return table_; }

 private:
  // Stored as the checkpoint's quantization_config says of the module.
  void apply_quantization(WeightEntry& entry) const;
  WeightTable& table_;
  const ModelSpec& spec_;
  const Sharding& sharding_;
  WeightPart part_ = WeightPart::kMain;
};

/// Grouped-query attention (llama, qwen2, qwen3, MoE-16B).
struct GqaIds {
  WeightId q, k, v, o, q_bias = -1, k_bias = -1, v_bias = -1, o_bias = -1, q_norm = -1, k_norm = -1;
  int k_cache = -1, v_cache = -1;
};
GqaIds add_gqa(EntryMaker& make, CacheSpec& cache, const std::string& prefix, int layer, bool qkv_bias);
/// x [T, h] normed -> [T, h], already summed over the tensor group.
tensor::Value run_gqa(Pass& pass, const ModelSpec& spec, const GqaIds& ids, const tensor::Tensor& x);

/// Gated feed-forward: down(silu(gate x) · up x).
struct FfnIds {
  WeightId gate, up, down, gate_bias = -1, up_bias = -1, down_bias = -1;
};
FfnIds add_ffn(EntryMaker& make, const std::string& gate, const std::string& up, const std::string& down,
               WeightClass cls, int layer, std::int64_t intermediate, bool bias);
/// x [T, h] -> [T, h], not yet summed over the group.
tensor::Value run_ffn(Pass& pass, const ModelSpec& spec, const FfnIds& ids, const tensor::Tensor& x);

/// Routed experts beside shared ones.
struct MoeIds {
  WeightId router, bias = -1, table = -1, gate, up, down;
  FfnIds shared;
  bool has_shared = false;
  std::int64_t first_expert = 0;
};
/// x [T, h] -> [T, h], summed over the tensor and expert groups. Replicas of attention bring their tokens to the
/// experts that they share.
tensor::Value run_moe(Pass& pass, const ModelSpec& spec, const MoeIds& ids, const tensor::Tensor& x);

/// The weight of an id, or an undefined one for -1.
inline tensor::Weight weight_or_none(const Pass& pass, WeightId id) {
  return id < 0 ? tensor::Weight{} : pass.weights[id];
}
/// Vocabulary rows [V, h] over the tensor group when they divide, else whole on every rank.
WeightId add_vocabulary(EntryMaker& make, const std::string& name, WeightClass cls);
/// ids -> [T, h], summed over the tensor group when the table is split.
tensor::Value run_embed(Pass& pass, const WeightEntry& entry, WeightId id);
/// The final part of most models: logits of the wanted rows of `hidden` [T, h].
tensor::Value run_head(Pass& pass, const ModelSpec& spec, const tensor::Tensor& hidden, WeightId norm, WeightId head);
/// Cache tensor number `index` viewed as [rows, heads, dim], without its columns apart.
tensor::Tensor cache_rows(const Pass& pass, int index);
/// The same as [rows, width], of a cache of one head.
tensor::Tensor cache_columns(const Pass& pass, int index);
/// Its columns apart: [rows, apart].
tensor::Tensor cache_apart(const Pass& pass, int index);
/// Whether this pass starts every sequence from nothing, so that its own tokens are all there is to attend to.
bool starts_fresh(const Pass& pass);
/// Refuses a split that does not divide.
Status check_divides(std::string_view what, std::int64_t whole, std::int64_t parts);

}  // namespace fathom::model
