// Architecture: a model written once over Ops. The same calls run it, plan it and differentiate it.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "model/cache.h"
#include "model/spec.h"
#include "model/weight_table.h"
#include "tensor/collectives.h"
#include "tensor/functions.h"

namespace fathom::model {

/// Which share of the model this rank holds. Indivisible is an error of make_architecture.
struct Sharding {
  int tp = 1, tp_rank = 0;                        // attention heads, dense feed-forward, vocabulary
  int ep = 1, ep_rank = 0;                        // whole experts
  int expert_tp = 1, expert_tp_rank = 0;          // within experts
  std::int64_t first_layer = 0, last_layer = -1;  // pipeline stage: [first, last); -1: to the end
};

/// What one forward pass works with. Made anew for each pass (cheap).
struct Pass {
  tensor::Ops& ops;
  tensor::Collectives& comm;
  const WeightSet& weights;
  const CacheSet* cache = nullptr;  // null: nothing is kept (training, or a whole prompt at once)
  const tensor::Batch& batch;
  std::vector<tensor::RotaryPair> rotary = {};  // filled by Architecture::begin, held to the end of the pass
  std::vector<tensor::Value> shared = {};       // what a later layer reads of an earlier one (V4.1's choice of entries)
  std::span<const std::int64_t> replica_tokens =
      {};  // tokens of this pass on each member of Group::kAttention; empty: one replica
};

class Architecture {
 public:
  virtual ~Architecture() = default;
  const ModelSpec& spec() const { return spec_; }
  const Sharding& sharding() const { return sharding_; }
  const WeightTable& weights() const { return table_; }
  const CacheSpec& cache() const { return cache_; }
  /// Constants that kernels read (inverse frequencies), to be placed where the device reads them; order is begin()'s.
  std::span<const std::vector<float>> constants() const { return constants_; }
  void bind_constants(std::vector<tensor::Tensor> tensors) { constant_tensors_ = std::move(tensors); }

  /// False for those that can be planned but not run yet; `why_not_runnable` is then a catalog key.
  virtual bool runnable() const { return true; }
  /// Layers with the same number run the same ops on the same shapes, so a plan traces one of each and multiplies.
  virtual int layer_kind(std::int64_t layer) const = 0;
  /// Growing and fixed cache bytes in the field's formats.
  virtual KvFigures kv_figures() const = 0;

  // A forward pass: begin, embed, each layer in order, head. hidden is [T, h], or [T, streams, h] with
  // hyper-connections.
  virtual void begin(Pass& pass) const;
  virtual tensor::Value embed(Pass& pass) const = 0;
  virtual tensor::Value layer(Pass& pass, std::int64_t layer, const tensor::Tensor& hidden) const = 0;
  /// Logits [outputs, vocabulary share] in the activation type; `outputs` as Batch::output_rows says.
  virtual tensor::Value head(Pass& pass, const tensor::Tensor& hidden) const = 0;

  /// All of it: logits. Layers run as blocks, so that a tape may checkpoint them. A stage of a pipeline begins with
  /// what the stage before it sent, and all but the last send on and answer nothing.
  tensor::Value forward(Pass& pass) const;

 protected:
  Architecture(ModelSpec spec, Sharding sharding) : spec_(std::move(spec)), sharding_(sharding) {}
  ModelSpec spec_;
  Sharding sharding_;
  WeightTable table_;
  CacheSpec cache_;
  std::vector<std::vector<float>> constants_;
  std::vector<tensor::Tensor> constant_tensors_;
};

Result<std::unique_ptr<Architecture>> make_architecture(const ModelSpec& spec, const Sharding& sharding = {});

}  // namespace fathom::model
