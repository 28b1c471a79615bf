#include "plan/cost_program.h"

#include <algorithm>

#include "tensor/int8_rows.h"

namespace fathom::plan {
namespace {

using hardware::Precision;
using meta::OpKind;
using meta::OpRecord;
using meta::Rate;

struct Arithmetic {
  Precision precision = Precision::bf16;
  bool unpacks = false, quantizes = false;  // quantizes: activations are converted before the product
};

bool native(const Rates& rates, Precision precision) { return rates.product[static_cast<std::size_t>(precision)] > 0; }

/// What computes a product of weights that take `bytes` an element.
Arithmetic arithmetic_of(double bytes, const LowerInputs& in) {
  const bool trained = in.phase == Phase::kTrain && !in.adapters && in.weights != nullptr && !in.weights->unpacks;
  // Weights trained in a 4-bit floating format are multiplied in it.
  if (trained && bytes < 0.75 && native(*in.rates, Precision::fp4)) return {Precision::fp4, false, true};
  if (in.compute) {
    const Precision p = *in.compute;
    const bool narrow = p == Precision::fp8 || p == Precision::int8 || p == Precision::fp4;
    if (narrow && native(*in.rates, p)) return {p, false, true};
    if (in.phase == Phase::kTrain)
      return {Precision::bf16, in.weights != nullptr && in.weights->unpacks && bytes < 1.6, false};
  }
  if (bytes >= 1.6 || in.weights == nullptr) return {};
  if (in.weights->unpacks) return {Precision::bf16, true, false};
  const Precision math = in.weights->native ? (bytes > 0.9 ? Precision::fp8 : Precision::fp4) : in.weights->math;
  if (math == Precision::bf16 || math == Precision::fp16) return {};
  if (native(*in.rates, math)) return {math, false, true};
  return {Precision::bf16, true, false};
}

class Lowerer {
 public:
  Lowerer(const LowerInputs& in, double repeats, bool head, Program& program)
      : in_(in),
        engine_(*in.engine),
        repeats_(static_cast<float>(repeats)),
        head_(head),
        program_(program),
        first_(program.kernels.size()) {}

  void run(const meta::Trace& trace) {
    for (const OpRecord& op : trace.ops) lower(op);
    if (pending_.per_token > 0 || pending_.fixed > 0) add(Kernel::Kind::kElementwise, 0).sequence = true;
    for (std::size_t i = first_; i < program_.kernels.size(); ++i)
      program_.launches += static_cast<double>(program_.kernels[i].launches) * repeats_;
  }

 private:
  Kernel& add(Kernel::Kind kind, double launches) {
    Kernel kernel;
    kernel.kind = kind;
    kernel.launches = static_cast<float>(launches);
    kernel.repeats = repeats_;
    kernel.is_head = head_;
    kernel.bytes = pending_;  // what was fused into its neighbour travels with it
    pending_ = {};
    program_.kernels.push_back(kernel);
    inputs_.push_back(0);
    return program_.kernels.back();
  }

  static Rate traffic(const OpRecord& op) {
    Rate bytes = op.read_bytes;
    bytes += op.written_bytes;
    return bytes;
  }

  void elementwise(const OpRecord& op, double launches) {
    Kernel& kernel = add(Kernel::Kind::kElementwise, launches);
    kernel.bytes += traffic(op);
    kernel.bytes.fixed += static_cast<double>(op.weight_bytes);
    kernel.backward = op.backward;
    rotating_ = false;
  }

  /// Rotations, per-head norms and cache writes that follow one another.
  void rotate(const OpRecord& op) {
    if (rotating_ && engine_.lowering.fuse_rope_cache) {
      program_.kernels.back().bytes += traffic(op);
      return;
    }
    elementwise(op, engine_.lowering.rope_kernels);
    program_.kernels.back().phase_bound = op.kind == OpKind::kCacheWrite;
    rotating_ = true;
  }

  double bytes_per_element(const OpRecord& op) const {
    if (op.weight_elements == 0) return 2;
    if (in_.bytes != nullptr && op.weight_class >= 0 &&
        in_.bytes->per_element[static_cast<std::size_t>(op.weight_class)] > 0)
      return in_.bytes->per_element[static_cast<std::size_t>(op.weight_class)];
    return static_cast<double>(op.weight_bytes) / static_cast<double>(op.weight_elements);
  }

