// The tensors of DeepSeek-V4 and V4.1 and how their configs read: shared by the two.
#pragma once
#include <string>

#include "model/blocks.h"
#include "model/config_reader.h"

namespace fathom::model {

struct V4HyperIds {
  WeightId fn = -1, base = -1, scale = -1;
};
struct V4CompressorIds {
  WeightId kv = -1, gate = -1, ape = -1, norm = -1;
  int cache = -1, state_kv = -1, state_gate = -1;
};
struct V4LayerIds {
  WeightId attention_norm, ffn_norm, q_a, q_norm, q_b, kv, kv_norm, o_a, o_b, sink;
  WeightId index_q = -1, index_weights = -1;
  V4CompressorIds compressor, index_compressor;
  V4HyperIds attention_hyper, ffn_hyper;
  MoeIds moe;
  int window_cache = -1;
};
struct V4HeadIds {
  WeightId norm = -1, head = -1;
  V4HyperIds hyper;
};

/// `bare` is the published name ("embed"), `converted` what transformers 5 writes ("model.embed_tokens").
WeightId add_v4_vocabulary(EntryMaker& make, const std::string& bare, const std::string& converted, WeightClass cls);
V4LayerIds add_v4_layer(EntryMaker& make, CacheSpec& cache, int layer);
V4HeadIds add_v4_head(EntryMaker& make);
/// MTP or DSpark blocks and the vision part: counted, not run.
void add_v4_extras(EntryMaker& make);
void add_vision(EntryMaker& make);
KvFigures v4_kv_figures(const ModelSpec& spec);

/// The common block of attention and experts under the published names; `experts` routed experts, `hashed` or biased
/// routing.
struct V4BlockOptions {
  std::string prefix;
  int layer = 0;
  std::int64_t experts = 0;
  bool hashed = false;
  std::int64_t ratio = 0;
  bool v41 = false;
};
V4LayerIds add_v4_block(EntryMaker& make, const V4BlockOptions& options);
/// Keys that both generations share.
void read_v4_common(ConfigReader& reader, ModelSpec& spec);

}  // namespace fathom::model
