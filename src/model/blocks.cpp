#include "model/blocks.h"

#include <algorithm>
#include <cmath>

namespace fathom::model {
using tensor::KvSegment;
using tensor::Tensor;
using tensor::Value;
using tensor::WeightFormat;

// ---------------------------------------------------------------- entries

void EntryMaker::apply_quantization(WeightEntry& entry) const {
  if (entry.native == WeightFormat::fp8_block128) entry.activations = spec_.block_activations;
  if (spec_.quantization.empty() || (entry.native != spec_.linear_format && entry.native != spec_.expert_format))
    return;
  std::string module = entry.name();  // experts are stored alike: the first stands for all
  if (module.ends_with(".weight")) module.resize(module.size() - 7);
  const QuantizationGroup* group = entry.part == WeightPart::kMain ? spec_.quantization.group_of(module) : nullptr;
  entry.native = group == nullptr ? spec_.plain_format : group->format;
  if (group != nullptr) entry.activations = group->activations;
}

WeightId EntryMaker::matrix(const std::string& name, WeightClass cls, int layer, std::int64_t rows, std::int64_t cols,
                            WeightFormat native, Split split, int parts, int part) {
  WeightEntry entry{.pattern = name,
                    .cls = cls,
                    .part = part_,
                    .layer = layer,
                    .rows = rows,
                    .cols = cols,
                    .full_rows = rows,
                    .full_cols = cols,
                    .native = native};
  if (parts > 1 && split == Split::kRows) {
    entry.rows = rows / parts;
    entry.first_row = entry.rows * part;
    entry.split = split;
  } else if (parts > 1 && split == Split::kColumns) {
    entry.cols = cols / parts;
    entry.first_col = entry.cols * part;
    entry.split = split;
  }
  apply_quantization(entry);
  return table_.add(std::move(entry));
}

WeightId EntryMaker::vector(const std::string& name, WeightClass cls, int layer, std::int64_t size, WeightFormat native,
                            Split split, int parts, int part) {
  WeightEntry entry{.pattern = name,
                    .cls = cls,
                    .part = part_,
                    .layer = layer,
                    .rows = 1,
                    .cols = size,
                    .full_rows = 1,
                    .full_cols = size,
                    .vector = true,
                    .native = native};
  if (parts > 1 && split != Split::kNone) {
    entry.cols = size / parts;
    entry.first_col = entry.cols * part;
    entry.split = Split::kColumns;
  }
  return table_.add(std::move(entry));
}

WeightId EntryMaker::experts(const std::string& name, int layer, std::int64_t experts, std::int64_t rows,
                             std::int64_t cols, WeightFormat native, Split within) {
  const Sharding& s = sharding_;
  WeightEntry entry{.pattern = name,
                    .cls = WeightClass::kRoutedExpert,
                    .part = part_,
                    .layer = layer,
                    .rows = rows,
                    .cols = cols,
                    .full_rows = rows,
                    .full_cols = cols,
                    .native = native};
  if (within == Split::kRows) {
    entry.rows = rows / s.expert_tp;
    entry.first_row = entry.rows * s.expert_tp_rank;
  } else {
    entry.cols = cols / s.expert_tp;
    entry.first_col = entry.cols * s.expert_tp_rank;
  }
  entry.experts = experts / s.ep;
  entry.first_expert = entry.experts * s.ep_rank;
  entry.per_expert = true;
  entry.split = s.ep > 1 ? Split::kExperts : s.expert_tp > 1 ? within : Split::kNone;
  apply_quantization(entry);
  return table_.add(std::move(entry));
}

WeightId add_vocabulary(EntryMaker& make, const std::string& name, WeightClass cls) {
  const ModelSpec& spec = make.spec();
  const Sharding& s = make.sharding();
  const bool split = spec.vocabulary % s.tp == 0;
  return make.matrix(name, cls, -1, spec.vocabulary, spec.hidden, spec.plain_format,
                     split ? Split::kRows : Split::kNone, s.tp, s.tp_rank);
}

Value run_embed(Pass& pass, const WeightEntry& entry, WeightId id) {
  const tensor::Weight& table = pass.weights[id];
  const bool split = entry.split == Split::kRows;
  Value out = allocate(pass.ops, {pass.batch.tokens, table.cols});
  pass.ops.embed({.ids = pass.batch.ids, .table = table, .out = out, .first_id = entry.first_row, .split = split});
  if (split) pass.comm.all_reduce(tensor::Group::kTensor, out);
  return out;
}

Status check_divides(std::string_view what, std::int64_t whole, std::int64_t parts) {
  if (parts >= 1 && whole % parts == 0) return {};
  return fail("model.indivisible",
              {{"what", std::string(what)}, {"whole", std::to_string(whole)}, {"parts", std::to_string(parts)}});
}

// ---------------------------------------------------------------- shared views

bool starts_fresh(const Pass& pass) {
  if (pass.cache == nullptr) return true;
  if (pass.batch.tokens == static_cast<std::int64_t>(pass.batch.sequences.size())) return false;  // decode
  for (const tensor::Sequence& sequence : pass.batch.sequences)
    if (sequence.past != 0) return false;
  return true;
}

Tensor cache_rows(const Pass& pass, int index) {
  const CacheTensor& spec = pass.cache->spec->tensors[static_cast<std::size_t>(index)];
  const std::int64_t width = spec.width - spec.apart;
  return pass.cache->tensors[static_cast<std::size_t>(index)].columns(0, width).split_last(width / spec.heads);
}

Tensor cache_columns(const Pass& pass, int index) {
  const CacheTensor& spec = pass.cache->spec->tensors[static_cast<std::size_t>(index)];
  FATHOM_CHECK(spec.heads == 1);
  return pass.cache->tensors[static_cast<std::size_t>(index)].columns(0, spec.width - spec.apart);
}

Tensor cache_apart(const Pass& pass, int index) {
  const CacheTensor& spec = pass.cache->spec->tensors[static_cast<std::size_t>(index)];
  const Tensor& cache = pass.cache->tensors[static_cast<std::size_t>(index)];
  return cache.columns(spec.first_apart(cache.dtype), spec.apart);
}

// ---------------------------------------------------------------- grouped-query attention

GqaIds add_gqa(EntryMaker& make, CacheSpec& cache, const std::string& prefix, int layer, bool qkv_bias) {
  const ModelSpec& spec = make.spec();
  const Sharding& s = make.sharding();
  const std::int64_t d = spec.head_dim, q_rows = spec.heads * d, kv_rows = spec.kv_heads * d;
  // Fewer key-value heads than ranks: each rank keeps the one head its queries read.
  const int kv_parts = static_cast<int>(std::min<std::int64_t>(s.tp, spec.kv_heads));
  const int kv_part = static_cast<int>(s.tp_rank * kv_parts / s.tp);
  const auto attention = WeightClass::kAttention;
  const std::string p = prefix + "self_attn.";
  GqaIds ids;
  ids.q = make.matrix(p + "q_proj.weight", attention, layer, q_rows, spec.hidden, spec.linear_format, Split::kRows,
                      s.tp, s.tp_rank);
  ids.k = make.matrix(p + "k_proj.weight", attention, layer, kv_rows, spec.hidden, spec.linear_format, Split::kRows,
                      kv_parts, kv_part);
  ids.v = make.matrix(p + "v_proj.weight", attention, layer, kv_rows, spec.hidden, spec.linear_format, Split::kRows,
                      kv_parts, kv_part);
  ids.o = make.matrix(p + "o_proj.weight", attention, layer, spec.hidden, q_rows, spec.linear_format, Split::kColumns,
                      s.tp, s.tp_rank);
  if (qkv_bias) {
    ids.q_bias = make.vector(p + "q_proj.bias", WeightClass::kBias, layer, q_rows, spec.plain_format, Split::kColumns,
                             s.tp, s.tp_rank);
    ids.k_bias = make.vector(p + "k_proj.bias", WeightClass::kBias, layer, kv_rows, spec.plain_format, Split::kColumns,
                             kv_parts, kv_part);
    ids.v_bias = make.vector(p + "v_proj.bias", WeightClass::kBias, layer, kv_rows, spec.plain_format, Split::kColumns,
                             kv_parts, kv_part);
  }
  if (spec.output_bias)
    ids.o_bias = make.vector(p + "o_proj.bias", WeightClass::kBias, layer, spec.hidden, spec.plain_format);
  if (spec.qk_norm) {
    ids.q_norm = make.vector(p + "q_norm.weight", WeightClass::kNorm, layer, d, spec.plain_format);
    ids.k_norm = make.vector(p + "k_norm.weight", WeightClass::kNorm, layer, d, spec.plain_format);
  }
  ids.k_cache = static_cast<int>(cache.tensors.size());
  cache.tensors.push_back({.layer = layer, .width = kv_rows / kv_parts, .heads = spec.kv_heads / kv_parts});
  ids.v_cache = static_cast<int>(cache.tensors.size());
  cache.tensors.push_back({.layer = layer, .width = kv_rows / kv_parts, .heads = spec.kv_heads / kv_parts});
  return ids;
}

Value run_gqa(Pass& pass, const ModelSpec& spec, const GqaIds& ids, const Tensor& x) {
  tensor::Ops& ops = pass.ops;
  const std::int64_t d = spec.head_dim;
  Value q = linear(ops, x, pass.weights[ids.q], weight_or_none(pass, ids.q_bias));  // [T, H·d]
  Value k = linear(ops, x, pass.weights[ids.k], weight_or_none(pass, ids.k_bias));  // [T, K·d]
  Value v = linear(ops, x, pass.weights[ids.v], weight_or_none(pass, ids.v_bias));  // [T, K·d]
  if (ids.q_norm >= 0) {
    Value qn = rms_norm(ops, q->split_last(d), pass.weights[ids.q_norm], spec.norm_eps);  // [T, H, d]
    Value kn = rms_norm(ops, k->split_last(d), pass.weights[ids.k_norm], spec.norm_eps);
    q = std::move(qn);
    k = std::move(kn);
  }
  const Tensor qh = q->shape.rank == 3 ? q.tensor() : q->split_last(d);
  const Tensor kh = k->shape.rank == 3 ? k.tensor() : k->split_last(d);
  const Tensor vh = v->split_last(d);
  if (!pass.rotary.empty()) {
    ops.rope({.x = qh, .cos = pass.rotary[0].cos, .sin = pass.rotary[0].sin, .interleaved = spec.rope_interleaved});
    ops.rope({.x = kh, .cos = pass.rotary[0].cos, .sin = pass.rotary[0].sin, .interleaved = spec.rope_interleaved});
  }
  KvSegment segment{.kind = KvSegment::Kind::kFresh, .k = kh, .v = vh};
  if (pass.cache != nullptr) {
    const std::int64_t rows = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.k_cache)];
    segment = {.kind = KvSegment::Kind::kCache,
               .k = cache_rows(pass, ids.k_cache),
               .v = cache_rows(pass, ids.v_cache),
               .rows_per_slot = rows};
    ops.cache_write({.src = kh, .cache = segment.k, .rows_per_slot = rows, .batch = &pass.batch});
    ops.cache_write({.src = vh, .cache = segment.v, .rows_per_slot = rows, .batch = &pass.batch});
  }
  Value o = attention(ops, qh, std::span(&segment, 1), d, 1.0 / std::sqrt(static_cast<double>(d)), {}, pass.batch,
                      DType::f32, true);  // [T, H, d]
  q.reset();
  k.reset();
  v.reset();
  Value out = linear(ops, o->join_last(), pass.weights[ids.o],
                     pass.comm.rank(tensor::Group::kTensor) == 0 ? weight_or_none(pass, ids.o_bias) : tensor::Weight{});
  pass.comm.all_reduce(tensor::Group::kTensor, out);
  return out;
}

