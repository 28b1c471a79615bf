// Tape: an Ops that does what the Ops inside it does and remembers how to differentiate it. Backward kernels are
// GradOps of the same backend; the tape only orders them, and decides what is kept, until when, and what is computed
// again.
//
// It follows activations by Tensor::root, so views (columns, heads, rows) need no nodes of their own: the gradient of a
// view is a view of the gradient. What backward reads stays alive after its owner releases it, until its node has run;
// a gradient lives from its first contribution until the node that made the activation has run. Gradients of
// activations have the activation type. It never follows data, so that on `meta` it leaves a memory timeline and a list
// of backward ops.
//
// Not thread-safe. Values made through a tape must die before it.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/grad_ops.h"
#include "tensor/ops.h"

namespace fathom::train {

/// Where gradients of parameters are added, by Weight::parameter: dense f32 (f64) tensors of the weight's shape, made
/// and zeroed by the caller. An undefined tensor, or a number beyond the list, is a frozen parameter: nothing is kept
/// or computed for it.
struct ParameterGradients {
  std::vector<tensor::Tensor> tensors;
  const tensor::Tensor& of(std::int32_t parameter) const;
};

class Tape final : public tensor::Ops {
 public:
  /// All three must outlive the tape.
  Tape(tensor::Ops& inner, tensor::GradOps& grad, const ParameterGradients& gradients)
      : inner_(inner), grad_(grad), gradients_(gradients) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;
  ~Tape() override;

  /// With checkpointing, block() keeps its input alone and runs its body again on the way back. The body, and all that
  /// it refers to, must then live until backward() has run; its only differentiable input is the tensor that it is
  /// given (else FATHOM_CHECK). Gradients are bit-identical to those without.
  void set_checkpointing(bool on) { checkpointing_ = on; }

  /// Adds dloss (of loss_like's shape) to the gradient of loss_like and takes everything recorded back to the
  /// parameters, newest first. Nothing is recorded afterwards. What the nodes refer to without owning it (weights, a
  /// batch's tensors, dloss) must still be there.
  void backward(const tensor::Tensor& loss_like, const tensor::Tensor& dloss);
  /// Forgets what was recorded, and frees what was kept for it.
  void clear();

  /// Marks an activation made by this tape whose gradient the caller wants, before it is used: a leaf (the input of a
  /// pipeline stage), or anything else. Its gradient stays until forget().
  void watch(const tensor::Tensor& x);
  /// The gradient of something watched; zero where nothing reached it.
  tensor::Tensor gradient(const tensor::Tensor& x);
  void forget(const tensor::Tensor& x);

  std::size_t nodes() const { return nodes_.size(); }

  // Ops
  tensor::Tensor allocate(DType dtype, tensor::Shape shape) override;
  void release(const tensor::Tensor& tensor) override;
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  void embed(const tensor::EmbedArgs& args) override;
  void gather_rows(const tensor::GatherRowsArgs& args) override;
  void copy(const tensor::CopyArgs& args) override;
  void add(const tensor::AddArgs& args) override;
  void expand_streams(const tensor::ExpandStreamsArgs& args) override;
  void rms_norm(const tensor::RmsNormArgs& args) override;
  void layer_norm(const tensor::LayerNormArgs& args) override;
  void linear(const tensor::LinearArgs& args) override;
  void grouped_linear(const tensor::GroupedLinearArgs& args) override;
  void rotary(const tensor::RotaryArgs& args) override;
  void rope(const tensor::RopeArgs& args) override;
  void cache_write(const tensor::CacheWriteArgs& args) override;
  void attention(const tensor::AttentionArgs& args) override;
  void index_select(const tensor::IndexSelectArgs& args) override;
  void compress(const tensor::CompressArgs& args) override;
  void swiglu(const tensor::SwigluArgs& args) override;
  void gelu(const tensor::GeluArgs& args) override;
  void route(const tensor::RouteArgs& args) override;
  void experts(const tensor::ExpertsArgs& args) override;
  void hyper_mix(const tensor::HyperMixArgs& args) override;
  void hyper_merge(const tensor::HyperMergeArgs& args) override;
  void hyper_head(const tensor::HyperHeadArgs& args) override;
  void cross_entropy(const tensor::CrossEntropyArgs& args) override;
  tensor::Value block(const tensor::Tensor& input,
                      const std::function<tensor::Value(const tensor::Tensor&)>& body) override;
  bool records() const override { return recording_; }

