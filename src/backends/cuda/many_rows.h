// Prefill: ops over many dense rows that also round what they make for the product that comes next (context.h,
// RoundedActivations).
#pragma once
#include "backends/cuda/context.h"
#include "tensor/ops.h"

namespace fathom::cuda {

struct Product;
/// A product with 16-bit weights whose out is rounded to their type, in the place of the f32 rows: rows of as many
/// elements.
void multiply_many_rounded(Context& context, const Product& p);
/// x of a product with 16-bit weights, in their type, dense: what was kept or, else, rounded now.
const std::byte* rounded_rows(Context& context, const Product& p);

/// A product of some tokens whose columns were cut in parts, which are yet to be added up: out = the parts + added.
/// [tokens, n], rows of out and added n apart, a part's dense.
struct PartialSums {
  const float* parts = nullptr;  // null: there are none
  int count = 0;
  std::int64_t tokens = 0, n = 0;
  const float* added = nullptr;
  float* out = nullptr;
};
/// The parts, in the workspace, of a product that something is added to; none where it is better done whole.
PartialSums multiply_in_parts(Context& context, const Product& p);
void add_up(Context& context, const PartialSums& sums);
/// That and the norm of what comes out, which a product will read, in one launch. False: nothing was launched.
bool add_up_and_norm(Context& context, const PartialSums& sums, const tensor::RmsNormArgs& norm);

/// A gate and its up whose weights lie one after the other, as one product: rows of both, in the weights' type, in the
/// place of the gate's. `products`: the two.
bool lies_in_one(const Product* products);
void multiply_gate_and_up(Context& context, const Product* products);

/// Rows x [tokens, width], f32, in `type` where they are kept so; null: they are not.
const std::byte* kept_rounded(const Context& context, const tensor::Tensor& x, DType type);

/// Where rows x [tokens, width] (dense, f32) are to be rounded to, if they are many and a product has rounded before;
/// null: nowhere. Whoever asks writes both and then tells with keep_rounded.
std::byte* room_to_round(const Context& context, const tensor::Tensor& x);
void keep_rounded(Context& context, const tensor::Tensor& x);
void keep_rounded(Context& context, const tensor::Tensor& x, DType type);

/// The same of a norm's result, where sums make its rows on the way: null where its shape is not for that.
std::byte* room_to_round(const Context& context, const tensor::RmsNormArgs& norm);

/// False: not for these; nothing was launched.
bool norm_and_round(Context& context, const tensor::RmsNormArgs& args);
bool gate_and_round(Context& context, const tensor::SwigluArgs& args);
/// Whether the rows can be made in a product's type alone, by the next two.
bool can_only_round(const tensor::RmsNormArgs& args);
bool can_only_round(const tensor::SwigluArgs& args, bool some);  // some: also where tokens are not many
void round_norm(Context& context, const tensor::RmsNormArgs& args, DType type);
/// gate and up are rows of that type already, dense, at their tensors' addresses; or, in one, each gate before its up.
void round_gate(Context& context, const tensor::SwigluArgs& args, DType type, bool in_one = false);
/// Halves rotated against each other, four pairs a thread.
bool rotate_many(Context& context, const tensor::RopeArgs& args);
bool can_rotate_many(const tensor::RopeArgs& args);
/// Rows of a cache (kPosition, kRing) that lie in one piece, eight elements a thread.
bool write_many(Context& context, const tensor::CacheWriteArgs& args);
bool can_write_many(const tensor::CacheWriteArgs& args);

/// What prepares attention: queries and keys rotated, keys and values written to caches, in this order.
struct QkvRows {
  tensor::RopeArgs rotations[2];
  tensor::CacheWriteArgs writes[2];
  int rotation_count = 0, write_count = 0;
  bool any() const { return rotation_count + write_count > 0; }
};
/// Whether these are the rotations and writes of exactly this attention's queries, keys and values, such that
/// store_rows can take them.
bool fit(const QkvRows& rows, const tensor::AttentionArgs& args);
/// All four in one launch; keys and values go to the caches alone, and queries to the workspace: [tokens, heads, width]
/// times scale · log2(e), in the caches' type.
std::byte* store_rows(Context& context, const QkvRows& rows, const tensor::AttentionArgs& args);

}  // namespace fathom::cuda