// ---------------------------------------------------------------- feed-forward

FfnIds add_ffn(EntryMaker& make, const std::string& gate, const std::string& up, const std::string& down,
               WeightClass cls, int layer, std::int64_t intermediate, bool bias) {
  const ModelSpec& spec = make.spec();
  const Sharding& s = make.sharding();
  FfnIds ids;
  ids.gate = make.matrix(gate + ".weight", cls, layer, intermediate, spec.hidden, spec.linear_format, Split::kRows,
                         s.tp, s.tp_rank);
  ids.up = make.matrix(up + ".weight", cls, layer, intermediate, spec.hidden, spec.linear_format, Split::kRows, s.tp,
                       s.tp_rank);
  ids.down = make.matrix(down + ".weight", cls, layer, spec.hidden, intermediate, spec.linear_format, Split::kColumns,
                         s.tp, s.tp_rank);
  if (bias) {
    ids.gate_bias = make.vector(gate + ".bias", WeightClass::kBias, layer, intermediate, spec.plain_format,
                                Split::kColumns, s.tp, s.tp_rank);
    ids.up_bias = make.vector(up + ".bias", WeightClass::kBias, layer, intermediate, spec.plain_format, Split::kColumns,
                              s.tp, s.tp_rank);
    ids.down_bias = make.vector(down + ".bias", WeightClass::kBias, layer, spec.hidden, spec.plain_format);
  }
  return ids;
}

