#include "backends/cuda/waiting.cuh"

#include "backends/cuda/many_rows.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

struct Span { const float *begin, *end; };
bool overlap(const Span& a, const Span& b) { return a.begin < b.end && b.begin < a.end; }
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

void CudaOps::Waiting::take(Context& context, const Product& product) {
  if (program_.count > 0 || many_count_ > 0 || rows_.any() || !goes_with_all(product)) launch(context);
  all_.products[all_.count++] = product;
}

void CudaOps::Waiting::take_many(Context& context, const Product& product) {
  const Product& first = many_[0];
  const bool pair = many_count_ == 1 && product.x == first.x && product.x_stride == first.x_stride && product.tokens == first.tokens && product.rows == first.rows &&
                    product.weight.format == first.weight.format && product.weight.cols == first.weight.cols && product.out_stride == first.out_stride;
  if (program_.count > 0 || all_.count > 0 || norm_.from != nullptr || rows_.any() || !pair || overlap(out_of(product), x_of(product)) || overlap(out_of(product), out_of(first)) ||
      overlap(out_of(first), x_of(product)))
    launch(context);
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
  const bool norm = promise_ == Promise::kNorm;
  const Tensor& rows = norm ? promised_norm_.out : promised_gate_.out;
  const auto* x = rows.as<float>();
  FATHOM_CHECK(norm || !kept_, "a gate has one product");
  if (product.x != x) {
    const Tensor& from = promised_norm_.x;
    if (!norm || overlap(out_of(product), {from.as<float>(), from.as<float>() + from.elements()})) settle(context);
    return;
  }
  if (type == DType::f32) {
    kept_ = false;
    settle(context);
  } else if (!norm) {
    kept_ = true;
    for (int i = 0; i < many_count_; ++i) multiply_many_rounded(context, many_[i]);
    many_count_ = 0;
    round_gate(context, promised_gate_, type);
    keep_rounded(context, rows, type);
  } else if (context.rounded.x != x || context.rounded.type != type || context.rounded.tokens != rows.dim(0)) {
    launch(context);  // which may multiply what was rounded before
    kept_ = true;
    round_norm(context, promised_norm_, type);
    keep_rounded(context, rows, type);
  }
}

void CudaOps::Waiting::settle(Context& context) {
  const Promise promised = promise_;
  promise_ = Promise::kNone;
  if (promised == Promise::kNone || kept_) return;
  if (promised == Promise::kNorm) return make_norm(context, promised_norm_);
  launch(context);
  make_gate(context, promised_gate_);
}

bool CudaOps::Waiting::add(Context& context, const AddArgs& args) {
  if (all_.count != 1 && many_count_ != 1) return false;
  const bool many = many_count_ == 1;
  Product& p = many ? many_[0] : all_.products[0];
  const bool first = args.a.data == args.out.data;
  const Tensor& other = first ? args.b : args.a;
  if (!is_out(args.out, p) || !is_out(first ? args.a : args.b, p) || other.dtype != DType::f32 || other.shape != args.out.shape) return false;
  const Span added{other.as<float>(), other.as<float>() + (p.tokens - 1) * other.strides[0] + p.rows};
  if (overlap(added, out_of(p)) || (norm_.from != nullptr && overlap(added, {norm_.x, norm_.x + norm_.n}))) return false;
  if (many && (other.strides[0] != p.out_stride || !rows_aligned(other, 16))) return false;
  if (!many) context.rounded = {};
  p.added = added.begin;
  p.added_stride = other.strides[0];
  launch(context);
  context.rounded = {};
  return true;
}

bool CudaOps::Waiting::swiglu(Context& context, const SwigluArgs& args) {
  if (all_.count != 2) return false;
  const Product &gate = all_.products[0], &up = all_.products[1];
  if (gate.rows != up.rows || gate.accumulate || up.accumulate) return false;
  if (!is_out(args.gate, gate) || !is_out(args.up, up) || !is_out(args.out, gate)) return false;
  context.rounded = {};
  all_.gated = true;
  all_.limit = static_cast<float>(args.limit);
  launch(context);
  return true;
}

void CudaOps::Waiting::take(Context& context, const TokenAction& action, std::int64_t tokens, const Batch* batch) {
  const int4* sequences = batch != nullptr ? reinterpret_cast<const int4*>(batch->sequence_table.data) : nullptr;
  const bool other_batch = sequences != nullptr && program_.sequences != nullptr && sequences != program_.sequences;
  if (program_.count == TokenProgram::kMost || !has_program(tokens) || other_batch || rows_.any()) launch(context);
  context.rounded = {};
  program_.tokens = tokens;
  program_.actions[program_.count++] = action;
  if (sequences == nullptr) return;
  program_.sequences = sequences;
  program_.sequence_count = static_cast<int>(batch->sequences.size());
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
  const QkvRows rows = std::exchange(rows_, {});
  for (int i = 0; i < rows.rotation_count; ++i) rotate_many(context, rows.rotations[i]);
  for (int i = 0; i < rows.write_count; ++i) write_many(context, rows.writes[i]);
  if (program_.count > 0) {
    launch_program(context, program_);
    program_.count = 0;
    program_.sequences = nullptr;
  }
  for (int i = 0; i < many_count_; ++i) multiply_any(context, many_[i]);
  many_count_ = 0;
  if (all_.count > 0) {
    all_.norm = norm_;
    launch_together(context, all_);
  } else if (norm_.from != nullptr) {
    launch_norm(context, norm_);
  }
  norm_ = {};
  all_.count = 0;
  all_.gated = false;
}

CudaOps::CudaOps(Context& context, tensor::ActivationMemory& memory) : context_(context), memory_(memory), waiting_(std::make_unique<Waiting>()) {}
CudaOps::~CudaOps() = default;

void CudaOps::flush() {
  launch_waiting();
  waiting_->settle(context_);
  context_.rounded = {};
}

void CudaOps::launch_waiting() {
  if (!waiting_->empty()) waiting_->launch(context_);
}

}  // namespace fathom::cuda
