// MemoryProfile: what an engine holds in memory beside the model itself, as data (data/memory/*.json). It carries
// everything about memory that differs between engines; EngineProfile (engine_profile.h) needs no memory fields of its
// own. Every field is a cause that can be read in the engine's code or seen in its allocator, never a correction of a
// model or a row.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace fathom::plan {

/// How the room for caches is taken.
enum class CachePool : std::uint8_t {
  kAsNeeded,          // grows with the sequences
  kStatic,            // for the whole context, at the start
  kFractionOfDevice,  // weights, activations and caches together take this share of the device (vLLM)
  kFractionStatic,    // weights and caches together do (SGLang)
  kFractionOfFree,    // caches take this share of what is free after everything else (TensorRT-LLM)
};

/// What one op keeps for the way back, beside tensors that another op keeps already.
struct SavedByOp {
  bool input = false;        // its inputs
  double output_copies = 0;  // copies of its output's size that its own formula keeps
  double output_bytes = 0;   // bytes of an element of such a copy
};

struct MemoryProfile {
  std::string name, base;  // base: the profile that the data starts from
  // ---- the process
  Bytes context_bytes = 0;           // driver context and loaded kernels: in total, not in the allocator
  Bytes communicator_bytes = 0;      // for each group of more than one rank
  Bytes workspace_bytes = 0;         // of matrix libraries, inside the allocator
  Bytes workspace_bytes_hopper = 0;  // the same on compute capability 9.0 and above; 0: as workspace_bytes
  double fragmentation = 0;          // reserved - allocated, as a share of what is not weights
  // ---- inference: caches
  CachePool pool = CachePool::kAsNeeded;
  double fraction = 1;
  std::string kv = "bf16";          // default cache format
  std::int64_t block_tokens = 1;    // a sequence's cache grows in such steps
  bool concatenates = false;        // growing copies one layer's keys: old and new live at once
  bool continues_on_cache = false;  // later chunks of a prompt attend to the cache itself, also where it is latent
  bool follows_tape = false;        // training keeps what Fathom's own tape keeps
  bool expands_heads = false;       // keys and values of a layer are repeated for every query head
  // ---- inference: activations
  std::int64_t chunk_tokens = 0;     // tokens of one pass at most; 0: the whole batch's prompts at once
  std::int64_t max_sequences = 0;    // of one step; 0: no limit
  double activation_bytes = 2;       // of an element
  double held_hidden = 0;            // hidden-wide tensors that callers hold beside what the trace shows
  bool reuses_gate = true;           // silu(gate) · up takes gate's place; else one more tensor
  double norm_bytes = 0;             // bytes an element that a norm holds beside input and output (f32 copies)
  bool all_logits = false;           // logits of every token of a pass, else one row a sequence
  double logit_bytes = 4;            // bytes a logit at the peak
  double graph_bytes_per_layer = 0;  // of captured graphs
  // ---- training: states
  double weight_bytes = 2;             // a trainable parameter's stored weight
  double gradient_bytes = 2;           // its gradient
  double master_bytes = 4;             // a master copy beside the stored weight; 0: none
  double moment_bytes = 8;             // AdamW
  std::vector<int> zero_stages{0, 1};  // that the engine has; the first is its default
  bool gradients_persist = true;       // gradient buffers are there from the start, else only from backward to the step
  double gathered_layers = 2;          // ZeRO 3: layers whose whole weights are there at once, in the compute type
  double gathered_parameters =
      0;  // and at least so many parameters (DeepSpeed's stage3_max_live_parameters), as far as there are
  double reduce_bytes = 4;               // ZeRO 2 and 3: bytes an element of one layer's gradient before it is sharded
  Bytes bucket_bytes = 0;                // communication buckets
  bool offload_takes_gradients = false;  // optimizer offload moves gradients to the host as well
  bool offload_takes_checkpoints = false;  // and what full recompute keeps
  // ---- training: activations, by op (tensors that two ops keep count once)
  SavedByOp linear{true, 0, 0}, norm{true, 0, 0}, rope{false, 0, 0}, attention{true, 1, 2}, activation{true, 0, 0},
      residual{false, 0, 0}, experts{true, 0, 0};
  double dropout_bytes = 0;                  // an element of the residual stream, twice a layer
  double fp8_input_bytes = 1;                // fp8 products: bytes an element of their kept inputs
  std::vector<std::string> selective_keeps;  // "attention", "every_second_linear": what selective recompute keeps; the
                                             // rest is computed again
  double loss_logit_bytes = 6;               // bytes a logit at the loss's peak
  std::int64_t loss_chunk_tokens = 0;        // tokens of logits at once; 0: all of a micro-batch
};

/// By the engine's name; one without data of its own answers the profile it falls back to. `variant` ("cpu", "full"):
/// the engine's profile for that when it has one. Errors are those of the data file.
Result<const MemoryProfile*> memory_profile(std::string_view engine, std::string_view variant = {});

}  // namespace fathom::plan
