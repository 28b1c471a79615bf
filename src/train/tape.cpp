#include "train/tape.h"

#include <algorithm>

namespace fathom::train {
using namespace tensor;  // NOLINT: the vocabulary

const Tensor& ParameterGradients::of(std::int32_t parameter) const {
  static const Tensor kFrozen;
  const auto index = static_cast<std::size_t>(parameter);
  return parameter >= 0 && index < tensors.size() ? tensors[index] : kFrozen;
}

Tape::~Tape() {
  clear();
  for (auto& [id, root] : roots_) free_gradient(root);
}

// ---------------------------------------------------------------- allocations

Tensor Tape::allocate(DType dtype, Shape shape) {
  const Tensor whole = inner_.allocate(dtype, shape);
  FATHOM_CHECK(whole.root != 0 && !roots_.contains(whole.root), "a tape needs allocations with numbers of their own");
  roots_.emplace(whole.root, Root{.whole = whole, .serial = next_serial_++});
  return whole;
}

void Tape::release(const Tensor& tensor) {
  const auto found = roots_.find(tensor.root);
  FATHOM_CHECK(found != roots_.end() && found->second.held, "released twice, or not made by this tape");
  found->second.held = false;
  free_unused(tensor.root);
}

void Tape::free_unused(std::uint32_t id) {
  const auto found = roots_.find(id);
  if (found == roots_.end()) return;
  Root& root = found->second;
  if (root.held || !root.saved.empty()) return;
  if (!root.returned) inner_.release(root.whole);
  root.returned = true;
  if (root.first_node == kNever && !root.gradient.defined() && !root.watched) roots_.erase(found);
}

void Tape::free_gradient(Root& root) {
  if (!root.gradient.defined()) return;
  inner_.release(root.gradient);
  root.gradient = {};
}

Tape::Root* Tape::root_of(const Tensor& x) {
  if (x.root == 0) return nullptr;
  const auto found = roots_.find(x.root);
  return found == roots_.end() ? nullptr : &found->second;
}

// ---------------------------------------------------------------- recording

void Tape::check_unsaved(const Tensor& x) {
  const Root* root = root_of(x);
  if (root == nullptr) return;
  for (const Tensor& saved : root->saved)
    FATHOM_CHECK(!views_overlap(saved, x, root->whole.data), "an activation that backward needs is written over");
}

bool Tape::open(const Use& use) {
  for (const auto* views : {&use.writes, &use.updates, &use.writes_other})
    for (const Tensor& x : *views) check_unsaved(x);
  bool differentiable = use.trains;
  for (const auto* views : {&use.reads, &use.updates})
    for (const Tensor& x : *views) {
      const Root* root = root_of(x);
      if (root == nullptr || !root->differentiable) continue;
      FATHOM_CHECK(recording_ || root->serial >= block_serial_ || x.root == block_input_,
                   "a checkpointed block reads a differentiable activation that is not its input");
      differentiable = true;
    }
  if (!differentiable && recording_) {
    // A constant written over something differentiable cuts the gradient of what was there.
    bool cuts = false;
    for (const Tensor& x : use.writes) {
      const Root* root = root_of(x);
      cuts = cuts || (root != nullptr && root->differentiable && root->first_node != kNever);
    }
    if (cuts) record(use, {}, {}, [](Tape&) {});
    return false;
  }
  for (const auto* views : {&use.writes, &use.updates})
    for (const Tensor& x : *views)
      if (Root* root = root_of(x)) root->differentiable = root->differentiable || differentiable;
  return differentiable && recording_;
}

void Tape::record(const Use& use, Views saves, Views saves_outputs, std::function<void(Tape&)> backward) {
  Node node;
  node.id = next_node_++;
  node.backward = std::move(backward);
  for (const Tensor& x : use.writes) {
    const Root* root = root_of(x);
    if (root == nullptr || !root->differentiable) continue;
    if (std::any_of(root->touched.begin(), root->touched.end(),
                    [&](const Tensor& earlier) { return views_overlap(earlier, x, root->whole.data); }))
      node.overwritten.push_back(x);
  }
  for (const auto* views : {&use.reads, &use.writes, &use.updates})
    for (const Tensor& x : *views) touch(node, x);
  for (const Tensor& x : saves) {
    const Root* root = root_of(x);
    if (root == nullptr) continue;
    for (const auto* views : {&use.writes, &use.updates, &use.writes_other})
      for (const Tensor& written : *views)
        FATHOM_CHECK(written.root != x.root || !views_overlap(written, x, root->whole.data),
                     "an op writes over what its own backward needs");
    save(node, x);
  }
  for (const Tensor& x : saves_outputs) save(node, x);
  nodes_.push_back(std::move(node));
}

void Tape::touch(Node& node, const Tensor& x) {
  Root* root = root_of(x);
  if (root == nullptr || !root->differentiable) return;
  if (root->first_node == kNever) {
    root->first_node = node.id;
    node.first_of.push_back(x.root);
  }
  const auto same = [&](const Tensor& seen) {
    return seen.data == x.data && seen.shape == x.shape && seen.strides == x.strides;
  };
  if (std::none_of(root->touched.begin(), root->touched.end(), same)) root->touched.push_back(x);
}

void Tape::save(Node& node, const Tensor& x) {
  Root* root = root_of(x);
  if (root == nullptr) return;
  root->saved.push_back(x);
  node.saved.push_back(x);
}

void Tape::drop_saved(Node& node) {
  for (const Tensor& x : node.saved) {
    Root& root = roots_.at(x.root);
    const auto found = std::find_if(root.saved.begin(), root.saved.end(), [&](const Tensor& saved) {
      return saved.data == x.data && saved.shape == x.shape && saved.strides == x.strides;
    });
    root.saved.erase(found);
    free_unused(x.root);
  }
  node.saved.clear();
}

// ---------------------------------------------------------------- gradients

Tensor Tape::view_like(const Tensor& of_whole, const Root& root, const Tensor& x) {
  Tensor view = x;
  view.dtype = of_whole.dtype;
  view.root = of_whole.root;
  view.data = of_whole.data + (x.data - root.whole.data) / dtype_bytes(root.whole.dtype) * dtype_bytes(of_whole.dtype);
  return view;
}

Tensor Tape::reached(const Tensor& x) {
  const Root* root = root_of(x);
  return root != nullptr && root->gradient.defined() ? view_like(root->gradient, *root, x) : Tensor{};
}

Tensor Tape::wanted(const Tensor& x) {
  Root* root = root_of(x);
  if (root == nullptr || !root->differentiable) return {};
  if (!root->gradient.defined()) {
    root->gradient = inner_.allocate(inner_.activation_dtype(), root->whole.shape);
    grad_.zero(root->gradient);
  }
  return view_like(root->gradient, *root, x);
}

Tensor Tape::parameter_gradient(std::int32_t parameter, std::int64_t rows, std::int64_t cols) const {
  const Tensor& dense = gradients_.of(parameter);
  if (!dense.defined()) return {};
  FATHOM_CHECK(dense.contiguous() && dense.elements() == rows * cols,
               "a parameter's gradient has another shape than the parameter");
  Tensor matrix = make_tensor(dense.data, dense.dtype, {rows, cols});
  matrix.root = dense.root;
  return matrix;
}

Tensor Tape::vector_gradient(std::int32_t parameter) const {
  const Tensor& dense = gradients_.of(parameter);
  return dense.shape.rank == 2 && dense.dim(0) == 1 ? dense.join_last() : dense;
}

void Tape::watch(const Tensor& x) {
  Root* root = root_of(x);
  FATHOM_CHECK(root != nullptr, "only what a tape allocated can be watched");
  root->watched = root->differentiable = true;
}

Tensor Tape::gradient(const Tensor& x) {
  const Root* root = root_of(x);
  FATHOM_CHECK(root != nullptr && root->watched, "its gradient was not asked for");
  return wanted(x);
}

void Tape::forget(const Tensor& x) {
  Root* root = root_of(x);
  if (root == nullptr || !root->watched) return;
  root->watched = false;
  if (root->first_node == kNever) free_gradient(*root);
  free_unused(x.root);
}

// ---------------------------------------------------------------- the way back

void Tape::backward(const Tensor& loss_like, const Tensor& dloss) {
  FATHOM_CHECK(recording_, "backward runs outside of blocks");
  if (const Tensor gradient = wanted(loss_like); gradient.defined()) grad_.accumulate({.dout = dloss, .dx = gradient});
  unwind();
}

void Tape::unwind() {
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    node.backward(*this);
    for (const Tensor& x : node.overwritten)
      if (const Tensor gradient = reached(x); gradient.defined()) grad_.zero(gradient);
    drop_saved(node);
    for (const std::uint32_t id : node.first_of) {
      Root& root = roots_.at(id);
      root.first_node = kNever;
      root.touched.clear();
      if (!root.watched) free_gradient(root);
      free_unused(id);
    }
  }
}

