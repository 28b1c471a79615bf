// Waiting: what goes before latent attention of one token (waiting.cuh).
#include "backends/cuda/attention_ways.h"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

enum { kRotatesQ, kRotatesK, kNorms, kWritesLatent, kWritesRope, kCopies, kActions };  // in their order

bool in_sixteens(const TokenRows& rows) { return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.row % 4 == 0; }
bool same_place(const TokenRows& a, const TokenRows& b) { return a.data == b.data && a.inner == 1 && b.inner == 1 && a.n == b.n; }

/// Rotations of q's last columns and of the keys', the latent's norm, their rows of a cache, and q's rotated columns copied.
bool prepares_latents(const TokenProgram& program) {
  using Kind = TokenAction::Kind;
  if (program.count != kActions || (program.tokens == 1 && program.sequence_count != 1)) return false;
  const TokenAction* a = program.actions;
  constexpr Kind kKinds[kActions] = {Kind::kRope, Kind::kRope, Kind::kNorm, Kind::kWrite, Kind::kWrite, Kind::kCopy};
  for (int i = 0; i < kActions; ++i)
    if (a[i].kind != kKinds[i] || a[i].x.dtype != DType::f32 || !in_sixteens(a[i].x)) return false;
  const auto rotates = [&](const TokenAction& own, int inner, int n, int first) {
    return own.x.inner == inner && own.x.n == n && own.first_dim == first && 2 * own.half == kAbsorbedRope && !own.inverse && own.cosines == a[kRotatesQ].cosines && own.sines == a[kRotatesQ].sines &&
           own.interleaved == a[kRotatesQ].interleaved;
  };
  const auto writes = [&](const TokenAction& own, const TokenRows& from, int n) {
    return same_place(own.x, from) && own.x.n == n && own.out.inner == 1 && own.out.dtype == DType::bf16 && !own.ring && own.rows_per_slot == a[kWritesLatent].rows_per_slot;
  };
  const TokenRows &q = a[kRotatesQ].x, &from = a[kCopies].x, &to = a[kCopies].out;
  const TokenAction& norm = a[kNorms];
  if (!rotates(a[kRotatesQ], q.inner, kAbsorbedNope + kAbsorbedRope, kAbsorbedNope) || !rotates(a[kRotatesK], 1, kAbsorbedRope, 0)) return false;
  if (norm.x.inner != 1 || norm.x.n != kAbsorbedRank || norm.out.dtype != DType::f32 || !in_sixteens(norm.out) || reinterpret_cast<std::uintptr_t>(norm.weight) % 16 != 0 || norm.weight == nullptr) return false;
  if (!writes(a[kWritesLatent], norm.out, kAbsorbedRank) || !writes(a[kWritesRope], a[kRotatesK].x, kAbsorbedRope)) return false;
  return from.data == q.data + kAbsorbedNope * sizeof(float) && from.inner == q.inner && from.row == q.row && from.n == kAbsorbedRope && to.dtype == DType::f32 && in_sixteens(to);
}

}  // namespace

bool CudaOps::Waiting::leave(Context& context, const Product& p) {
  if (!has_parts() || !can_leave(parts_, p)) return false;
  settle(context);
  launch_leave(context, std::exchange(parts_, {}), p);
  return true;
}

bool CudaOps::Waiting::carry(const Context& context, const Product& p) {
  if (context.compute_capability < 90 || carries_ || p.tokens != program_.tokens || (p.tokens != 1 && !can_enter(p)) || !prepares_latents(program_)) return false;
  const TokenRows &q = program_.actions[kRotatesQ].x, &to = program_.actions[kCopies].out;
  if (!p.by_column || p.groups != q.inner || p.rows != kAbsorbedNope || p.weight.format != WeightFormat::bf16 || p.weight.cols != kAbsorbedRank) return false;
  if (reinterpret_cast<std::uintptr_t>(p.weight.data) % 16 != 0 || p.bias != nullptr || p.accumulate || p.added != nullptr) return false;
  if (p.x != reinterpret_cast<const float*>(q.data) || p.x_step != q.row || (p.tokens > 1 && p.x_stride != q.token) || p.out + kAbsorbedRank != reinterpret_cast<const float*>(to.data) || p.out_step != to.row) return false;
  if (p.tokens > 1) {  // blocks of one launch write its out and read what the short ops read
    const auto* const end = p.out + (p.tokens - 1) * p.out_stride + (p.groups - 1) * p.out_step + kAbsorbedWidth;
    const TokenRows* const read[] = {&q, &program_.actions[kRotatesK].x, &program_.actions[kNorms].x, &program_.actions[kNorms].out};
    for (const TokenRows* rows : read) {
      const auto *first = reinterpret_cast<const float*>(rows->data), *last = first + (p.tokens - 1) * rows->token + (rows->inner - 1) * rows->row + rows->n;
      if (first < end && p.out < last) return false;
    }
  }
  carried_ = p;
  return carries_ = true;
}

FreshLatents CudaOps::Waiting::take_latents(const AttentionArgs& args) {
  if (!carries_ || program_.tokens != 1 || !args.only_products) return {};  // q, the latent and the rotated keys would have to be written
  const TokenAction* a = program_.actions;
  const KvSegment& segment = args.segments[0];
  const auto is_written = [&](const TokenAction& action, const Tensor& rows) { return action.out.data == rows.data && action.out.token == rows.strides[0] && action.rows_per_slot == segment.rows_per_slot; };
  if (!is_written(a[kWritesLatent], segment.k) || !is_written(a[kWritesRope], segment.k_shared)) return {};
  if (program_.sequences != reinterpret_cast<const int4*>(args.batch->sequence_table.data)) return {};
  if (args.q.as<float>() != carried_.out || args.q.dim(1) != carried_.groups || args.q.strides[1] != carried_.out_step) return {};
  FreshLatents fresh;
  fresh.q = reinterpret_cast<float*>(a[kRotatesQ].x.data);
  fresh.q_head = a[kRotatesQ].x.row;
  fresh.weight = carried_.weight.data + carried_.first_row * kAbsorbedRank * 2;
  fresh.weight_head = carried_.row_step * kAbsorbedRank * 2;
  fresh.kv = reinterpret_cast<const float*>(a[kNorms].x.data);
  fresh.k_rope = reinterpret_cast<const float*>(a[kRotatesK].x.data);
  fresh.norm = a[kNorms].weight;
  fresh.norm_type = a[kNorms].weight_type;
  fresh.eps = a[kNorms].eps;
  fresh.cosines = a[kRotatesQ].cosines;
  fresh.sines = a[kRotatesQ].sines;
  fresh.interleaved = a[kRotatesQ].interleaved;
  fresh.cache_rows = segment.k.dim(0);
  program_.count = 0;
  program_.sequences = nullptr;
  carries_ = false;
  return fresh;
}

}  // namespace fathom::cuda