  void product(const OpRecord& op) {
    const double per_element = bytes_per_element(op);
    const Arithmetic how = arithmetic_of(per_element, in_);
    const std::uint32_t source = op.inputs[0];
    const bool fuse = engine_.lowering.fuse_qkv && engine_.lowering.fuse_gate_up && !op.in_place && !op.backward &&
                      op.kind == OpKind::kLinear && source != 0;
    if (fuse) {
      for (std::size_t i = first_; i < program_.kernels.size(); ++i) {
        Kernel& earlier = program_.kernels[i];
        if (earlier.kind != Kernel::Kind::kProduct || inputs_[i - base()] != source ||
            earlier.precision != how.precision || earlier.unpacks != how.unpacks || earlier.launches == 0)
          continue;
        earlier.flops += op.flops;
        earlier.weight_bytes += per_element * static_cast<double>(op.weight_elements);
        earlier.weight_elements += static_cast<double>(op.weight_elements);
        earlier.bytes += op.written_bytes;
        return;
      }
    }
    rotating_ = false;
    Kernel& kernel =
        add(Kernel::Kind::kProduct, 1 + (how.quantizes && !op.weight_gradient ? engine_.lowering.quantize_kernels : 0));
    inputs_.back() = source;
    kernel.precision = how.precision;
    kernel.unpacks = how.unpacks;
    kernel.rows = op.rows;
    kernel.flops = op.flops;
    kernel.bytes += traffic(op);
    if (how.quantizes && in_.phase != Phase::kTrain) kernel.bytes += op.read_bytes;
    if (how.quantizes && in_.phase == Phase::kTrain && !op.weight_gradient) {
      // Read wide, written narrow twice (as it is and transposed, for the gradients); the weights once, forward.
      kernel.apart = op.read_bytes * 2.0;
      if (!op.backward) kernel.apart.fixed += 4 * static_cast<double>(op.weight_elements);
    }
    kernel.weight_elements = static_cast<double>(op.weight_elements);
    kernel.weight_bytes = per_element * kernel.weight_elements;
    kernel.weight_gradient = op.weight_gradient;
    kernel.backward = op.backward;
    kernel.phase_bound = op.kind == OpKind::kGroupedLinear;
  }

  void attention(const OpRecord& op) {
    const bool further = !program_.kernels.empty() && program_.kernels.size() > first_ &&
                         program_.kernels.back().kind == Kernel::Kind::kAttention &&
                         op.read_bytes.per_token < program_.kernels.back().bytes.per_token / 4;
    rotating_ = false;
    Kernel& kernel = add(op.kind == OpKind::kIndexSelect ? Kernel::Kind::kIndexer : Kernel::Kind::kAttention,
                         further ? 0 : engine_.lowering.attention_kernels);
    kernel.phase_bound = true;
    kernel.backward = op.backward;
    kernel.rows = op.rows;
    kernel.bytes += traffic(op);
    kernel.latent = op.shares_value && op.kv_heads == 1;
    kernel.row_bytes = cache_row_bytes(op, in_.kv);
    kernel.row_flops = 2.0 * op.heads * static_cast<double>(op.key_dim + op.shared_key_dim + op.value_dim);
    kernel.window = static_cast<double>(op.window);
    kernel.ratio = static_cast<double>(std::max<std::int64_t>(op.ratio, 1));
    kernel.top_k = op.kind == OpKind::kIndexSelect ? 0 : static_cast<double>(op.top_k);
    kernel.ring = op.segment == tensor::KvSegment::Kind::kRingPast;
    kernel.fresh =
        op.segment == tensor::KvSegment::Kind::kFresh || op.segment == tensor::KvSegment::Kind::kFreshEntries;
  }

  void experts(const OpRecord& op) {
    rotating_ = false;
    const double per_element = bytes_per_element(op);
    const Arithmetic how = arithmetic_of(per_element, in_);
    Kernel& kernel = add(Kernel::Kind::kExperts, engine_.lowering.experts_kernels);
    kernel.precision = how.precision;
    kernel.unpacks = how.unpacks;
    kernel.rows = op.rows;
    kernel.bytes += traffic(op);
    kernel.weight_elements = static_cast<double>(op.weight_elements);
    kernel.weight_bytes = per_element * kernel.weight_elements;
    kernel.experts_here = op.experts_here;
    kernel.experts_total = std::max(op.experts_total, 1);
    kernel.experts_per_token = op.experts_per_token;
    kernel.expert_flops = 6.0 * static_cast<double>(op.n) * static_cast<double>(op.expert_intermediate);
    kernel.backward = op.backward;
    kernel.weight_gradient = op.weight_gradient;
  }

