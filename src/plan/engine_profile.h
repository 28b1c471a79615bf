// EngineProfile: how an engine runs a model, as data (data/engines/*.json): its lowering (what it fuses and launches),
// its kernels, its scheduler and its host. Physical figures only; never a factor a model. What it holds in memory is
// memory_profile.h.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "hardware/catalog.h"

namespace fathom::plan {

/// How requests are put into steps.
enum class Scheduler : std::uint8_t {
  kStatic,        // one batch: prefill as a whole, then decode
  kMixed,         // continuous batching; chunks of prompts ride along with decode steps
  kPrefillFirst,  // continuous batching; waiting prompts stop decoding until they are through
};

/// What one logical op becomes. Counts are kernels launched a call, where it is not fused into a neighbour.
struct Lowering {
  bool fuse_qkv = true, fuse_gate_up = true;  // products of one input become one
  bool fuse_residual_norm = true;             // add + norm in one kernel
  bool fuse_rope_cache = true;                // rotation and cache write in one kernel
  bool graphs = true;                         // decode steps are replayed: no host launch a kernel
  std::int64_t graph_batch = 1 << 20;         // up to this many sequences
  double norm_kernels = 1, rope_kernels = 1, activation_kernels = 1, attention_kernels = 1, experts_kernels = 6;
  double quantize_kernels = 1;  // activations into the product's format, a product (fp8, fp4)
  double expert_launches = 0;   // loops over experts: kernels an expert that is hit
  double other_kernels = 1;     // any other op
  double sampler_bytes = 16;    // memory traffic of sampling, a logit
};

/// Host work, seconds.
struct HostCosts {
  double launch = 5e-6;     // one kernel, when not replayed
  double step = 0;          // scheduling, inputs, outputs: a step
  double sequence = 0;      // and a running sequence
  double prompt_token = 0;  // tokenizing and handing over, a token of a prompt
  double request = 0;       // the front: HTTP, queues between processes
  bool overlapped = false;  // work a step (not a sequence) is done while the device is busy
};

/// How training steps are overlapped.
struct TrainingSchedule {
  double gradient_overlap = 0.9;  // of the reduction of gradients that hides behind backward, at most
  double gather_overlap = 0.9;    // of gathering parameters behind compute
  double tensor_overlap = 0;      // of tensor-parallel collectives behind products
  double expert_overlap = 0;      // of expert all-to-all
  double pipeline_overlap = 0.9;  // of sends between stages
  double step_host = 0;           // seconds a step: data, optimizer launch, logging
  double layer_host = 0;          // seconds a layer and pass when kernels are launched one by one (0: graphs or hidden)
  double gradient_product = 1;    // rate of products that add weight gradients (32-bit sums) against the others
  double optimizer_passes = 1;    // traffic of the optimizer against reading and writing each state once
  double elementwise_passes =
      1;  // traffic of norms, activations and residuals against one pass each (dropout, casts, unfused parts)
  double adapter_passes = 1;  // traffic of adapters against reading what goes in and out of each product once
  bool sequence_parallel = true;
  bool partial_recompute = false;  // full recompute of some layers alone
};

struct EngineProfile {
  std::string name, base;  // base: the profile that the data starts from
  std::vector<std::string> aliases;
  bool serves = false, trains = false, chats = false;
  std::vector<std::string> default_for;  // "chat on gpu", …: taken when no engine is named
  bool measured = false;                 // figures were fitted to runs of this engine
  bool own_kernels = false;              // runs the kernels of this program: Device::kernels speaks of it
  std::vector<std::string> sources;      // which
  Scheduler scheduler = Scheduler::kStatic;
  std::int64_t max_batched_tokens = 8192;  // of one step
  std::int64_t prefill_chunk = 512;        // own kernels: tokens of one prompt that a pass takes
  Lowering lowering;
  HostCosts host;
  TrainingSchedule training;

  // Kernels against the hardware's own curve (the vendor's library = 1): by kind of kernel, never by model.
  std::array<double, hardware::kPrecisionCount> gemm{1, 1, 1, 1, 1, 1, 1, 1};  // by precision of the product
  double unpack_gemm = 1;    // large products of packed weights: of the product's rate
  double unpack_stream = 1;  // and streamed (decode): of the bandwidth that plain weights reach
  double attention_prefill = 1, attention_decode = 1;
  double latent_decode = 1;   // absorbed latent attention
  double experts = 1;         // grouped products
  double product_kernel = 1;  // floor of a product against the hardware's
  double small_kernel = 1;    // floor of the other kernels
  double all_reduce = 1;      // latency of small all-reduces against the link's direct one

  // Routing of tokens to experts, as seen by kernels; the same for all engines unless one balances load itself.
  double expert_independence = 0.85;  // of a batch's tokens, those that choose independently
  double expert_spill = 1.4;          // standard deviations by which the fullest of a group of ranks exceeds the mean
  double expert_imbalance = 0.25;     // of work on the busiest rank above the mean, large batches

  // How its users' requests meet: see docs/cost-model.md.
  double burst = 0.1;     // share of a run's requests that start together
  double spread = 0.3;    // part of their cycle over which users are spread afterwards (0: fixed lengths, in step)
  double poll_steps = 1;  // decode steps between two looks at the queue of new requests
  bool reserves_output = false;   // caches are set aside for a request's whole output when it is admitted
  double replica_stalls = 0.5;    // prompts of n attention replicas stop a user n^this as often as those of one
  double replica_wait_steps = 0;  // decode steps that a prompt waits for prompts of the other attention replicas
  double offline_step = 0;        // seconds of host work a step without the server around it (chat); 0: as host.step
  double packed_launch = 1;       // of the launches, what remains with packed weights (their kits fuse modules)
};

/// All profiles, loaded once from data/engines. Thread-safe.
Result<std::span<const EngineProfile>> engine_profiles();
/// By name or alias; unknown is an error that lists the known ones.
Result<const EngineProfile*> find_engine(std::string_view name);
/// When nobody names one: the first profile that is `default_for` "<task> on cpu" or "<task> on gpu".
Result<const EngineProfile*> default_engine(std::string_view task, bool on_cpu);

}  // namespace fathom::plan
