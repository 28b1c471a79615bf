// Kernels: Fathom's own, timed on this machine for a moment, so that a plan can say what they will make of a model.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/spec.h"
#include "plan/cluster.h"

namespace fathom::measure {

/// What is timed: ops of these sizes. The default is a middling model's.
struct KernelShapes {
  struct Matrix {
    std::int64_t rows = 0, cols = 0;
  };
  tensor::WeightFormat format = tensor::WeightFormat::bf16;  // f32, f16 or bf16
  std::vector<Matrix> matrices{{2048, 2048}};                // dense products, as often as they come
  std::int64_t hidden = 2048, inner = 1024;                  // inner: of an expert
  std::int64_t experts = 32, top_k = 4;
  struct Attention {
    std::int64_t kv_heads = 16, k_dim = 128, shared_dim = 0, v_dim = 128;  // shared_dim: of the keys, one for all heads
    bool v_in_k = false;                                                   // values are the first columns of the keys
  };
  std::int64_t heads = 16;
  Attention prefill, decode;  // latent attention decodes over latents
};
/// A model's own. Errors: those of make_architecture.
Result<KernelShapes> shapes_of(const model::ModelSpec& spec, tensor::WeightFormat format);

/// The passes that are of interest: prompts of so many tokens; decoding so many sequences of so many cached rows.
struct KernelLoad {
  std::int64_t tokens = 256, batch = 1, context = 512;
};

/// Times products, experts, attention and elementwise ops of a backend on weights of its own (some 256 MiB, beyond most
/// caches).
class KernelMeter {
 public:
  /// A backend of its own, with the same instruction set and threads as the one that will run. Errors: those of
  /// make_backend, no memory.
  static Result<KernelMeter> create(const std::string& device, const std::string& isa, int threads,
                                    const KernelShapes& shapes);
  KernelMeter(KernelMeter&&) noexcept;
  KernelMeter& operator=(KernelMeter&&) noexcept;
  ~KernelMeter();
  /// One round, some tenths of a second on two cores of 2024; medians of a few repetitions each.
  plan::KernelRates measure(const KernelLoad& load);

 private:
  struct State;
  explicit KernelMeter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// One round on this machine's CPU with middling shapes: a chat of some thousand tokens.
Result<plan::KernelRates> cpu_kernels();

}  // namespace fathom::measure
