// Program: what an engine launches for a pass over a model, lowered from records: products of one input become one,
// elementwise neighbours merge, and each kernel carries only what its price needs.
#pragma once
#include <vector>

#include "backends/meta/trace.h"
#include "plan/cost_model.h"
#include "plan/cost_rates.h"

namespace fathom::plan {

struct Kernel {
  enum class Kind : std::uint8_t { kProduct, kElementwise, kAttention, kIndexer, kExperts, kReduce, kGather };
  Kind kind = Kind::kElementwise;
  bool phase_bound = false;  // stays with its phase when prompts and decodes share a step
  bool weight_gradient = false, backward = false, frozen = false;
  bool unpacks = false, latent = false, is_head = false;
  bool sequence = false;  // works on the residual stream: split by sequence parallelism
  hardware::Precision precision = hardware::Precision::bf16;
  float launches = 1;
  float repeats = 1;              // layers
  meta::Rate rows, flops, bytes;  // bytes: activations read and written
  meta::Rate apart;               // bytes of a kernel of its own beside this one: casts into the product's format
  double weight_bytes = 0, weight_elements = 0;
  // attention, indexer
  double row_bytes = 0;  // cache bytes a visible row, one sequence
  double row_flops = 0;  // a visible row and query token
  double window = 0, ratio = 1, top_k = 0;
  bool ring = false, fresh = false;
  // experts
  double experts_here = 0, experts_total = 0, experts_per_token = 0, expert_flops = 0;  // flops: one token, one expert
  // communication
  tensor::Group group = tensor::Group::kTensor;
};

struct Program {
  std::vector<Kernel> kernels;
  double launches = 0;  // kernels of one pass, when nothing is replayed
};

/// What lowering needs beside records.
struct LowerInputs {
  const EngineProfile* engine = nullptr;
  const WeightFormatRule* weights = nullptr;
  const WeightBytes* bytes = nullptr;
  const KvFormat* kv = nullptr;
  const Rates* rates = nullptr;
  Phase phase = Phase::kPrefill;
  bool adapters = false;                       // LoRA: frozen weights have no gradients
  std::optional<hardware::Precision> compute;  // training: of the products
};

/// Appends the kernels of `trace`, run `repeats` times in a pass.
void lower_trace(const meta::Trace& trace, double repeats, const LowerInputs& inputs, bool head, Program& program);

/// Bytes of the cache a visible row costs to read, of this record's segment.
double cache_row_bytes(const meta::OpRecord& op, const KvFormat* kv);

}  // namespace fathom::plan
