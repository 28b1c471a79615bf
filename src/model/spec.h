// ModelSpec: what a Hugging Face config.json says, in one form for every architecture.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/result.h"
#include "model/quantization.h"
#include "tensor/ops.h"
#include "tensor/weight.h"

namespace fathom::model {

/// Rotary embedding of one kind of layer. Frequencies and the cos/sin factor follow transformers' modeling_rope_utils.
struct RopeSpec {
  enum class Type { kNone, kDefault, kLinear, kLlama3, kYarn };
  Type type = Type::kDefault;
  double theta = 10000;
  std::int64_t dims = 0;  // rotated dims of a head, even
  double factor = 1;
  std::int64_t original_context = 0;
  double low_frequency_factor = 1, high_frequency_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;                        // yarn
  double mscale = 0, mscale_all_dim = 0;                       // yarn; 0: absent
  std::optional<double> attention_factor;                      // yarn; absent: derived from factor and mscale
  double attention_multiplier = 1;  // yarn: "attn_factor" (R1-0528-Qwen3-8B), times the derived factor
  bool truncate = true;             // yarn
};
/// Inverse frequencies [dims / 2], in f32 as transformers computes them, and the factor on cos and sin.
std::vector<float> inverse_frequencies(const RopeSpec& rope);
double rotary_scale(const RopeSpec& rope);

/// How a layer attends.
enum class LayerAttention : std::uint8_t {
  kFull,               // every earlier token
  kSparse,             // the indexer's choice among every earlier token (V3.2)
  kWindow,             // a sliding window (V4)
  kCompressedSparse,   // window + the indexer's choice among compressed entries (V4 CSA, V4.1 CSA2)
  kHeavilyCompressed,  // window + all heavily compressed entries (V4 HCA)
};

struct LayerSpec {
  LayerAttention attention = LayerAttention::kFull;
  std::int64_t compress_ratio = 0;  // tokens an entry; 0: none
  bool experts = false;             // mixture of experts, else a dense feed-forward
  bool hash_routed = false;         // experts chosen by token id
};

struct VisionSpec {
  std::int64_t layers = 0, hidden = 0, intermediate = 0, heads = 0, patch = 0, downsample = 0;
};
struct DsparkSpec {
  std::int64_t blocks = 0, markov_rank = 0, targets = 0, experts = 0;
};  // V4 / V4.1 draft
struct EngramSpec {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> layers;
  std::int64_t head_dim = 0, heads = 0, max_ngram = 0;
};

struct ModelSpec {
  std::string model_type;   // as in the config: names the architecture
  std::string config_json;  // what this was read from, for writing it out again
  std::int64_t hidden = 0, layers = 0, vocabulary = 0, max_context = 0;
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t intermediate = 0;  // dense feed-forward; 0: none
  double norm_eps = 1e-6;
  bool tied_embeddings = false, attention_bias = false, output_bias = false, mlp_bias = false, qk_norm = false;
  RopeSpec rope;           // main
  RopeSpec compress_rope;  // V4: of layers with compressed entries
  bool rope_interleaved = false;
  bool learned_positions = false;  // GPT-3
  // latent attention (V2, V3, V3.2)
  std::int64_t q_lora_rank = 0, kv_lora_rank = 0, qk_nope_dim = 0, qk_rope_dim = 0, v_head_dim = 0;
  // indexer (V3.2, V4)
  std::int64_t index_heads = 0, index_head_dim = 0, index_top_k = 0;
  // V4
  std::int64_t output_groups = 0, output_lora_rank = 0, window = 0;
  std::int64_t hyper_streams = 0, sinkhorn_iterations = 0;
  double hyper_eps = 0, swiglu_limit = 0;
  // experts
  tensor::Routing routing;
  std::int64_t shared_experts = 0, expert_intermediate = 0;
  std::vector<LayerSpec> layer;  // one a layer
  // beside the main model: counted, not run
  std::int64_t mtp_layers = 0;
  bool mtp_copies = false;  // the MTP block stores its own embedding and head (V3; V4 Base)
  DsparkSpec dspark;
  VisionSpec vision;
  EngramSpec engram;                                                // V4.1
  std::vector<std::int64_t> kv_source_layers, index_source_layers;  // V4.1
  // how the released checkpoint stores things
  tensor::WeightFormat linear_format = tensor::WeightFormat::bf16;  // linears of attention and feed-forward
  tensor::WeightFormat expert_format = tensor::WeightFormat::bf16;  // routed experts
  tensor::WeightFormat plain_format = tensor::WeightFormat::bf16;   // embedding, head, norms, router
  tensor::Activations block_activations =
      tensor::Activations::kAsTheyAre;  // what the release asks of products with fp8_block128 weights
  Quantization
      quantization;  // compressed-tensors: which modules of those two formats are quantized, and how; empty: all alike
  std::vector<std::int64_t> bos_ids, eos_ids;
};

/// Reads a config.json as published or as transformers 5 writes it. `what` names it in errors. An unknown model_type,
/// or a key outside the architecture's and the explicit list of harmless ones, is an error that names it; so are values
/// that are absurd (zero, negative, beyond 2^40) or contradict each other.
Result<ModelSpec> parse_config(std::string_view json, std::string_view what);
/// From a file, or from config.json in a folder.
Result<ModelSpec> load_config(const Path& path);
/// The architectures that parse_config knows, as model_type names.
std::vector<std::string> known_model_types();
/// The same model with `layers` layers (for `synth --layers` and for tracing); keeps at least one of each kind where it
/// can.
Result<ModelSpec> with_layers(const ModelSpec& spec, std::int64_t layers);

}  // namespace fathom::model
