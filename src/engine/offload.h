// OffloadOps: the ops of a device that does not hold all weights. It passes every op on. Before one whose weights
// belong to a unit in host memory (weights::Residence) it sees to it that the unit is in its place on the device, and
// has the next ones fetched while ops run; or it has experts computed by the host's own backend, where a pass is small:
// activations go down, sums come up. Models know nothing of it.
#pragma once
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "tensor/backend.h"
#include "weights/loader.h"

namespace fathom::engine {

/// How a run offloads.
struct OffloadOptions {
  std::int64_t host_tokens = 0;  // experts of at most so many tokens are computed on the host; without places: of all
  std::shared_ptr<tensor::Backend> host;  // that does; null: none. Its memory is the host's
  int threads = 0;                        // of it, for people
};

/// Host memory for activations of experts that are computed there: of `tokens` tokens at most.
struct HostHandover {
  std::int64_t tokens = 0, hidden = 0, top_k = 0;
  Bytes bytes() const;
};

class OffloadOps final : public tensor::Ops {
 public:
  /// All are borrowed. `weights` has units of `table`; with options.host their experts' ops are of `handover`'s shapes
  /// at most, whose memory is `staging` (kShared).
  OffloadOps(tensor::Backend& device, const model::WeightTable& table, const weights::LoadedWeights& weights,
             const OffloadOptions& options, const HostHandover& handover, std::byte* staging);
  ~OffloadOps() override;

  /// Whether a pass of so many tokens (of all replicas) streams: what it launches is then not the same each time.
  bool streams(std::int64_t tokens) const;
  /// After the last op of a pass: the next pass's first units are fetched.
  void end_pass();
  /// Bytes that were fetched, and experts' ops that the host computed, since the beginning.
  Bytes fetched_bytes() const { return fetched_; }
  std::int64_t host_calls() const;

  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override { return ops_.allocate(dtype, shape); }
  void release(const tensor::Tensor& tensor) override { ops_.release(tensor); }
  DType activation_dtype() const override { return ops_.activation_dtype(); }
  void embed(const tensor::EmbedArgs& args) override { ops_.embed(args); }
  void gather_rows(const tensor::GatherRowsArgs& args) override { ops_.gather_rows(args); }
  void copy(const tensor::CopyArgs& args) override { ops_.copy(args); }
  void add(const tensor::AddArgs& args) override { ops_.add(args); }
  void expand_streams(const tensor::ExpandStreamsArgs& args) override { ops_.expand_streams(args); }
  void rms_norm(const tensor::RmsNormArgs& args) override;
  void layer_norm(const tensor::LayerNormArgs& args) override;
  void linear(const tensor::LinearArgs& args) override;
  void grouped_linear(const tensor::GroupedLinearArgs& args) override;
  void rotary(const tensor::RotaryArgs& args) override { ops_.rotary(args); }
  void rope(const tensor::RopeArgs& args) override { ops_.rope(args); }
  void cache_write(const tensor::CacheWriteArgs& args) override { ops_.cache_write(args); }
  void attention(const tensor::AttentionArgs& args) override { ops_.attention(args); }
  void index_select(const tensor::IndexSelectArgs& args) override { ops_.index_select(args); }
  void compress(const tensor::CompressArgs& args) override { ops_.compress(args); }
  void swiglu(const tensor::SwigluArgs& args) override { ops_.swiglu(args); }
  void gelu(const tensor::GeluArgs& args) override { ops_.gelu(args); }
  void route(const tensor::RouteArgs& args) override { ops_.route(args); }
  void experts(const tensor::ExpertsArgs& args) override;
  void hyper_mix(const tensor::HyperMixArgs& args) override { ops_.hyper_mix(args); }
  void hyper_merge(const tensor::HyperMergeArgs& args) override { ops_.hyper_merge(args); }
  void hyper_head(const tensor::HyperHeadArgs& args) override { ops_.hyper_head(args); }
  void cross_entropy(const tensor::CrossEntropyArgs& args) override { ops_.cross_entropy(args); }

 private:
  /// Has the unit of this parameter, if it has one, in its place for the ops that follow.
  void bring(std::int32_t parameter);
  void fetch(int unit);
  void leave_current();
  /// The same when a norm of another layer comes: a backend may join it with the products that follow, which leaving
  /// would part.
  void leave_before(std::int32_t parameter);
  struct HostCall;
  void compute_on_host(const tensor::ExpertsArgs& args);
  void copy_rows(const tensor::Tensor& rows, std::byte* host, bool up);

  tensor::Backend& device_;
  tensor::Ops& ops_;
  const weights::LoadedWeights& weights_;
  const OffloadOptions& options_;
  HostHandover handover_;
  std::byte* staging_;
  std::vector<int> layer_of_;  // by parameter
  int current_layer_ = -1;     // of current_
  bool experts_alone_ = true;  // units are routed experts: of no use after their op
  std::vector<int> held_;      // by place: the unit that was fetched last; -1: none
  int current_ = -1;           // the unit that ops read
  Bytes fetched_ = 0;
  std::map<std::pair<std::int32_t, std::int64_t>, std::unique_ptr<HostCall>>
      calls_;  // by parameter of the first gate, and tokens: recorded passes keep them
};

}  // namespace fathom::engine
