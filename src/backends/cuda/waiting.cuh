// What CudaOps has been told and has not launched yet: a norm of one row and products of few tokens of one x, or short ops on single tokens.
// They are launched as one with what turns out to go with them. Each op's result is written as its contract says, whatever it was launched with.
#pragma once
#include <optional>

#include "backends/cuda/attention.cuh"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/experts_few.h"
#include "backends/cuda/fresh_latents.h"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/product.cuh"
#include "backends/cuda/route.cuh"
#include "backends/cuda/token_program.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

inline constexpr std::int64_t kMostTokensTogether = 64;  // more fill the device by themselves

class CudaOps::Waiting {
 public:
  bool empty() const { return norm_.from == nullptr && all_.count == 0 && program_.count == 0 && many_count_ == 0 && !rows_.any() && route_tokens_ == 0 && few_tokens_ == 0 && !sums_wait() && !has_parts(); }
  /// A norm of one row that products may follow. Nothing else waits.
  void take(const NormedX& norm) { norm_ = norm, unwritten_ = {}; }
  /// Sums that wait and the norm of what comes out, at once. False: none wait, or not for this norm.
  bool take_sums_into(Context& context, const tensor::RmsNormArgs& norm);
  /// A product of few tokens, one group, an output a row. What does not go with it is launched first.
  void take(Context& context, const Product& product);
  /// A product of many tokens that a sum, others of one x or, if two of those wait, a gate may follow. Nothing else waits.
  void take_many(Context& context, const Product& product);
  /// Whether the two products that wait are a gate and an up whose rounded outputs make `args.out`.
  bool has_gate(const tensor::SwigluArgs& args) const;
  /// Whether a gate and an up that wait are better done as one, of some tokens.
  bool gate_in_one() const { return many_count_ == 2 && many_[0].tokens <= kMostTokensTogether && lies_in_one(many_); }
  /// At most one kind of rows that only products read (ops.h, `only_products`); they are made when the first of these says in which type. A
  /// gate's two products wait for that too. What was promised before is settled.
  void promise(const tensor::RmsNormArgs& norm);
  void promise(const tensor::SwigluArgs& gate);
  /// A product comes; it wants x in `type` (f32: as it is).
  void keep(Context& context, const Product& product, DType type);
  /// Writes a norm's row that was left unwritten, if this product, which did not go with its others, reads it or writes where it came from.
  void write_norm_for(Context& context, const Product& product);
  /// Something else comes: makes as its contract says what no product has asked for.
  void settle(Context& context);
  /// out = a + b, where one product waits whose out is `out` and one of the two. False: it has to be done apart, after launch().
  bool add(Context& context, const tensor::AddArgs& args);
  /// The gate of two products that wait; as above.
  bool swiglu(Context& context, const tensor::SwigluArgs& args);
  /// A short op on the rows of each of `tokens` tokens; what else waits is launched first. `batch`: where rows are written to caches.
  void take(Context& context, const TokenAction& action, std::int64_t tokens, const tensor::Batch* batch = nullptr);
  /// Whether short ops on as many tokens wait.
  bool has_program(std::int64_t tokens) const { return program_.count > 0 && program_.tokens == tokens && !carries_; }
  /// The rotations of q and k of single tokens and the writing of k and v to the cache, where they are all that waits: attention does them on its
  /// way, and they wait no more. Otherwise rows without cosines.
  FreshRows take_rotations(const tensor::AttentionArgs& args);
  /// The product that carries queries into latent space, of one token or of some (can_enter), where what waits is all that latent attention wants
  /// before it (one shape, fresh_latents.h): it waits too. False: it has to be done apart.
  bool carry(const Context& context, const Product& product);
  /// That and what waited before it, if they are this attention's, which does them on its way: they wait no more. Otherwise without q.
  FreshLatents take_latents(const tensor::AttentionArgs& args);
  /// Latent attention of some tokens whose keys were cut into parts (can_leave): the product by head that follows may join them. Nothing else waits.
  void take(const AttentionView& parts) { parts_ = parts; }
  bool has_parts() const { return parts_.part_out != nullptr; }
  /// That product and what waits for it. False: it has to be done apart, after launch().
  bool leave(Context& context, const Product& product);
  /// The choice of experts of a few tokens, which products that do not need it may go before or beside. What else waits is launched first.
  void take(Context& context, const RouteView& route, std::int64_t tokens);
  /// Whether all that waits is the product that makes these logits: of one token, of a normed x, or of some (can_use_some). Then a choice may wait
  /// behind it, and a gate and its up go with the product.
  bool makes(const Context& context, const tensor::Tensor& logits) const;
  void take_after(const RouteView& route, std::int64_t tokens) { route_ = route, route_tokens_ = tokens; }
  /// The second kernel of the experts of a few tokens, which a sum may follow. Nothing else waits.
  void take(const FewExperts& few, std::int64_t tokens) { few_ = few, few_tokens_ = tokens; }
  /// Rotations and cache rows of many tokens, that attention may follow. Nothing else waits.
  void take(Context& context, const tensor::RopeArgs& args);
  void take(Context& context, const tensor::CacheWriteArgs& args);
  bool only_rows() const { return rows_.any(); }
  /// Those, if they make the queries, keys and values of this attention and nobody else reads what they were made from: they are the caller's then.
  std::optional<QkvRows> rows_of(const tensor::AttentionArgs& args);
  void launch(Context& context);
  /// Whether what waits is a choice of experts beside products of some tokens, behind which the hits of `here` experts can be found too; then
  /// launch_gathering does all that.
  bool can_gather(const Context& context, std::int64_t tokens, int here) const;
  void launch_gathering(Context& context, const GatherView& gather);
  /// The adding up of some tokens' experts, which a sum and then a norm may follow. Nothing else waits.
  void take(const CombineView& combine) { combine_ = combine; }

 private:
  bool goes_with_all(const Product& product) const;
  bool add_to_experts(Context& context, const tensor::AddArgs& args);
  /// What waits but a choice of experts.
  void launch_products(Context& context, const GatherView* gather = nullptr);
  bool chooses_beside(const Context& context, int here) const;
  bool sums_wait() const { return sums_.parts != nullptr || combine_.hit != nullptr; }
  bool add_to_combined(const tensor::AddArgs& args);
  bool is_of_route(const float* begin, const float* end) const;
  /// Whether products that wait read or write what the choice of experts that waits does.
  bool touches_route() const;
  /// Launches a choice of experts that waits if the product writes where it reads or writes.
  void keep_route_from(Context& context, const Product& product);
  NormedX norm_;
  NormedX unwritten_;  // the norm of the last products, whose row nobody has written; forgotten when an op other than a product comes
  Together all_;
  TokenProgram program_;
  Product carried_;       // after the program
  bool carries_ = false;
  RouteView route_;
  std::int64_t route_tokens_ = 0;  // 0: none waits
  FewExperts few_;
  std::int64_t few_tokens_ = 0;
  QkvRows rows_;
  AttentionView parts_;  // of attention that has not been joined
  PartialSums sums_;  // of a product; a norm may follow
  CombineView combine_;  // hit null: none waits
  Product many_[kMostTogetherMany];
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
