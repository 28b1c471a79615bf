#include "backends/cuda/waiting.cuh"

#include <algorithm>

#include "backends/cuda/attention_ways.h"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/ranges.h"
#include "backends/cuda/stages.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

Span out_of(const Product& p) { return {p.out, p.out + (p.tokens - 1) * p.out_stride + p.rows}; }
Span x_of(const Product& p) { return {p.x, p.x + (p.tokens - 1) * p.x_stride + p.weight.cols}; }

/// Whether `x` is rows of `width` f32 in the places of p's out.
bool is_out(const Tensor& x, const Product& p) {
  return x.dtype == DType::f32 && x.shape.rank == 2 && x.as<float>() == p.out && x.dim(0) == p.tokens && x.dim(1) == p.rows && (p.tokens == 1 || x.strides[0] == p.out_stride);
}

}  // namespace

bool CudaOps::Waiting::goes_with_all(const Product& product) const {
  if (all_.count == Together::kMost) return false;
  const Span out = out_of(product);
  if (overlap(out, x_of(product))) return false;
  if (norm_.from != nullptr) {
    if (product.tokens != 1 || product.x != norm_.x || product.weight.cols != norm_.n) return false;
    if (overlap(out, {norm_.from, norm_.from + norm_.n})) return false;  // blocks read that at their own pace
  }
  for (int i = 0; i < all_.count; ++i) {
    const Product& other = all_.products[i];
    if (product.x != other.x || product.x_stride != other.x_stride || product.tokens != other.tokens) return false;
    if (product.weight.format != other.weight.format || product.weight.cols != other.weight.cols || overlap(out, out_of(other))) return false;
  }
  return true;
}

bool CudaOps::Waiting::is_of_route(const float* begin, const float* end) const {
  const auto rows = [&](auto view) {
    const auto* first = reinterpret_cast<const float*>(view.data);
    return Span{first, first + (route_tokens_ - 1) * view.strides[0] + view.dims[1]};
  };
  const Span span{begin, end};
  return overlap(span, rows(route_.logits)) || overlap(span, rows(route_.indices)) || overlap(span, rows(route_.weights));
}

void CudaOps::Waiting::keep_route_from(Context& context, const Product& product) {
  const Span out = out_of(product);
  if (route_tokens_ > 0 && is_of_route(out.begin, out.end)) launch(context);
}

bool CudaOps::Waiting::touches_route() const {
  for (int i = 0; i < all_.count; ++i) {
    const Product& p = all_.products[i];
    const Span out = out_of(p), x = x_of(p);
    if (is_of_route(out.begin, out.end) || is_of_route(x.begin, x.end) || (p.added != nullptr && is_of_route(p.added, p.added + p.rows))) return true;
  }
  return false;
}

void CudaOps::Waiting::take(Context& context, const Product& product) {
  keep_route_from(context, product);
  if (program_.count > 0 || many_count_ > 0 || rows_.any() || few_tokens_ > 0 || sums_wait() || !goes_with_all(product)) launch_products(context);
  write_norm_for(context, product);
  all_.products[all_.count++] = product;
}

void CudaOps::Waiting::write_norm_for(Context& context, const Product& product) {
  if (unwritten_.from == nullptr) return;
  const Span reads = x_of(product), writes = out_of(product), row{unwritten_.x, unwritten_.x + unwritten_.n};
  if (overlap(writes, row)) {  // its place has another owner: nobody will ask for it
    unwritten_ = {};
    return;
  }
  if (!overlap(reads, row) && !overlap(writes, {unwritten_.from, unwritten_.from + unwritten_.n})) return;
  launch_norm(context, std::exchange(unwritten_, {}));
}

void CudaOps::Waiting::take(Context& context, const RouteView& route, std::int64_t tokens) {
  launch(context);
  unwritten_ = {};
  route_ = route, route_tokens_ = tokens;
}

bool CudaOps::Waiting::makes(const Context& context, const Tensor& logits) const {
  if (all_.count != 1 || program_.count > 0 || many_count_ > 0 || rows_.any() || route_tokens_ > 0 || few_tokens_ > 0 || sums_wait()) return false;
  const Product& p = all_.products[0];
  const bool fits = p.tokens == 1 ? norm_.from != nullptr : norm_.from == nullptr && can_use_some(context, p);
  return fits && p.weight.format == WeightFormat::bf16 && is_out(logits, p);
}