 private:
  using Tensor = tensor::Tensor;
  using Views = std::initializer_list<Tensor>;
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

  /// An allocation. `saved` are the views that nodes still need: writing over one is our own bug.
  struct Root {
    Tensor whole;
    std::uint64_t serial = 0;
    bool held = true;             // its owner has not released it
    bool returned = false;        // given back to the inner Ops
    bool differentiable = false;  // a trainable parameter or a watched tensor is among what it was made of
    bool watched = false;
    std::vector<Tensor> saved;
    std::vector<Tensor> touched;  // views that recorded nodes read or write
    std::uint64_t first_node = kNever;
    Tensor gradient;  // of the whole; undefined until something reaches it
  };
  struct Node {
    std::uint64_t id = 0;
    std::vector<Tensor> saved;
    std::vector<Tensor>
        overwritten;  // views whose gradient belongs to values that this node destroyed: zero it afterwards
    std::vector<std::uint32_t> first_of;  // roots that no earlier node touches: their gradients end here
    std::function<void(Tape&)> backward;
  };
  /// What an op does, for the tape. Undefined tensors and those that no tape allocated are constants.
  struct Use {
    std::vector<Tensor> reads;              // differentiable inputs
    std::vector<Tensor> writes;             // differentiable outputs, overwritten
    std::vector<Tensor> updates = {};       // differentiable outputs that keep what they held: in place, accumulated
    std::vector<Tensor> writes_other = {};  // outputs without gradients: indices, lse
    bool trains = false;                    // a trainable parameter takes part
  };

  Root* root_of(const Tensor& x);
  /// Before the op runs: checks that nothing saved is overwritten, spreads differentiability. True: record() a node.
  bool open(const Use& use);
  /// After it ran. `saves` are read by backward; what it saves of its own outputs goes to saves_outputs.
  void record(const Use& use, Views saves, Views saves_outputs, std::function<void(Tape&)> backward);
  void touch(Node& node, const Tensor& x);
  void save(Node& node, const Tensor& x);
  void drop_saved(Node& node);
  void check_unsaved(const Tensor& x);
  void free_unused(std::uint32_t id);
  void free_gradient(Root& root);
  void unwind();
  void replay(const Tensor& input, const std::function<tensor::Value(const Tensor&)>& body, const Tensor& out);

  bool trainable(std::int32_t parameter) const { return gradients_.of(parameter).defined(); }
  /// A parameter's gradient as [rows, cols], or undefined when it is frozen.
  Tensor parameter_gradient(std::int32_t parameter, std::int64_t rows, std::int64_t cols) const;
  Tensor vector_gradient(std::int32_t parameter) const;
  /// The gradient of x if anything reached it; else undefined.
  Tensor reached(const Tensor& x);
  /// The gradient of x to add to, made and zeroed when it first appears; undefined when x needs none.
  Tensor wanted(const Tensor& x);
  static Tensor view_like(const Tensor& of_whole, const Root& root, const Tensor& x);

  tensor::Ops& inner_;
  tensor::GradOps& grad_;
  const ParameterGradients& gradients_;
  std::unordered_map<std::uint32_t, Root> roots_;
  std::vector<Node> nodes_;
  std::uint64_t next_node_ = 0, next_serial_ = 0;
  bool recording_ = true, checkpointing_ = false;
  std::uint64_t block_serial_ = kNever;  // while a block runs unrecorded: activations older than this are not its own
  std::uint32_t block_input_ = 0;
};

/// Whether two views of one allocation (addresses counted from its start) share a byte; true when it cannot tell.
bool views_overlap(const tensor::Tensor& a, const tensor::Tensor& b, const std::byte* start);

}  // namespace fathom::train
