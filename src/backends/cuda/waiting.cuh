// What CudaOps has been told and has not launched yet: a norm of one row and products of few tokens of one x, or short ops on single tokens.
// They are launched as one with what turns out to go with them. Each op's result is written as its contract says, whatever it was launched with.
#pragma once
#include "backends/cuda/attention.cuh"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/experts_few.h"
#include "backends/cuda/product.cuh"
#include "backends/cuda/route.cuh"
#include "backends/cuda/token_program.cuh"

namespace fathom::cuda {

class CudaOps::Waiting {
 public:
  bool empty() const { return norm_.from == nullptr && all_.count == 0 && program_.count == 0 && !has_many_ && route_tokens_ == 0 && few_tokens_ == 0; }
  /// A norm of one row that products may follow. Nothing else waits.
  void take(const NormedX& norm) { norm_ = norm; }
  /// A product of few tokens, one group, an output a row. What does not go with it is launched first.
  void take(Context& context, const Product& product);
  /// A product of many tokens that a sum may follow. Nothing else waits.
  void take_many(const Product& product) { many_ = product, has_many_ = true; }
  /// out = a + b, where one product waits whose out is `out` and one of the two. False: it has to be done apart, after launch().
  bool add(Context& context, const tensor::AddArgs& args);
  /// The gate of two products that wait; as above.
  bool swiglu(Context& context, const tensor::SwigluArgs& args);
  /// A short op on the rows of each of `tokens` tokens; what else waits is launched first. `batch`: where rows are written to caches.
  void take(Context& context, const TokenAction& action, std::int64_t tokens, const tensor::Batch* batch = nullptr);
  /// Whether short ops on as many tokens wait.
  bool has_program(std::int64_t tokens) const { return program_.count > 0 && program_.tokens == tokens; }
  /// The rotations of q and k of single tokens and the writing of k and v to the cache, where they are all that waits: attention does them on its
  /// way, and they wait no more. Otherwise rows without cosines.
  FreshRows take_rotations(const tensor::AttentionArgs& args);
  /// The choice of experts of a few tokens, which products that do not need it may go before or beside. What else waits is launched first.
  void take(Context& context, const RouteView& route, std::int64_t tokens);
  /// The second kernel of the experts of a few tokens, which a sum may follow. Nothing else waits.
  void take(const FewExperts& few, std::int64_t tokens) { few_ = few, few_tokens_ = tokens; }
  void launch(Context& context);

 private:
  bool goes_with_all(const Product& product) const;
  bool add_to_experts(Context& context, const tensor::AddArgs& args);
  /// What waits but a choice of experts.
  void launch_products(Context& context);
  bool is_of_route(const float* begin, const float* end) const;
  /// Whether products that wait read or write what the choice of experts that waits does.
  bool touches_route() const;
  /// Launches a choice of experts that waits if the product writes where it reads or writes.
  void keep_route_from(Context& context, const Product& product);
  NormedX norm_;
  Together all_;
  TokenProgram program_;
  Product many_;
  bool has_many_ = false;
  RouteView route_;
  std::int64_t route_tokens_ = 0;  // 0: none waits
  FewExperts few_;
  std::int64_t few_tokens_ = 0;
};

/// Launches a norm that waited in vain.
void launch_norm(Context& context, const NormedX& norm);

}  // namespace fathom::cuda
