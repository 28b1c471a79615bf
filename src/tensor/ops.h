// Ops: the vocabulary that every model is written in. Whoever implements it decides what happens: `reference` computes
// plainly, `cpu` fast, `meta` only counts, `tape` also remembers how to differentiate.
//
// Common to all ops. Tensors are views with innermost stride 1 (tensor.h). Outputs are allocated by the caller (see
// functions.h for the short forms) and overwritten, unless `accumulate` says that the result is added. An output may
// not overlap an input unless the op says "in place". Activations are f32 (or f64 on reference, for gradient checks;
// 16-bit on devices that compute so); products are summed in f32 or wider, and rounding happens once, when an output is
// stored. T is the number of tokens of the batch. Zero rows are allowed everywhere and do nothing. NaN in gives NaN out
// for the rows it touches, never a crash. Shapes that do not fit are our own bug: FATHOM_CHECK. Calls are ordered; a
// host backend has finished when the call returns, a device backend when its stream has. Nothing allocates except
// allocate(). The plain twin of every op is src/backends/reference/<family>.cpp; cases are in tests/backends/op_cases.
// "Price" is what meta charges: FLOPs (a multiply-add is 2) and the bytes read and written once each.
// `only_products` is a promise about an output: nothing reads it but calls of `linear`, and those come before any op of
// another kind. A device may then keep it in the type that these products want and leave `out` itself unwritten.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "tensor/batch.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace fathom::tensor {

// ---------------------------------------------------------------- embedding and rows (family: rows)

/// out[t, :] = table[ids[t] - first_id, :]. ids [T] i32, table [rows, h], out [T, h]. With a table split over ranks,
/// ids outside [first_id, first_id + rows) give a zero row (their rank adds it); otherwise an id outside the table is
/// our own bug (inputs are checked where they enter). Price: 0 FLOPs, T rows read and written. Backward: dtable[ids[t]
/// - first_id] += dout[t].
struct EmbedArgs {
  Tensor ids;
  Weight table;
  Tensor out;
  std::int64_t first_id = 0;
  bool split = false;
};

/// out[i, :] = x[rows[i], :]. x [n, w], rows [m] i32, out [m, w]. Backward: dx[rows[i]] += dout[i].
struct GatherRowsArgs {
  Tensor x;
  Tensor rows;
  Tensor out;
};

/// out = x, converted to out's dtype; any equal shapes. Backward: dx += dout.
struct CopyArgs {
  Tensor x;
  Tensor out;
};

/// out = a + b, equal shapes; out may be a or b (in place). Backward: da += dout, db += dout.
struct AddArgs {
  Tensor a;
  Tensor b;
  Tensor out;
};

/// out[t, s, :] = x[t, :] for s < streams. x [T, h], out [T, streams, h]. Backward: dx += sum over s of dout.
struct ExpandStreamsArgs {
  Tensor x;
  Tensor out;
};

// ---------------------------------------------------------------- norms (family: norm)

/// out = x / sqrt(mean(x²) + eps) · weight over the innermost dimension. x [..., d], weight [d] or undefined (no
/// weight). Statistics in f32 (f64 if x is). Out may be x (in place). Price: 4 FLOPs an element. Zhang & Sennrich 2019.
struct RmsNormArgs {
  Tensor x;
  Tensor weight;
  double eps = 0;
  Tensor out;
  std::int32_t parameter = -1;
  bool only_products = false;
};

/// out = (x - mean) / sqrt(variance + eps) · weight + bias over the innermost dimension; weight, bias [d].
struct LayerNormArgs {
  Tensor x;
  Tensor weight;
  Tensor bias;
  double eps = 0;
  Tensor out;
  std::int32_t weight_parameter = -1;
  std::int32_t bias_parameter = -1;
};

// ---------------------------------------------------------------- matrix products (family: linear)