bool CudaOps::Waiting::add_to_experts(Context& context, const AddArgs& args) {
  const bool first = args.a.data == args.out.data;
  const Tensor &own = first ? args.a : args.b, &other = first ? args.b : args.a;
  const auto rows_of_out = [&](const Tensor& x) {
    return x.dtype == DType::f32 && x.shape.rank == 2 && x.as<float>() == few_.out.data && x.dim(0) == few_tokens_ && x.dim(1) == few_.h && (x.dim(0) == 1 || x.strides[0] == few_.out.strides[0]);
  };
  if (few_.added != nullptr || !rows_of_out(args.out) || !rows_of_out(own) || other.dtype != DType::f32 || other.shape != args.out.shape) return false;
  const Span added{other.as<float>(), other.as<float>() + (few_tokens_ - 1) * other.strides[0] + few_.h};
  if (overlap(added, {few_.out.data, few_.out.data + (few_tokens_ - 1) * few_.out.strides[0] + few_.h})) return false;
  few_.added = added.begin;
  few_.added_stride = other.strides[0];
  launch(context);
  context.rounded = {};
  return true;
}

void CudaOps::Waiting::take_many(Context& context, const Product& product) {
  const Product& first = many_[0];
  const int most = product.tokens <= kMostTokensTogether ? kMostTogetherMany : 2;
  bool joins = many_count_ > 0 && many_count_ < most && product.x == first.x && product.x_stride == first.x_stride && product.tokens == first.tokens && product.rows == first.rows &&
               product.weight.format == first.weight.format && product.weight.cols == first.weight.cols && product.out_stride == first.out_stride &&
               !overlap(out_of(product), x_of(product));
  for (int i = 0; i < many_count_; ++i) joins = joins && !overlap(out_of(product), out_of(many_[i])) && !overlap(out_of(many_[i]), x_of(product));
  if (few_tokens_ > 0 || route_tokens_ > 0 || program_.count > 0 || all_.count > 0 || norm_.from != nullptr || rows_.any() || sums_wait() || !joins) launch(context);
  many_[many_count_++] = product;
}

bool CudaOps::Waiting::has_gate(const SwigluArgs& args) const {
  if (many_count_ != 2 || !is_out(args.gate, many_[0]) || !is_out(args.up, many_[1]) || !is_out(args.out, many_[0])) return false;
  if (many_[0].activations != Activations::kAsTheyAre || many_[1].activations != Activations::kAsTheyAre) return false;
  return many_[0].added == nullptr && many_[1].added == nullptr && many_[0].out_stride == many_[0].rows && many_[0].rows % 8 == 0;
}

void CudaOps::Waiting::promise(const RmsNormArgs& norm) {
  promise_ = Promise::kNorm;
  kept_ = false;
  promised_norm_ = norm;
}
void CudaOps::Waiting::promise(const SwigluArgs& gate) {
  promise_ = Promise::kGate;
  kept_ = false;
  promised_gate_ = gate;
}

void CudaOps::Waiting::keep(Context& context, const Product& product, DType type) {
  if (promise_ == Promise::kNone) return;
  close_stages(context);
  const bool norm = promise_ == Promise::kNorm;
  const Tensor& rows = norm ? promised_norm_.out : promised_gate_.out;
  const auto* x = rows.as<float>();
  FATHOM_CHECK(norm || !kept_, "a gate has one product");
  if (product.x != x) {
    const Tensor& from = promised_norm_.x;
    if (!norm || overlap(out_of(product), {from.as<float>(), from.as<float>() + from.elements()})) settle(context);
    return;
  }
  if (type == DType::f32 || (!norm && type != type_of_half(many_[0].weight.format))) {
    kept_ = false;
    settle(context);
  } else if (!norm) {
    kept_ = true;
    const bool in_one = gate_in_one();
    if (in_one) multiply_gate_and_up(context, many_);
    for (int i = 0; i < many_count_ && !in_one; ++i) multiply_many_rounded(context, many_[i]);
    many_count_ = 0;
    round_gate(context, promised_gate_, type, in_one);
    keep_rounded(context, rows, type);
  } else if (context.rounded.x != x || context.rounded.type != type || context.rounded.tokens != rows.dim(0)) {
    launch(context);  // which may multiply what was rounded before
    kept_ = true;
    round_norm(context, promised_norm_, type);
    keep_rounded(context, rows, type);
  }
}

