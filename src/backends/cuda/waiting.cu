#include "backends/cuda/waiting.cuh"

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
  if (program_.count > 0 || has_many_ || !goes_with_all(product)) launch(context);
  all_.products[all_.count++] = product;
}

bool CudaOps::Waiting::add(Context& context, const AddArgs& args) {
  if (all_.count != 1 && !has_many_) return false;
  Product& p = has_many_ ? many_ : all_.products[0];
  const bool first = args.a.data == args.out.data;
  const Tensor& other = first ? args.b : args.a;
  if (!is_out(args.out, p) || !is_out(first ? args.a : args.b, p) || other.dtype != DType::f32 || other.shape != args.out.shape) return false;
  const Span added{other.as<float>(), other.as<float>() + (p.tokens - 1) * other.strides[0] + p.rows};
  if (overlap(added, out_of(p)) || (norm_.from != nullptr && overlap(added, {norm_.x, norm_.x + norm_.n}))) return false;
  if (has_many_ && (other.strides[0] != p.out_stride || !rows_aligned(other, 16))) return false;
  if (!has_many_) context.rounded = {};
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
  if (program_.count == TokenProgram::kMost || !has_program(tokens) || other_batch) launch(context);
  context.rounded = {};
  program_.tokens = tokens;
  program_.actions[program_.count++] = action;
  if (sequences == nullptr) return;
  program_.sequences = sequences;
  program_.sequence_count = static_cast<int>(batch->sequences.size());
}

void CudaOps::Waiting::launch(Context& context) {
  if (program_.count > 0) {
    launch_program(context, program_);
    program_.count = 0;
    program_.sequences = nullptr;
  }
  if (has_many_) {
    has_many_ = false;
    multiply_any(context, many_);
  }
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
  context_.rounded = {};
}

void CudaOps::launch_waiting() {
  if (!waiting_->empty()) waiting_->launch(context_);
}

}  // namespace fathom::cuda