/// Products with 8-bit activations (W8A8). When weight.activations is kPerToken and its format fp8_row or int8_row, and
/// the op has more than kWeightOnlyTokens tokens, every row of x is rounded first, by itself: a = max |x|, scale = a /
/// 448 (fp8) or a / 127 (int8) in f32, 1 where a is 0; code = x / scale (divided in f32), to the nearest e4m3 or whole
/// number, ties to even, within ±448 or ±127. Codes are multiplied with the weight's codes exactly and summed in f32
/// (fp8) or as integers (int8); the sum times both scales is the product. When it is kPerGroup and the format
/// fp8_block128, every row of x is rounded so in stretches of 128 columns from the first on (the last may be shorter),
/// each with its own scale, and the sums of a stretch are multiplied with its scale and the weight's before they are
/// added up in f32; with kPerGroupOfPowers such a scale is the next power of two, if it is none. A stretch (row) that
/// holds NaN or infinity gives NaN. With up to kWeightOnlyTokens tokens (decoding: the weight's bytes decide) x stays
/// as it is, and so it does in grouped_linear, hyper_mix and hyper_head always. Backward treats the rounding as the
/// identity.
inline constexpr std::int64_t kWeightOnlyTokens = 16, kRoundedColumns = 128;
constexpr bool rounds_in_groups(const Weight& weight) {
  return weight.activations == Activations::kPerGroup || weight.activations == Activations::kPerGroupOfPowers;
}
constexpr bool rounds_activations(const Weight& weight, std::int64_t tokens) {
  if (tokens <= kWeightOnlyTokens) return false;
  if (weight.activations == Activations::kPerToken)
    return weight.format == WeightFormat::fp8_row || weight.format == WeightFormat::int8_row;
  return rounds_in_groups(weight) && weight.format == WeightFormat::fp8_block128;
}

/// out [T, n] (+)= x [T, k] · weightᵀ [n, k] (+ bias [n]). Price: 2·T·n·k FLOPs; weight, x, out once.
/// Backward: dx += dout · weight, dweight += doutᵀ · x, dbias += sum over T of dout.
struct LinearArgs {
  Tensor x;
  Weight weight;
  Tensor bias;  // undefined: none
  Tensor out;
  bool accumulate = false;
  std::int32_t bias_parameter = -1;
};

/// Per group g: out[t, g, :] = x[t, g, :] · W_gᵀ with W_g = rows [g·group_rows + row_offset, + rows) of weight
/// [G·group_rows, k], or · W_g when `transposed` (x [T, G, rows] -> out [T, G, k]). The two halves of absorbed latent
/// attention and V4's grouped output projection. x [T, G, k] -> out [T, G, rows] when not transposed.
struct GroupedLinearArgs {
  Tensor x;
  Weight weight;
  std::int64_t group_rows = 0, row_offset = 0, rows = 0;
  bool transposed = false;
  Tensor out;
};

// ---------------------------------------------------------------- rotary positions (family: rope)

/// cos[t, i] = cos(positions[t] · inverse_frequency[i]) · scale, and sin alike. positions [n] i32, inverse_frequency
/// [half] f32, cos, sin [n, half] f32 (f64 on an f64 model). Angle in f32 as transformers has it. A position of -1
/// gives cos = scale, sin = 0. Not differentiated.
struct RotaryArgs {
  Tensor positions;
  Tensor inverse_frequency;
  double scale = 1;
  Tensor cos;
  Tensor sin;
};

/// Rotates dims [first_dim, first_dim + 2·half) of x [n, H, d] in place by cos, sin [n, half]: pairs (2i, 2i+1) when
/// interleaved, (i, i + half) when not; `inverse` turns back. Interleaved results stay interleaved. Backward: the
/// inverse rotation of dx, in place.
struct RopeArgs {
  Tensor x;
  Tensor cos;
  Tensor sin;
  std::int64_t first_dim = 0;
  bool interleaved = false;
  bool inverse = false;
};

// ---------------------------------------------------------------- caches and attention (family: attention)

/// Where rows of a cache are: a row of sequence s is slot·rows_per_slot + r.
enum class RowsOf : std::uint8_t {
  kPosition,  // r = position
  kRing,      // r = position mod rows_per_slot: only the last rows_per_slot positions survive
  kEntry,     // r = index of the compressed entry; source rows are those of CompressArgs::out
};