void CudaOps::Waiting::settle(Context& context) {
  unwritten_ = {};
  const Promise promised = promise_;
  promise_ = Promise::kNone;
  if (promised == Promise::kNone || kept_) return;
  close_stages(context);
  if (promised == Promise::kNorm) return make_norm(context, promised_norm_);
  launch(context);
  make_gate(context, promised_gate_);
}

bool CudaOps::Waiting::add(Context& context, const AddArgs& args) {
  unwritten_ = {};
  if (few_tokens_ > 0) return add_to_experts(context, args);
  if (combine_.hit != nullptr) return add_to_combined(args);
  if (route_tokens_ > 0 || (all_.count != 1 && many_count_ != 1)) return false;
  const bool many = many_count_ == 1;
  Product& p = many ? many_[0] : all_.products[0];
  const bool first = args.a.data == args.out.data;
  const Tensor& other = first ? args.b : args.a;
  if (!is_out(args.out, p) || !is_out(first ? args.a : args.b, p) || other.dtype != DType::f32 || other.shape != args.out.shape) return false;
  const Span added{other.as<float>(), other.as<float>() + (p.tokens - 1) * other.strides[0] + p.rows};
  if (overlap(added, out_of(p)) || (norm_.from != nullptr && overlap(added, {norm_.x, norm_.x + norm_.n}))) return false;
  if (many && (other.strides[0] != p.out_stride || !rows_aligned(other, 16))) return false;
  p.added = added.begin;
  p.added_stride = other.strides[0];
  if (many && p.tokens <= kMostTokensTogether) sums_ = multiply_in_parts(context, p);
  if (sums_.parts != nullptr) many_count_ = 0;
  else launch(context);
  context.rounded = {};
  return true;
}

bool CudaOps::Waiting::add_to_combined(const AddArgs& args) {
  const bool first = args.a.data == args.out.data;
  const Tensor &own = first ? args.a : args.b, &other = first ? args.b : args.a;
  const View<float>& out = combine_.out;
  const auto is_rows_of_out = [&](const Tensor& x) { return x.dtype == DType::f32 && x.shape.rank == 2 && x.as<float>() == out.data && x.dim(0) == out.dims[0] && x.dim(1) == out.dims[1] && x.strides[0] == out.strides[0]; };
  if (combine_.added != nullptr || !combine_.fours || !is_rows_of_out(args.out) || !is_rows_of_out(own) || other.dtype != DType::f32 || other.shape != args.out.shape || !rows_aligned(other, 16)) return false;
  const std::int64_t last = out.dims[0] - 1;
  const Span added{other.as<float>(), other.as<float>() + last * other.strides[0] + out.dims[1]};
  if (overlap(added, {out.data, out.data + last * out.strides[0] + out.dims[1]})) return false;
  combine_.added = added.begin;
  combine_.added_stride = other.strides[0];
  return true;
}

bool CudaOps::Waiting::take_sums_into(Context& context, const RmsNormArgs& norm) {
  if (combine_.added != nullptr) {
    if (!combine_and_norm(context, combine_, norm)) return false;
    combine_ = {};
    return true;
  }
  if (sums_.parts == nullptr || !add_up_and_norm(context, sums_, norm)) return false;
  sums_ = {};
  return true;
}

bool CudaOps::Waiting::swiglu(Context& context, const SwigluArgs& args) {
  const bool third = all_.count == 3 && route_tokens_ == all_.products[0].tokens && (norm_.from != nullptr || route_tokens_ > 1);  // the first makes a router's logits
  if (all_.count != 2 && !third) return false;
  const Product &gate = all_.products[third ? 1 : 0], &up = all_.products[third ? 2 : 1];
  if (gate.rows != up.rows || gate.accumulate || up.accumulate) return false;
  if (!is_out(args.gate, gate) || !is_out(args.up, up) || !is_out(args.out, gate)) return false;
  if (third) std::rotate(all_.products, all_.products + 1, all_.products + 3);
  all_.gated = true;
  all_.limit = static_cast<float>(args.limit);
  launch_products(context);
  if (context.rounded.x != args.out.as<float>()) context.rounded = {};
  return true;
}

