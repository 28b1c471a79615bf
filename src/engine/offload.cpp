#include "engine/offload.h"

#include <algorithm>
#include <atomic>

namespace fathom::engine {
using tensor::Tensor;
using tensor::Weight;

namespace {

Bytes aligned_rows(std::int64_t rows, std::int64_t width) {
  return (static_cast<Bytes>(rows) * static_cast<Bytes>(width) * 4 + tensor::kBufferAlignment - 1) /
         tensor::kBufferAlignment * tensor::kBufferAlignment;
}

}  // namespace

Bytes HostHandover::bytes() const { return 2 * aligned_rows(tokens, hidden) + 2 * aligned_rows(tokens, top_k); }

/// One op on the host. Passes that were recorded come back to it, so it stays as it is.
struct OffloadOps::HostCall {
  tensor::Ops* ops = nullptr;
  std::vector<Weight> gate, up, down;
  tensor::ExpertsArgs args;
  std::atomic<std::int64_t> count{0};

  static void run(void* self) {
    auto& call = *static_cast<HostCall*>(self);
    call.ops->experts(call.args);
    call.count.fetch_add(1, std::memory_order_relaxed);
  }
};

OffloadOps::OffloadOps(tensor::Backend& device, const model::WeightTable& table, const weights::LoadedWeights& weights,
                       const OffloadOptions& options, const HostHandover& handover, std::byte* staging)
    : device_(device),
      ops_(device.ops()),
      weights_(weights),
      options_(options),
      handover_(handover),
      staging_(staging),
      held_(static_cast<std::size_t>(weights.plan.residence.places), -1) {
  FATHOM_CHECK(!weights.plan.residence.units.empty() && weights.plan.residence.places <= tensor::kMostPlaces);
  FATHOM_CHECK(ops_.activation_dtype() == DType::f32, "what is handed over is f32");
  layer_of_.assign(static_cast<std::size_t>(table.parameters()), -1);
  for (const model::WeightEntry& entry : table.entries()) {
    if (entry.tied_to >= 0) continue;
    std::fill_n(layer_of_.begin() + entry.first_parameter, entry.experts, entry.layer);
    if (weights.plan.residence.unit(static_cast<std::size_t>(entry.first_parameter)) >= 0)
      experts_alone_ = experts_alone_ && entry.cls == model::WeightClass::kRoutedExpert;
  }
}
OffloadOps::~OffloadOps() = default;

bool OffloadOps::streams(std::int64_t tokens) const {
  return weights_.plan.residence.places > 0 && (options_.host == nullptr || tokens > options_.host_tokens);
}

std::int64_t OffloadOps::host_calls() const {
  std::int64_t count = 0;
  for (const auto& [key, call] : calls_) count += call->count.load(std::memory_order_relaxed);
  return count;
}

void OffloadOps::fetch(int unit) {
  const weights::Residence::Unit& of = weights_.plan.residence.units[static_cast<std::size_t>(unit)];
  const weights::WeightBlocks blocks = weights_.blocks();
  device_.fetch(of.place, blocks.ring + weights_.plan.residence.place_bytes * static_cast<Bytes>(of.place),
                blocks.host + of.offset, of.bytes);
  held_[static_cast<std::size_t>(of.place)] = unit;
  fetched_ += of.bytes;
}

// Into the place that becomes free comes the unit that will need it next: in this pass, else in the following one.
void OffloadOps::leave_current() {
  if (current_ < 0) return;
  const weights::Residence& residence = weights_.plan.residence;
  const int place = residence.units[static_cast<std::size_t>(current_)].place, next = current_ + residence.places;
  device_.leave(place);
  fetch(next < static_cast<int>(residence.units.size()) ? next
                                                        : place);  // unit number `place` is the first that lies there
  current_ = -1;
}

void OffloadOps::bring(std::int32_t parameter) {
  const weights::Residence& residence = weights_.plan.residence;
  const int unit = parameter < 0 ? -1 : residence.unit(static_cast<std::size_t>(parameter));
  if (unit < 0 || unit == current_) return;
  leave_current();
  // The first units of the first pass; later ones are on their way since their place became free.
  for (int first = 0; first < residence.places; ++first)
    if (held_[static_cast<std::size_t>(first)] < 0 && first < static_cast<int>(residence.units.size())) fetch(first);
  const int place = residence.units[static_cast<std::size_t>(unit)].place;
  if (held_[static_cast<std::size_t>(place)] != unit) fetch(unit);
  device_.await(place);
  current_ = unit;
  current_layer_ = layer_of_[static_cast<std::size_t>(parameter)];
}

void OffloadOps::leave_before(std::int32_t parameter) {
  if (current_ >= 0 && parameter >= 0 && layer_of_[static_cast<std::size_t>(parameter)] != current_layer_)
    leave_current();
}

void OffloadOps::rms_norm(const tensor::RmsNormArgs& args) {
  leave_before(args.parameter);
  ops_.rms_norm(args);
}

void OffloadOps::layer_norm(const tensor::LayerNormArgs& args) {
  leave_before(args.weight_parameter);
  ops_.layer_norm(args);
}

void OffloadOps::end_pass() { leave_current(); }

void OffloadOps::linear(const tensor::LinearArgs& args) {
  bring(args.weight.parameter);
  ops_.linear(args);
}

void OffloadOps::grouped_linear(const tensor::GroupedLinearArgs& args) {
  bring(args.weight.parameter);
  ops_.grouped_linear(args);
}

void OffloadOps::experts(const tensor::ExpertsArgs& args) {
  const std::int32_t parameter = args.gate.empty() ? -1 : args.gate[0].parameter;
  if (parameter < 0 || weights_.plan.residence.unit(static_cast<std::size_t>(parameter)) < 0 || args.x.dim(0) == 0)
    return ops_.experts(args);
  if (!streams(args.x.dim(0))) return compute_on_host(args);
  bring(parameter);
  ops_.experts(args);
  if (experts_alone_) leave_current();
}

// Rows of f32 or i32, to the host or (`up`) from there, where they lie dense.
void OffloadOps::copy_rows(const Tensor& rows, std::byte* host, bool up) {
  const Bytes row = static_cast<Bytes>(rows.dim(1)) * 4;
  const bool dense = rows.strides[0] == rows.dim(1) || rows.dim(0) == 1;
  const std::int64_t pieces = dense ? 1 : rows.dim(0);
  const Bytes bytes = dense ? row * static_cast<Bytes>(rows.dim(0)) : row;
  for (std::int64_t i = 0; i < pieces; ++i) {
    std::byte* const there = rows.data + static_cast<Bytes>(i * rows.strides[0]) * 4;
    std::byte* const here = host + static_cast<Bytes>(i) * row;
    if (up)
      device_.copy_in(there, here, bytes);
    else
      device_.copy_out(here, there, bytes);
  }
}

void OffloadOps::compute_on_host(const tensor::ExpertsArgs& args) {
  const std::int64_t tokens = args.x.dim(0), hidden = args.x.dim(1), top_k = args.indices.dim(1);
  FATHOM_CHECK(tokens <= handover_.tokens && hidden == handover_.hidden && top_k == handover_.top_k,
               "more than was planned to be handed over");
  std::byte* at = staging_;
  const auto take = [&](DType dtype, std::int64_t width, std::int64_t most) {
    const Tensor tensor = tensor::make_tensor(at, dtype, {tokens, width});
    at += aligned_rows(most, width);
    return tensor;
  };
  const Tensor x = take(DType::f32, hidden, handover_.tokens), out = take(DType::f32, hidden, handover_.tokens);
  const Tensor indices = take(DType::i32, top_k, handover_.tokens), weights = take(DType::f32, top_k, handover_.tokens);
  std::unique_ptr<HostCall>& call = calls_[{args.gate[0].parameter, tokens}];
  if (call == nullptr) {
    call = std::make_unique<HostCall>();
    const auto of = [&](std::span<const Weight> seen) {
      std::vector<Weight> own;
      for (const Weight& weight : seen)
        own.push_back(weights_.on_host.all()[static_cast<std::size_t>(weight.parameter)]);
      return own;
    };
    call->ops = &options_.host->ops();
    call->gate = of(args.gate);
    call->up = of(args.up);
    call->down = of(args.down);
    call->args = args;
    call->args.x = x;
    call->args.indices = indices;
    call->args.weights = weights;
    call->args.out = out;
    call->args.gate = call->gate;
    call->args.up = call->up;
    call->args.down = call->down;
  }
  FATHOM_CHECK(call->args.accumulate == args.accumulate && call->args.first_expert == args.first_expert,
               "experts that are called in two ways");
  copy_rows(args.x, x.data, false);
  copy_rows(args.indices, indices.data, false);
  copy_rows(args.weights, weights.data, false);
  if (args.accumulate) copy_rows(args.out, out.data, false);
  device_.call_host(&HostCall::run, call.get());
  copy_rows(args.out, out.data, true);
}

}  // namespace fathom::engine