/// Copies rows of src into a cache, converting to its dtype. src [T, w…] (kPosition, kRing) or [max_entries, w…]
/// (kEntry, with `ratio`; rows whose entry did not close in this batch are skipped). cache [slots · rows_per_slot, w…].
/// No gradient. An FP8 cache (f8e4m3) has no scales, which is vLLM's default too: keys, values and latents of these
/// models lie well within ±448, where they are cut, and e4m3 keeps its precision down to 2^-6, so that a scale could
/// win nothing but for rows that are all small. An INT8 cache (i8) has one a head's row, n elements of a cache [rows,
/// n] or [rows, heads, n], which lies behind the row's codes: tensor/int8_rows.h is the contract, and knows where.
struct CacheWriteArgs {
  Tensor src;
  Tensor cache;
  std::int64_t rows_per_slot = 0;
  RowsOf rows = RowsOf::kPosition;
  std::int64_t ratio = 1;
  const Batch* batch = nullptr;
};

/// One stretch of keys and values that queries attend to. Scores are scale · (q[0:dk] · k + q[dk:dk+dr] · k_shared).
struct KvSegment {
  enum class Kind : std::uint8_t {
    kCache,         // rows 0 … position of a kPosition cache that already holds this batch's tokens
    kFresh,         // the batch's own tokens, causal (k, v are [T, …]); the only segment of training
    kRingPast,      // positions position-window+1 … past-1 of a kRing cache that does not yet hold this batch
    kEntries,       // compressed entries e with (e + 1) · ratio <= position + 1, of a kEntry cache
    kFreshEntries,  // the same without a cache: k, v are [max_entries(batch, ratio), …] of this batch, past = 0
  };
  Kind kind = Kind::kCache;
  Tensor k;                        // [rows, kv_heads, dk]
  Tensor k_shared;                 // [rows, dr] read by all heads, or undefined (dr = 0)
  Tensor v;                        // [rows, kv_heads, dv]; may be a view of k's first columns (INT8: with k's scales)
  std::int64_t rows_per_slot = 0;  // caches only
  std::int64_t window = 0;         // kFresh, kRingPast: a token sees itself and window-1 before it; 0: all
  std::int64_t ratio = 1;          // entries only
  Tensor selected;                 // [T, n] i32: only these rows (positions or entry numbers; -1: none); undefined: all
};

/// out[t, h, :] = softmax over all visible rows of all segments (and sink[h], which has no value) of the scores, times
/// v. q [T, H, dk + dr], out [T, H, dv], head h reads kv head h / (H / kv_heads). sink [H] or undefined. lse [T, H] f32
/// (log of the sum of exponentials, sink included) is written when defined: backward needs it. Softmax in f32. A token
/// always sees itself. Price: 2·(dk + dr + dv) FLOPs a visible (token, row, head); q and out once; each segment's
/// visible rows once a sequence. Backward: the flash-attention equations (Dao 2023); sink gets -sum over t of p_sink ·
/// (dout · out). 16-bit keys and values allow a device to round q to their type for its matrix units, 8-bit ones to
/// round q and, of INT8, the rows themselves to bf16. f32 ones are computed with as they are, unless `rounds_to` names
/// a 16-bit type (the weights' that made them): then q, k and v may be rounded to it. `only_products` also promises
/// that nobody reads q again, nor rows of k and v that went into the segment's caches just before.
struct AttentionArgs {
  Tensor q;
  std::span<const KvSegment> segments;  // 1 to 3
  double scale = 1;
  Tensor sink;
  Tensor out;
  Tensor lse;
  const Batch* batch = nullptr;
  std::int32_t sink_parameter = -1;
  DType rounds_to = DType::f32;
  bool only_products = false;
};

/// The lightning indexer: score[t, r] = scale · sum over heads of weights[t, h] · relu(q[t, h] · keys[r]) over the rows
/// of `keys` that t may see (kCache, kFresh, kEntries or kFreshEntries; k is [rows, 1, d]); selected[t, :] = the rows
/// with the largest scores in ascending row order, -1 after the last when fewer are visible. Ties go to the lower row.
/// q [T, Hi, d], weights [T, Hi]. DeepSeek-V3.2 technical report §2.1. Not differentiated: the choice is frozen.
struct IndexSelectArgs {
  Tensor q;
  Tensor weights;
  KvSegment keys;
  double scale = 1;
  Tensor selected;
  const Batch* batch = nullptr;
};

