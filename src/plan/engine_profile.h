// EngineProfile: how an engine runs a model, as data (data/engines/*.json): its lowering (what it fuses and launches), its
// scheduler, its host, and what it keeps in memory. Physical figures only; never a factor a model.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "hardware/catalog.h"

namespace fathom::plan {

/// How requests are put into steps.
enum class Scheduler : std::uint8_t {
  kStatic,        // one batch: prefill as a whole, then decode
  kMixed,         // continuous batching; chunks of prompts ride along with decode steps
  kPrefillFirst,  // continuous batching; waiting prompts stop decoding until they are through
  kOverlapped,    // prompts and decode share a step, prompts whole
};

/// What one logical op becomes. Counts are kernels launched a call, when not fused into a neighbour.
struct Lowering {
  bool fuse_qkv = true, fuse_gate_up = true;      // linears of one input become one product
  bool fuse_residual_norm = true;                 // add + norm in one kernel
  bool fuse_rope_cache = true;                    // rotation and cache write in one kernel
  bool fuse_elementwise = true;                   // what follows a product elementwise costs no launch of its own
  bool graphs = true;                             // decode steps are replayed graphs: no host launch a kernel
  std::int64_t graph_batch = 1 << 30;             // up to this many sequences
  double norm_kernels = 1, rope_kernels = 1, activation_kernels = 1, attention_kernels = 2, experts_kernels = 6, linear_kernels = 1;
  double activation_bytes = 2;                    // of an element that kernels hand to each other
  double experts_launches_per_expert = 0;         // loops over experts (eager): kernels an expert that is hit
};

/// Host work, seconds.
struct HostCosts {
  double launch = 5e-6;              // one kernel, when not replayed
  double step = 0;                   // scheduling, inputs, sampling: a step
  double sequence = 0;               // and a running sequence
  double prompt_token = 0;           // tokenizing and handing over, a token of a prompt
  double request = 0;                // the front: HTTP, queues between processes
  bool overlapped = false;           // host work of step n + 1 runs while the device works on step n
};

/// What an engine holds beside the model.
struct EngineMemory {
  double fraction = 1;               // of the device's memory the engine allows itself (servers: the rest of it becomes cache)
  bool fraction_of_free = false;     // of what is free after weights (TensorRT-LLM), not of the whole
  Bytes context_bytes = 0;           // CUDA context and modules: not in the framework's allocator
  Bytes runtime_bytes = 0;           // communicators, graphs, libraries, a device
  Bytes communicator_bytes = 0;      // and for each communicator when there is more than one device
  Bytes workspace_bytes = 0;         // GEMM and attention workspaces
  double fragmentation = 0;          // of allocated: what the allocator reserves beyond it
  std::int64_t cache_block = 1;      // tokens of a page
  bool preallocates = false;         // the cache takes all room that is left
  std::int64_t logits_rows = 0;      // rows of logits that a prefill holds; 0: one a sequence, -1: all
  std::string kv = "bf16";           // default cache format
};

/// What backward needs of a forward pass, beside each op's own inputs.
struct TrainingSaves {
  bool flash_attention = true;       // no scores are kept
  bool norm_inputs = true;           // of norms: their inputs
  bool norm_outputs = true;          // and what the following products read
  bool activation_inputs = true;     // gate and up of swiglu
  bool activation_outputs = true;    // and what the last product reads
  double logit_bytes = 6;            // bytes a logit that the loss holds at its peak
  std::int64_t logit_chunk = 0;      // tokens of logits at once; 0: all
  double gradient_bytes = 4;         // a trainable parameter
  double master_bytes = 4;           // master copy a trainable parameter; 0: none
  double moment_bytes = 8;           // AdamW
  bool fp8_keeps_bf16 = true;        // fp8 compute: weights stay bf16 as well
};

/// How training steps are overlapped.
struct TrainingSchedule {
  double gradient_overlap = 0.9;     // of the reduction of gradients that hides behind backward, at most
  double gather_overlap = 0.9;       // of gathering parameters
  double tensor_overlap = 0;         // of tensor-parallel collectives behind products
  double expert_overlap = 0;         // of expert all-to-all
  double pipeline_overlap = 0.9;     // of sends between stages
  bool interleaved = true;
};

struct EngineProfile {
  std::string name;
  std::vector<std::string> aliases;
  bool serves = false, trains = false, chats = false;
  bool measured = false;             // parameters were fitted to runs of this engine
  std::vector<std::string> sources;  // of what they were fitted to
  Scheduler scheduler = Scheduler::kStatic;
  std::int64_t max_batched_tokens = 8192;  // of one step
  std::int64_t max_sequences = 1 << 20;
  double speculative_step_overhead = 0;    // of a step, a drafted token
  Lowering lowering;
  HostCosts host;
  EngineMemory memory;
  TrainingSaves saves;
  TrainingSchedule training;

  // Kernels against the hardware's own curve (vendor library = 1): a kind of kernel, never a model.
  std::array<double, hardware::kPrecisionCount> gemm{};  // by precision of the product
  double unpack_gemm = 1;            // products that unpack weights, large: of the product's own rate
  double unpack_stream = 1;          // and streamed (decode): of the bandwidth that plain weights reach
  double attention_prefill = 1, attention_decode = 1;
  double latent_decode = 1;          // absorbed latent attention
  double experts = 1;                // grouped products
  double small_kernel = 1;           // floor of a kernel in a replayed graph
  double all_reduce = 1;             // latency of small all-reduces against the link's one-shot

  // Where its users' requests come from: how far starts cluster, see docs/cost-model.md.
  double burst = 0.1;                // share of a run's requests that start together
  double lockstep = 0;               // how far users stay in step afterwards, 0 … 1
};

/// All profiles, loaded once from data/engines. Thread-safe.
Result<std::span<const EngineProfile>> engine_profiles();
/// By name or alias; unknown is an error that lists the known ones.
Result<const EngineProfile*> find_engine(std::string_view name);

}  // namespace fathom::plan