  void exchange(const OpRecord& op, Kernel::Kind kind) {
    rotating_ = false;
    Kernel& kernel = add(kind, 1);
    kernel.group = op.group;
    kernel.bytes = op.comm_bytes;
    kernel.backward = op.backward;
  }

  void lower(const OpRecord& op) {
    const Lowering& l = engine_.lowering;
    switch (op.kind) {
      case OpKind::kLinear:
      case OpKind::kGroupedLinear:
        return product(op);
      case OpKind::kAttention:
      case OpKind::kIndexSelect:
        return attention(op);
      case OpKind::kExperts:
        return experts(op);
      case OpKind::kAllReduce:
        return exchange(op, Kernel::Kind::kReduce);
      case OpKind::kAllGather:
      case OpKind::kReduceScatter:
      case OpKind::kAllToAll:
        return exchange(op, Kernel::Kind::kGather);
      case OpKind::kRope:
      case OpKind::kCacheWrite:
        return rotate(op);
      case OpKind::kRmsNorm:
      case OpKind::kLayerNorm:
        if (op.rows.per_token > 1 && !op.backward) return rotate(op);
        elementwise(op, l.norm_kernels);
        program_.kernels.back().sequence = true;
        return;
      case OpKind::kAdd:
        if (l.fuse_residual_norm) {
          pending_ += traffic(op);
          pending_.per_token *= 0.67;  // the sum stays in registers for the norm: one of three passes is saved
          return;
        }
        return elementwise(op, l.other_kernels);
      case OpKind::kSwiglu:
      case OpKind::kGelu:
        return elementwise(op, l.activation_kernels);
      case OpKind::kRoute:
        return elementwise(op, 2 * l.other_kernels);
      case OpKind::kZero:
        return;
      default:
        return elementwise(op, l.other_kernels);
    }
  }

  std::size_t base() const { return program_.kernels.size() - inputs_.size(); }

  const LowerInputs& in_;
  const EngineProfile& engine_;
  float repeats_;
  bool head_;
  Program& program_;
  std::size_t first_;
  std::vector<std::uint32_t> inputs_;  // of each kernel added here: the buffer that a product reads
  Rate pending_;
  bool rotating_ = false;
};

}  // namespace

double cache_row_bytes(const meta::OpRecord& op, const KvFormat* kv) {
  const double plain = op.kv_heads * static_cast<double>(op.key_dim + (op.shares_value ? 0 : op.value_dim));
  const double shared = op.shared_key_dim;
  if (kv == nullptr) return 2 * (plain + shared);
  if (kv->int8_rows) {
    const std::int64_t own = tensor::int8_row_bytes(op.kv_heads, op.key_dim),
                       values = op.shares_value ? 0 : tensor::int8_row_bytes(op.kv_heads, op.value_dim);
    return static_cast<double>(own + values + (shared > 0 ? tensor::int8_row_bytes(1, op.shared_key_dim) : 0));
  }
  const auto per = [](const KvFormat::Part& part) {
    return (part.bits + (part.block > 0 ? part.block_bits / static_cast<double>(part.block) : 0)) / 8;
  };
  const auto or_all = [&](const KvFormat::Part& part) { return per(part.bits > 0 ? part : kv->all); };
  if (op.kind == OpKind::kIndexSelect) return plain * or_all(kv->index);
  if (!(op.shares_value && op.kv_heads == 1)) return (plain + shared) * per(kv->all);
  if (op.ratio > 1 && kv->entry_latent.bits > 0)
    return plain * per(kv->entry_latent) + shared * or_all(kv->entry_rope) + kv->entry_pad_bits / 8;
  return plain * or_all(kv->latent) + shared * or_all(kv->rope);
}

void lower_trace(const meta::Trace& trace, double repeats, const LowerInputs& inputs, bool head, Program& program) {
  if (repeats <= 0) return;
  Lowerer(inputs, repeats, head, program).run(trace);
}

}  // namespace fathom::plan