/// Gated pooling of `ratio` tokens into one entry (DeepSeek-V4 §2.3). kv, gate [T, w]; ape [ratio, w] (or undefined) is
/// added to the gate of the token at that place of its window. With overlap (w = 2d) an entry mixes columns [0, d) of
/// the previous window's tokens and columns [d, 2d) of its own; the first window of a sequence has no previous. Without
/// (w = d) it pools its own. Softmax over the tokens, a column at a time. out [max_entries(batch, ratio), d]; positions
/// [same] i32 gets entry · ratio, or -1 for a row whose window did not close in this batch (its out row is zero).
/// Earlier tokens of an open window come from state_kv, state_gate [slots · state_rows, w] (kRing caches of state_rows
/// = ratio or 2·ratio rows; undefined when past is 0 for all). The caller writes the batch's own rows to the state
/// afterwards. Backward (fresh only): through the softmax pooling.
struct CompressArgs {
  Tensor kv, gate, ape;
  Tensor state_kv, state_gate;
  std::int64_t state_rows = 0, ratio = 1;
  bool overlap = false;
  Tensor out, positions;
  const Batch* batch = nullptr;
  std::int32_t ape_parameter = -1;
};

// ---------------------------------------------------------------- feed-forward and experts (family: experts)

/// out = silu(gate) · up, elementwise; with limit > 0 gate is cut at limit from above and up to ±limit first. out may
/// be gate. `only_products` also promises that one product reads out and nobody gate and up again: where products of
/// 16-bit weights have just made them, a device may round them to that type, and their places may hold anything later.
struct SwigluArgs {
  Tensor gate;
  Tensor up;
  double limit = 0;
  Tensor out;
  bool only_products = false;
};
/// out = gelu(x), the tanh form. out may be x.
struct GeluArgs {
  Tensor x;
  Tensor out;
};

enum class Scoring : std::uint8_t { kSoftmax, kSigmoid, kSqrtSoftplus };
/// How groups of experts are ranked: by their best expert (V2) or by the sum of their two best (V3).
enum class GroupRank : std::uint8_t { kMax, kTopTwoSum };
struct Routing {
  Scoring scoring = Scoring::kSoftmax;
  std::int64_t experts = 0, top_k = 0;
  std::int64_t groups = 1, top_groups = 1;
  GroupRank group_rank = GroupRank::kMax;
  bool normalize = false;  // weights divided by their sum (+1e-20)
  double scaling = 1;
};
/// scores = scoring(logits); choice by scores + bias (bias [E] or undefined) within the best groups, or fixed by
/// table [vocabulary, top_k] i64 at ids when the table is defined; weights = scores at the chosen, normalized, scaled.
/// logits [T, E], indices [T, top_k] i32 (best first; ties to the lower expert), weights [T, top_k].
/// Backward: through the weights to dlogits with the choice frozen.
struct RouteArgs {
  Tensor logits;
  Tensor bias;
  Weight table;
  Tensor ids;
  Routing routing;
  Tensor indices;
  Tensor weights;
};

/// out[t] (+)= sum over the chosen experts e of weights[t, j] · down_e(swiglu(gate_e x, up_e x)). gate, up [I, h], down
/// [h, I] an expert; only experts [first_expert, first_expert + gate.size()) are here, others are skipped (their rank
/// adds them). With 8-bit activations (see above; T counts) x is rounded a token, and swiglu's result a (token,
/// expert), or stretches of them. Price: 6·h·I FLOPs a (token, expert); the weights of the experts that are hit, once.
/// Workspace is the backend's own.
struct ExpertsArgs {
  Tensor x;
  Tensor indices, weights;
  std::span<const Weight> gate, up, down;
  std::int64_t first_expert = 0, total_experts = 0;
  double limit = 0;
  Tensor out;
  bool accumulate = false;
};

// ---------------------------------------------------------------- hyper-connections (family: hyper)