void CudaOps::Waiting::take(Context& context, const TokenAction& action, std::int64_t tokens, const Batch* batch) {
  const int4* sequences = batch != nullptr ? reinterpret_cast<const int4*>(batch->sequence_table.data) : nullptr;
  const bool other_batch = sequences != nullptr && program_.sequences != nullptr && sequences != program_.sequences;
  if (program_.count == TokenProgram::kMost || !has_program(tokens) || other_batch || rows_.any()) launch(context);
  unwritten_ = {};
  context.rounded = {};
  program_.tokens = tokens;
  program_.actions[program_.count++] = action;
  if (sequences == nullptr) return;
  program_.sequences = sequences;
  program_.sequence_count = static_cast<int>(batch->sequences.size());
}

FreshRows CudaOps::Waiting::take_rotations(const AttentionArgs& args) {
  using Kind = TokenAction::Kind;
  if (program_.count != 4 || program_.tokens != args.q.dim(0) || args.segments.size() != 1) return {};
  const TokenAction &q = program_.actions[0], &k = program_.actions[1], &keys = program_.actions[2], &values = program_.actions[3];
  const KvSegment& segment = args.segments[0];
  const std::int64_t width = args.q.dim(2), heads = segment.k.dim(1);
  const auto rotates = [&](const TokenAction& action, std::int64_t count) {
    return action.kind == Kind::kRope && action.first_dim == 0 && 2 * action.half == width && !action.inverse && action.cosines == q.cosines && action.sines == q.sines &&
           action.angle_stride == q.angle_stride && action.interleaved == q.interleaved && action.x.inner == count && action.x.n == width;
  };
  const auto writes = [&](const TokenAction& action, const Tensor& cache) {
    return action.kind == Kind::kWrite && !action.ring && action.x.dtype == DType::f32 && static_cast<std::int64_t>(action.x.inner) * action.x.n == heads * width &&
           (action.x.inner == 1 || action.x.row == action.x.n) && action.out.data == cache.data && action.out.dtype == cache.dtype && action.out.token == cache.strides[0] &&
           (action.out.inner == 1 || action.out.row == action.out.n) && cache.strides[1] == width && action.rows_per_slot == segment.rows_per_slot;
  };
  const auto aligned = [](const TokenRows& rows) { return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.token % 4 == 0 && rows.row % 4 == 0; };
  const bool same_q = q.x.data == args.q.data && q.x.token == args.q.strides[0] && q.x.row == args.q.strides[1];
  const bool same_k = keys.x.data == k.x.data && keys.x.token == k.x.token && k.x.row == width;
  const bool same_batch = program_.sequences == reinterpret_cast<const int4*>(args.batch->sequence_table.data) && program_.sequence_count == std::ssize(args.batch->sequences);
  if (!rotates(q, args.q.dim(1)) || !rotates(k, heads) || !writes(keys, segment.k) || !writes(values, segment.v) || !same_q || !same_k || !same_batch) return {};
  if (!aligned(q.x) || !aligned(k.x) || !aligned(values.x)) return {};
  const FreshRows fresh{.q = reinterpret_cast<float*>(q.x.data),
                        .k = reinterpret_cast<float*>(k.x.data),
                        .v = reinterpret_cast<const float*>(values.x.data),
                        .q_token = q.x.token,
                        .q_head = q.x.row,
                        .k_token = k.x.token,
                        .k_head = k.x.row,
                        .v_token = values.x.token,
                        .v_head = width,
                        .angle = q.angle_stride,
                        .cosines = q.cosines,
                        .sines = q.sines,
                        .interleaved = q.interleaved,
                        .unread = args.only_products};
  program_.count = 0;
  program_.sequences = nullptr;
  return fresh;
}

