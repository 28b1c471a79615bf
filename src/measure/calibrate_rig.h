// Rig: a backend with random weights, room for activations, and a clock.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tensor/backend.h"

namespace fathom::measure {

/// The formats that a device's products are timed in, and sizes that fit it.
struct Grid {
  std::vector<double> tokens;                  // of products
  std::vector<double> widths;                  // outputs and inputs
  std::vector<double> few_tokens, few_widths;  // of the formats after the first
  std::vector<std::string> formats;            // the first in full
  std::vector<double> streams, keys, groups;   // decode attention
  std::vector<double> chunk_tokens, reaches, chunk_heads, chunk_groups;
  std::vector<double> sequences, latent_keys, latent_heads, latent_tokens, latent_chunk_heads, latent_reaches,
      expanded_tokens;
  std::vector<double> row_tokens, row_queries, row_keys;
  std::vector<double> expert_tokens, expert_hidden, expert_inner, expert_choices;
  std::vector<double> route_tokens, route_experts;
  std::vector<double> bytes, reduce_bytes, step_bytes;
  std::int64_t experts = 64;
  std::vector<double> one_heads, one_groups;  // one sequence's attention among products; empty: it is not timed so
  bool route_beside = false;                  // a choice is timed with a product that it may go beside
  double eager_tokens = 128;                  // from so many on passes are prompts: not recorded
  Bytes weights = 0, activations = 0;         // pools
  double seconds = 1e-3;                      // that a run lasts at least
  double cold = 128e6;                        // bytes that it reads at least: more than a processor's cache holds
  int runs = 3;
};
Grid full_grid(bool accelerator);
Grid quick_grid();

class Rig {
 public:
  static Result<std::unique_ptr<Rig>> make(const std::string& device, const tensor::BackendOptions& options,
                                           const Grid& grid);
  static Result<std::unique_ptr<Rig>> make(std::unique_ptr<tensor::Backend> backend, const Grid& grid);

  tensor::Backend& backend() { return *backend_; }
  tensor::Ops& ops() { return backend_->ops(); }

  /// The next stretch of the pool as a weight: one that was not used for long.
  tensor::Weight weight(tensor::WeightFormat format, std::int64_t rows, std::int64_t cols);
  /// Activations of one point; forget() begins the next.
  tensor::Tensor tensor(DType dtype, tensor::Shape shape);
  Status forget();
  /// A 16-bit cache, [rows, …]; a new place each call, so that no processor's cache holds it.
  tensor::Tensor cache(tensor::Shape shape);
  /// Integers that the device reads, from the host.
  tensor::Tensor table(const std::vector<std::int32_t>& values, tensor::Shape shape);

  /// Sequences of `tokens` tokens each after `past` others, with their tables; valid until forget().
  struct Tokens {
    std::vector<tensor::Sequence> sequences;
    tensor::Batch batch;
  };
  std::unique_ptr<Tokens> tokens(std::int64_t sequences, std::int64_t tokens, std::int64_t past);

  /// Seconds of one call of `body`, which launches ops: the median of a few runs, each of as many calls as take the
  /// grid's time, less what an empty run takes. `recorded`: as the backend replays passes. `cold`: bytes of weights and
  /// caches a call; a run is long enough to read more of them than a processor's cache holds. `body` is told the number
  /// of its call.
  Result<double> time(bool recorded, double cold, const std::function<void(int)>& body);
  /// Of one call of `body`, with all that the host does: the median of so many.
  Result<double> time_calls(int calls, const std::function<Status()>& body);

 private:
  explicit Rig(Grid grid) : grid_(std::move(grid)) {}
  Status fill();
  Result<double> run(std::uint64_t key, int calls, const std::function<void(int)>& body);

  Grid grid_;
  std::unique_ptr<tensor::Backend> backend_;
  std::unique_ptr<tensor::Buffer> weights_, activations_, scales_;
  Bytes next_weight_ = 0, used_ = 0, next_cache_ = 0;
  std::uint64_t next_key_ = 1;
  double empty_[2] = {0, 0};  // seconds of a run without calls: launched, recorded
};

}  // namespace fathom::measure