Value run_ffn(Pass& pass, const ModelSpec& spec, const FfnIds& ids, const Tensor& x) {
  tensor::Ops& ops = pass.ops;
  Value gate = linear(ops, x, pass.weights[ids.gate], weight_or_none(pass, ids.gate_bias));  // [T, f]
  Value up = linear(ops, x, pass.weights[ids.up], weight_or_none(pass, ids.up_bias));        // [T, f]
  if (ops.records()) {
    gate = swiglu(ops, gate, up, spec.swiglu_limit);
  } else {  // nobody needs the gate again: reuse its place
    ops.swiglu({.gate = gate, .up = up, .limit = spec.swiglu_limit, .out = gate, .only_products = true});
  }
  up.reset();
  return linear(ops, gate, pass.weights[ids.down],
                pass.comm.rank(tensor::Group::kTensor) == 0 ? weight_or_none(pass, ids.down_bias) : tensor::Weight{});
}

namespace {

// out [T, h] (+)= what this rank's experts make of each token.
void run_experts(Pass& pass, const ModelSpec& spec, const MoeIds& ids, const Tensor& x, const tensor::Routed& routed,
                 const Tensor& out, bool accumulate) {
  pass.ops.experts({.x = x,
                    .indices = routed.indices,
                    .weights = routed.weights,
                    .gate = pass.weights.experts(ids.gate),
                    .up = pass.weights.experts(ids.up),
                    .down = pass.weights.experts(ids.down),
                    .first_expert = ids.first_expert,
                    .total_experts = spec.routing.experts,
                    .limit = spec.swiglu_limit,
                    .out = out,
                    .accumulate = accumulate});
}

// The tokens of all replicas [all, h] go through the experts of this rank; the sum over the ranks holds every replica's
// own.
Value run_moe_of_replicas(Pass& pass, const ModelSpec& spec, const MoeIds& ids, const Tensor& x) {
  tensor::Ops& ops = pass.ops;
  const auto group = tensor::Group::kAttention;
  const auto counts = pass.replica_tokens;
  const int me = pass.comm.rank(group);
  std::int64_t all = 0, first = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (static_cast<int>(i) == me) first = all;
    all += counts[i];
  }
  Value together = allocate(ops, {all, x.dim(1)}), sum = allocate(ops, {all, x.dim(1)});
  pass.comm.all_gather_rows(group, x, counts, together);
  Value tokens;
  if (ids.table >= 0) {  // the hash table goes by token
    tokens = allocate(ops, DType::i32, {all});
    pass.comm.all_gather_rows(group, pass.batch.ids, counts, tokens);
  }
  {
    Value logits = linear(ops, together, pass.weights[ids.router]);
    const tensor::Routed routed = route(ops, logits, spec.routing, weight_or_none(pass, ids.bias),
                                        weight_or_none(pass, ids.table), tokens.tensor());
    logits.reset();
    run_experts(pass, spec, ids, together, routed, sum, false);
  }
  together.reset();
  if (ids.has_shared) {
    Value shared = run_ffn(pass, spec, ids.shared, x);
    add_into(ops, sum->rows(first, x.dim(0)), shared);
  }
  pass.comm.all_reduce(tensor::Group::kExpert, sum);
  Value out = allocate(ops, x.shape);
  ops.copy({.x = sum->rows(first, x.dim(0)), .out = out});
  return out;
}

}  // namespace