void CudaOps::Waiting::take(Context& context, const RopeArgs& args) {
  if (rows_.rotation_count == 2 || rows_.write_count > 0) launch(context);
  rows_.rotations[rows_.rotation_count++] = args;
}
void CudaOps::Waiting::take(Context& context, const CacheWriteArgs& args) {
  if (rows_.write_count == 2) launch(context);
  rows_.writes[rows_.write_count++] = args;
}

std::optional<QkvRows> CudaOps::Waiting::rows_of(const AttentionArgs& args) {
  if (!args.only_products || !fit(rows_, args)) return std::nullopt;
  return std::exchange(rows_, {});
}

void CudaOps::Waiting::launch(Context& context) {
  launch_products(context);
  if (route_tokens_ > 0) launch_route(context, route_, route_tokens_);
  route_tokens_ = 0;
}

bool CudaOps::Waiting::chooses_beside(const Context& context, int here) const {
  return route_tokens_ > kFewTokens && all_.count > 0 && route_tokens_ == all_.products[0].tokens && can_route_beside_some(context, route_, here) && !touches_route();
}

bool CudaOps::Waiting::can_gather(const Context& context, std::int64_t tokens, int here) const {
  const bool alone = norm_.from == nullptr && program_.count == 0 && many_count_ == 0 && !rows_.any() && few_tokens_ == 0 && !sums_wait() && !has_parts();
  return alone && tokens == route_tokens_ && chooses_beside(context, here);
}

void CudaOps::Waiting::launch_gathering(Context& context, const GatherView& gather) { launch_products(context, &gather); }

void CudaOps::Waiting::launch_products(Context& context, const GatherView* gather) {
  if (has_parts()) join_attention(context, std::exchange(parts_, {}));
  if (sums_.parts != nullptr) add_up(context, std::exchange(sums_, {}));
  if (combine_.hit != nullptr) launch_combine(context, std::exchange(combine_, {}));
  if (few_tokens_ > 0) launch_few_experts_out(context, few_, few_tokens_);
  few_tokens_ = 0;
  if (rows_.any() || many_count_ > 0) close_stages(context);
  const QkvRows rows = std::exchange(rows_, {});
  for (int i = 0; i < rows.rotation_count; ++i) rotate_many(context, rows.rotations[i]);
  for (int i = 0; i < rows.write_count; ++i) write_many(context, rows.writes[i]);
  if (program_.count > 0) {
    const bool carries = std::exchange(carries_, false), beside = carries && program_.tokens > 1;
    if (beside) launch_program(context, program_, carried_);
    else launch_program(context, program_);
    program_.count = 0;
    program_.sequences = nullptr;
    if (carries && !beside) multiply_any(context, carried_);
  }
  if (many_count_ < 2 || many_[0].tokens > kMostTokensTogether || !multiply_together(context, many_, many_count_))
    for (int i = 0; i < many_count_; ++i) multiply_any(context, many_[i]);
  many_count_ = 0;
  if (all_.count > 0) {
    all_.norm = norm_;
    const bool beside = chooses_beside(context, gather != nullptr ? gather->here : 0) || (route_tokens_ == 1 && can_route_beside(all_) && !touches_route());
    if (beside || context.stages == nullptr || !context.stages->add(context, all_)) launch_together(context, all_, beside ? &route_ : nullptr, gather);
    if (beside) route_tokens_ = 0;
  } else if (norm_.from != nullptr) {
    launch_norm(context, norm_);
  }
  if (all_.count > 0 && norm_.unread) unwritten_ = norm_;
  norm_ = {};
  all_.count = 0;
  all_.gated = false;
}

CudaOps::CudaOps(Context& context, tensor::ActivationMemory& memory) : context_(context), memory_(memory), waiting_(std::make_unique<Waiting>()) {}
CudaOps::~CudaOps() = default;

void CudaOps::flush() {
  settle();
  close_stages(context_);
}

void CudaOps::settle() {
  launch_waiting();
  waiting_->settle(context_);
  context_.rounded = {};
}

void CudaOps::launch_waiting() {
  if (!waiting_->empty()) waiting_->launch(context_);
}

}  // namespace fathom::cuda