void Tape::clear() {
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    drop_saved(node);
    for (const std::uint32_t id : node.first_of) {
      Root& root = roots_.at(id);
      root.first_node = kNever;
      root.touched.clear();
      free_unused(id);
    }
  }
}

// ---------------------------------------------------------------- blocks

Value Tape::block(const Tensor& input, const std::function<Value(const Tensor&)>& body) {
  if (!checkpointing_ || !recording_) return body(input);
  Node hold;  // keeps the input from being written over while the body runs
  save(hold, input);
  recording_ = false;
  block_serial_ = next_serial_;
  block_input_ = input.root;
  Value out = body(input);
  block_serial_ = kNever;
  block_input_ = 0;
  recording_ = true;
  const Root* root = root_of(out);
  FATHOM_CHECK(root != nullptr && out->root != input.root, "a block makes its own output");
  if (root->differentiable) {
    const Tensor made = out;
    record({.reads = {input}, .writes = {made}}, {input}, {}, [input, body, made](Tape& tape) {
      if (tape.reached(made).defined()) tape.replay(input, body, made);
    });
  }
  drop_saved(hold);
  return out;
}

void Tape::replay(const Tensor& input, const std::function<Value(const Tensor&)>& body, const Tensor& out) {
  std::vector<Node> outer = std::exchange(nodes_, {});
  {
    Value again = body(input);
    FATHOM_CHECK(again->root != input.root && again->shape == out.shape, "a block made another output the second time");
    Root &from = roots_.at(out.root), &to = roots_.at(again->root);
    if (from.watched) {
      grad_.accumulate({.dout = reached(out), .dx = wanted(again)});
    } else {
      FATHOM_CHECK(to.whole.shape == from.whole.shape);
      to.gradient = std::exchange(from.gradient, {});
    }
    unwind();
    free_gradient(to);
  }
  nodes_ = std::move(outer);
}

}  // namespace fathom::train