Value run_moe(Pass& pass, const ModelSpec& spec, const MoeIds& ids, const Tensor& x) {
  if (pass.comm.size(tensor::Group::kAttention) > 1) return run_moe_of_replicas(pass, spec, ids, x);
  tensor::Ops& ops = pass.ops;
  Value logits = linear(ops, x, pass.weights[ids.router]);  // [T, E]
  tensor::Routed routed =
      route(ops, logits, spec.routing, weight_or_none(pass, ids.bias), weight_or_none(pass, ids.table), pass.batch.ids);
  Value out;
  if (ids.has_shared) {
    out = run_ffn(pass, spec, ids.shared, x);
  } else {
    out = allocate(ops, x.shape);
  }
  run_experts(pass, spec, ids, x, routed, out, ids.has_shared);
  if (!ops.records()) logits.reset();  // not before: who computes may choose experts when they are asked for
  pass.comm.all_reduce(tensor::Group::kExpert, out);
  return out;
}

Value run_head(Pass& pass, const ModelSpec& spec, const Tensor& hidden, WeightId norm, WeightId head) {
  tensor::Ops& ops = pass.ops;
  Value picked;
  if (pass.batch.output_rows.defined()) picked = gather_rows(ops, hidden, pass.batch.output_rows);  // [outputs, h]
  Value normed = rms_norm(ops, picked.defined() ? picked.tensor() : hidden, pass.weights[norm], spec.norm_eps);
  picked.reset();
  return linear(ops, normed, pass.weights[head]);  // [outputs, V]
}

}  // namespace fathom::model
