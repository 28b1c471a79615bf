// What CudaOps has been told and has not launched yet: a norm of one row and products of few tokens of one x, or short ops on single tokens.
// They are launched as one with what turns out to go with them. Each op's result is written as its contract says, whatever it was launched with.
#pragma once
#include <optional>

#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/product.cuh"
#include "backends/cuda/token_program.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

class CudaOps::Waiting {
 public:
  bool empty() const { return norm_.from == nullptr && all_.count == 0 && program_.count == 0 && many_count_ == 0 && !rows_.any(); }
  /// A norm of one row that products may follow. Nothing else waits.
  void take(const NormedX& norm) { norm_ = norm; }
  /// A product of few tokens, one group, an output a row. What does not go with it is launched first.
  void take(Context& context, const Product& product);
  /// A product of many tokens that a sum or, if two of one x wait, a gate may follow. Nothing else waits.
  void take_many(Context& context, const Product& product);
  /// Whether the two products that wait are a gate and an up whose rounded outputs make `args.out`.
  bool has_gate(const tensor::SwigluArgs& args) const;
  /// At most one kind of rows that only products read (ops.h, `only_products`); they are made when the first of these says in which type. A
  /// gate's two products wait for that too. What was promised before is settled.
  void promise(const tensor::RmsNormArgs& norm);
  void promise(const tensor::SwigluArgs& gate);
  /// A product comes; it wants x in `type` (f32: as it is).
  void keep(Context& context, const Product& product, DType type);
  /// Something else comes: makes as its contract says what no product has asked for.
  void settle(Context& context);
  /// out = a + b, where one product waits whose out is `out` and one of the two. False: it has to be done apart, after launch().
  bool add(Context& context, const tensor::AddArgs& args);
  /// The gate of two products that wait; as above.
  bool swiglu(Context& context, const tensor::SwigluArgs& args);
  /// A short op on the rows of each of `tokens` tokens; what else waits is launched first. `batch`: where rows are written to caches.
  void take(Context& context, const TokenAction& action, std::int64_t tokens, const tensor::Batch* batch = nullptr);
  /// Whether short ops on as many tokens wait.
  bool has_program(std::int64_t tokens) const { return program_.count > 0 && program_.tokens == tokens; }
  /// Rotations and cache rows of many tokens, that attention may follow. Nothing else waits.
  void take(Context& context, const tensor::RopeArgs& args);
  void take(Context& context, const tensor::CacheWriteArgs& args);
  bool only_rows() const { return rows_.any(); }
  /// Those, if they make the queries, keys and values of this attention and nobody else reads what they were made from: they are the caller's then.
  std::optional<QkvRows> rows_of(const tensor::AttentionArgs& args);
  void launch(Context& context);

 private:
  bool goes_with_all(const Product& product) const;
  NormedX norm_;
  Together all_;
  TokenProgram program_;
  QkvRows rows_;
  Product many_[2];
  int many_count_ = 0;
  enum class Promise : std::uint8_t { kNone, kNorm, kGate };
  Promise promise_ = Promise::kNone;
  bool kept_ = false;  // in a product's type
  tensor::RmsNormArgs promised_norm_;
  tensor::SwigluArgs promised_gate_;
};

/// Launches a norm that waited in vain.
void launch_norm(Context& context, const NormedX& norm);
/// Any norm, any gate.
void make_norm(Context& context, const tensor::RmsNormArgs& args);
void make_gate(Context& context, const tensor::SwigluArgs& args);

}  // namespace fathom::cuda