/// mHC (DeepSeek-V4 §2.2). streams [T, c, h]. z = fn · flatten(streams) / rms(flatten) with fn [(2 + c)·c, c·h], base
/// [(2 + c)·c], scale [3]: pre = sigmoid(z[0:c]·scale0 + base) + eps; post = 2·sigmoid(z[c:2c]·scale1 + base); comb =
/// softmax rows(z[2c:]·scale2 + base) + eps, made doubly stochastic: columns once, then (iterations - 1) × (rows,
/// columns), each division by (sum + eps). collapsed [T, h] = sum over c of pre · streams; post [T, c]; comb [T, c, c].
/// All in f32 (f64).
struct HyperMixArgs {
  Tensor streams;
  Weight fn;
  Tensor base, scale;
  std::int64_t iterations = 0;
  double eps = 0, norm_eps = 0;
  Tensor collapsed, post, comb;
  std::int32_t base_parameter = -1, scale_parameter = -1;
};
/// out[t, k, :] = post[t, k] · x[t, :] + sum over j of comb[t, j, k] · streams[t, j, :]. out may not be streams.
struct HyperMergeArgs {
  Tensor x;
  Tensor streams;
  Tensor post;
  Tensor comb;
  Tensor out;
};
/// out[t, :] = sum over c of (sigmoid(z · scale + base) + eps) · streams, z as above with fn [c, c·h], base [c], scale
/// [1].
struct HyperHeadArgs {
  Tensor streams;
  Weight fn;
  Tensor base, scale;
  double eps = 0, norm_eps = 0;
  Tensor out;
  std::int32_t base_parameter = -1, scale_parameter = -1;
};

// ---------------------------------------------------------------- loss (family: loss)

/// losses[t] = logsumexp(logits[t]) - logits[t, targets[t]]; a target of -100 is not counted (loss 0). logits [T, V],
/// targets [T] i32, losses [T] f32 (f64). Backward: dlogits += dlosses[t] · (softmax - onehot).
struct CrossEntropyArgs {
  Tensor logits;
  Tensor targets;
  Tensor losses;
};

/// The vocabulary. See the structs above for what each does.
class Ops {
 public:
  virtual ~Ops() = default;

  /// Memory for an activation, 64-byte aligned, contents undefined. Fails only where running never allocates: by our
  /// own bug.
  virtual Tensor allocate(DType dtype, Shape shape) = 0;
  virtual void release(const Tensor& tensor) = 0;
  /// The type activations have on this backend (f32 unless told otherwise).
  virtual DType activation_dtype() const = 0;

  virtual void embed(const EmbedArgs& args) = 0;
  virtual void gather_rows(const GatherRowsArgs& args) = 0;
  virtual void copy(const CopyArgs& args) = 0;
  virtual void add(const AddArgs& args) = 0;
  virtual void expand_streams(const ExpandStreamsArgs& args) = 0;
  virtual void rms_norm(const RmsNormArgs& args) = 0;
  virtual void layer_norm(const LayerNormArgs& args) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void grouped_linear(const GroupedLinearArgs& args) = 0;
  virtual void rotary(const RotaryArgs& args) = 0;
  virtual void rope(const RopeArgs& args) = 0;
  virtual void cache_write(const CacheWriteArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void index_select(const IndexSelectArgs& args) = 0;
  virtual void compress(const CompressArgs& args) = 0;
  virtual void swiglu(const SwigluArgs& args) = 0;
  virtual void gelu(const GeluArgs& args) = 0;
  virtual void route(const RouteArgs& args) = 0;
  virtual void experts(const ExpertsArgs& args) = 0;
  virtual void hyper_mix(const HyperMixArgs& args) = 0;
  virtual void hyper_merge(const HyperMergeArgs& args) = 0;
  virtual void hyper_head(const HyperHeadArgs& args) = 0;
  virtual void cross_entropy(const CrossEntropyArgs& args) = 0;

  /// Runs `block` on `input`. A tape that checkpoints keeps only the input and runs the block again on the way back.
  virtual Value block(const Tensor& input, const std::function<Value(const Tensor&)>& body) { return body(input); }
  /// Whether a tape records: an architecture then keeps what backward needs (lse) and never mutates what it saved.
  virtual bool records() const { return false; }
};

}  // namespace fathom::tensor
