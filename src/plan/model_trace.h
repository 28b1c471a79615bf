// ModelTrace: a model on one rank of a layout, as records to be priced. Made once a (model, sharding, phase) and kept.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backends/meta/trace.h"
#include "base/result.h"
#include "model/architecture.h"
#include "plan/formats.h"
#include "plan/layout.h"

namespace fathom::plan {

struct MemoryProfile;    // memory_profile.h
struct ActivationModel;  // activations.h
struct WeightBytes;      // cost_model.h

enum class Phase : std::uint8_t {
  kPrefill,   // one sequence of T tokens, its cache written; logits of O rows
  kDecode,    // T sequences of one token each, with a past; O = T
  kTrain,     // T tokens without caches; loss over all; backward traces filled
  kContinue,  // kPrefill after earlier tokens (memory alone: latent attention then works on the cache)
};

/// One kind of layer: every layer of that kind runs exactly this.
struct KindTrace {
  meta::Trace forward, backward;
  std::int64_t example = 0;  // the layer that was traced
  std::int64_t layers = 0;   // how many there are in the model
  model::LayerSpec spec;     // of the example
};

struct ModelTrace {
  std::uint64_t serial =
      0;  // unique in this process: what is derived from a trace is kept by it, since addresses come again
  Phase phase = Phase::kPrefill;
  meta::Trace embed, embed_backward;  // with begin(): positions; first stage
  meta::Trace head, head_backward;    // last stage; when training with the loss
  std::vector<KindTrace> kinds;
  std::vector<std::uint8_t> kind_of_layer;
  std::uint32_t hidden = 0;  // the buffer that goes from layer to layer: input of every kind and of the head
  /// Layers of each kind on pipeline stage `stage`: counts[kind].
  std::vector<std::int64_t> stage_counts(const Layout& layout, int stage) const;
};

/// Weights of one layer, or of one end of the model, on one rank.
struct PartWeights {
  Bytes stored = 0;                       // under the format
  std::uint64_t elements = 0;             // of all but routed experts
  std::uint64_t expert_elements = 0;      // of routed experts
  std::uint64_t replicated_elements = 0;  // of `elements`: those that every tensor rank holds whole
  std::uint64_t adapter_units = 0;  // rows + columns over the linears that adapters sit on: parameters a unit of rank
  PartWeights& operator+=(const PartWeights& other);
};
PartWeights operator-(const PartWeights& a, const PartWeights& b);

/// A share's weights under a format, summed so that any pipeline stage is a sum of parts.
struct ShareWeights {
  std::uint64_t serial = 0;                  // as of a ModelTrace
  std::vector<PartWeights> before;           // sums of the layers before layer i; layers + 1 of them
  PartWeights largest;                       // the largest layer, by elements
  PartWeights embedding, head, mtp;          // ends; mtp: what speculation adds
  Bytes host_bytes = 0;                      // tables that live in host memory (Engram), of the whole model
  std::shared_ptr<const WeightBytes> bytes;  // averages for the cost model
};

/// Caches of one rank, summed like the weights: `fixed` a sequence, and for each ratio the bytes of one row of all
/// layers that have an entry every `ratio` tokens.
struct ShareCache {
  std::vector<double> fixed_before;  // sums over the layers before layer i
  struct Growth {
    std::int64_t ratio = 1;
    std::vector<double> row_bytes_before;
  };
  std::vector<Growth> growing;
};

/// A model as plans see it. Immutable, shared; its caches are filled on demand and are thread-safe.
class PlanModel {
 public:
  virtual ~PlanModel() = default;
  const model::ModelSpec& spec() const { return spec_; }
  /// Catalog id, or a name made of the path; "config" for one given inline.
  const std::string& name() const { return name_; }
  const model::ModelSizes& sizes() const { return sizes_; }
  /// Unsplit architecture: table of weights, cache, kinds.
  const model::Architecture& whole() const { return *whole_; }
  /// The architecture's share on rank 0 of a sharding; indivisible is its error. Valid as long as the model, like all
  /// below.
  virtual Result<const model::Architecture*> share(const model::Sharding& sharding) const = 0;
  /// The trace of a share; errors are share()'s.
  virtual Result<const ModelTrace*> trace(const model::Sharding& sharding, Phase phase,
                                          DType activations = DType::bf16) const = 0;
  virtual Result<const ShareWeights*> share_weights(const model::Sharding& sharding,
                                                    const WeightFormatRule& rule) const = 0;
  virtual Result<const ShareCache*> share_cache(const model::Sharding& sharding, const KvFormat& kv) const = 0;
  /// Activations of a phase under an engine's memory profile.
  virtual Result<const ActivationModel*> activations(const model::Sharding& sharding, Phase phase,
                                                     const MemoryProfile& profile, bool fp8_products) const = 0;

 protected:
  model::ModelSpec spec_;
  std::string name_;
  model::ModelSizes sizes_;
  std::unique_ptr<model::Architecture> whole_;
};

/// By catalog id or alias, or the path of a directory or config.json. Cached.
Result<std::shared_ptr<const PlanModel>> find_plan_model(std::string_view name);
/// From the text of a configuration in Hugging Face form. Cached by its text.
Result<std::shared_ptr<const PlanModel>> plan_model_from_config(std::string_view config_json);

}  // namespace fathom::plan
