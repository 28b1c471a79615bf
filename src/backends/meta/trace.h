// What a pass on `meta` leaves behind: flat records of what was asked for, priced later for any batch and context.
// No strings, no heap, no Result: an evaluation walks these arrays thousands of times a second.
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/collectives.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace fathom::meta {

enum class OpKind : std::uint8_t {
  kEmbed, kGatherRows, kCopy, kAdd, kExpandStreams, kRmsNorm, kLayerNorm, kLinear, kGroupedLinear, kRotary, kRope, kCacheWrite,
  kAttention, kIndexSelect, kCompress, kSwiglu, kGelu, kRoute, kExperts, kHyperMix, kHyperMerge, kHyperHead, kCrossEntropy,
  kAllReduce, kAllGather, kReduceScatter, kAllToAll,
  kZero,
};
inline constexpr int kOpKindCount = 28;
const char* op_name(OpKind kind);

/// One call. Quantities that grow with the batch's tokens are per token ("_per_token"); the rest are fixed. A pass is traced
/// with kTraceTokens tokens in one sequence, a number so chosen that per-token rates come out exact.
struct OpRecord {
  OpKind kind = OpKind::kCopy;
  bool backward = false;
  std::int16_t weight_class = -1;        // model::WeightClass of the weight read, by parameter; -1: none
  float rows_per_token = 1;              // rows of the output a token (1/4 for entries of ratio 4, H for per-head norms)
  std::int64_t rows_fixed = 0;           // rows that do not depend on tokens (outputs: logits of the last token alone)
  std::int64_t n = 0, k = 0;             // linear: outputs, inputs; elementwise: n = width of a row
  std::int64_t groups = 1;               // grouped linear
  std::uint64_t weight_elements = 0;     // read once a call (experts: of all experts here)
  std::uint64_t weight_bytes = 0;        // the same in the native format, scales included
  double flops_per_token = 0;            // without the part that depends on context
  double read_bytes_per_token = 0, written_bytes_per_token = 0;  // activations
  // attention, indexer: what a query sees
  std::int32_t heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0, shared_key_dim = 0;
  std::int64_t window = 0, ratio = 1, top_k = 0;   // top_k: selected rows; 0: all visible
  tensor::KvSegment::Kind segment = tensor::KvSegment::Kind::kCache;  // an attention over two segments leaves two records
  // experts
  std::int32_t experts_here = 0, experts_total = 0, experts_per_token = 0;
  std::int64_t expert_intermediate = 0;
  // communication
  tensor::Group group = tensor::Group::kTensor;
  double comm_bytes_per_token = 0;
};

/// A live-memory event: bytes = per_token · T + fixed.
struct MemoryEvent { double bytes_per_token = 0; std::int64_t bytes_fixed = 0; bool allocate = true; std::uint32_t buffer = 0; };

struct Trace {
  std::vector<OpRecord> ops;
  std::vector<MemoryEvent> events;
};

inline constexpr std::int64_t kTraceTokens = 128 * 15485863;  // a multiple of every compression ratio; its odd part is prime

}  // namespace fathom::meta
