// What a pass on `meta` leaves behind: flat records of what was asked for, priced later for any batch and context.
// No strings, no heap, no Result: an evaluation walks these arrays thousands of times a second.
//
// A quantity of a pass over T tokens of which O give logits is `per_token · T + per_output · O + fixed`. A pass is
// traced either as one long sequence of kTraceTokens tokens (prefill, training), or as kTraceSequences sequences of one
// token each (decode); both numbers have a large prime factor, so that the rates come out exact.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "tensor/collectives.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace fathom::meta {

enum class OpKind : std::uint8_t {
  kEmbed,
  kGatherRows,
  kCopy,
  kAdd,
  kExpandStreams,
  kRmsNorm,
  kLayerNorm,
  kLinear,
  kGroupedLinear,
  kRotary,
  kRope,
  kCacheWrite,
  kAttention,
  kIndexSelect,
  kCompress,
  kSwiglu,
  kGelu,
  kRoute,
  kExperts,
  kHyperMix,
  kHyperMerge,
  kHyperHead,
  kCrossEntropy,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kZero,
};
inline constexpr int kOpKindCount = 28;
const char* op_name(OpKind kind);

/// per_token · T + per_output · O + fixed.
struct Rate {
  double per_token = 0, per_output = 0, fixed = 0;
  double at(double tokens, double outputs) const { return per_token * tokens + per_output * outputs + fixed; }
  Rate& operator+=(const Rate& other);
  bool operator==(const Rate&) const = default;
};
Rate operator*(const Rate& rate, double factor);

/// One call (an attention over n segments leaves n records, a linear one). A backward record has the kind of its
/// forward.
struct OpRecord {
  OpKind kind = OpKind::kCopy;
  bool backward = false;
  bool weight_gradient = false;    // backward: the product that gives the weight's gradient (sums over tokens)
  bool in_place = false;           // writes one of its inputs
  std::int16_t weight_class = -1;  // model::WeightClass of the weight read, by parameter; -1: none
  Rate rows;                       // rows of the output (1/4 a token for entries of ratio 4, H for per-head norms)
  std::int64_t n = 0, k = 0;       // linear: outputs, inputs; elementwise: n = width of a row, k = 0
  std::int64_t groups = 1;         // grouped linear: [rows, groups, k] x [groups, n, k]
  std::uint64_t weight_elements =
      0;  // read once a call (experts: of all experts here; embed: none, rows are in read_bytes)
  std::uint64_t weight_bytes = 0;                                  // the same in the native format, scales included
  tensor::WeightFormat weight_format = tensor::WeightFormat::f32;  // the native one
  Rate flops;                      // without the part that depends on context: attention and indexer have none here
  Rate read_bytes, written_bytes;  // activations alone; caches are priced by what a query sees
  // attention, indexer: what a query sees. Score and value products: 2·heads·(key_dim + shared_key_dim + value_dim) a
  // visible row.
  std::int32_t heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0, shared_key_dim = 0;
  bool shares_value = false;                      // v is a view of k: its bytes are read once
  std::int64_t window = 0, ratio = 1, top_k = 0;  // top_k: selected rows; 0: all visible
  tensor::KvSegment::Kind segment = tensor::KvSegment::Kind::kCache;
  // experts
  std::int32_t experts_here = 0, experts_total = 0, experts_per_token = 0;
  std::int64_t expert_intermediate = 0;
  // communication: bytes of the rank's own tensor (all_gather, reduce_scatter: of the whole one; all_to_all: of what is
  // sent)
  tensor::Group group = tensor::Group::kTensor;
  Rate comm_bytes;
  // who it reads and writes, as numbers of Trace::buffers (0: not an activation)
  std::array<std::uint32_t, 6> inputs{};
  std::uint32_t output = 0;
};

/// An activation of the trace; views name the buffer that they lie in. Number 0 is unused.
struct BufferRecord {
  Rate bytes;
  std::uint8_t element_bytes = 0;
};

/// A live-memory event, in the order it happened; `after_op` is the number of records made before it.
struct MemoryEvent {
  std::uint32_t buffer = 0;
  bool allocate = true;
  std::uint32_t after_op = 0;
};

struct Trace {
  std::vector<OpRecord> ops;
  std::vector<BufferRecord> buffers;
  std::vector<MemoryEvent> events;
};

/// Bytes alive at once, as the few rates that can be the largest for some (T, O): the peak is their maximum.
struct Peak {
  std::vector<Rate> candidates;
  double at(double tokens, double outputs) const;
};
/// Of buffers allocated within the trace. `held` (optional) receives what is still alive at its end.
Peak live_peak(const Trace& trace, Rate* held = nullptr);

inline constexpr std::int64_t kTraceTokens =
    128 * 15485863;                                    // a multiple of every compression ratio; its odd part is prime
inline constexpr std::int64_t kTraceSequences = 7919;  // prime
inline constexpr std::int64_t kTraceOutputs = 104729;  // prime: rows of logits in a prefill trace

}  // namespace fathom::meta
