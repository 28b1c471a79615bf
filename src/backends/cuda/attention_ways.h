// The ways that attention is computed, each with what it asks for; ops_attention.cu takes the first that can.
#pragma once
#include "backends/cuda/attention.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

inline constexpr std::int64_t kLeastKeys = 64;  // of a part

bool one_token_each(const tensor::Batch& batch);
/// The most keys that a token of the batch sees; of single tokens: that one could see.
std::int64_t most_keys(const tensor::AttentionArgs& args);
/// Tiles when every sequence is cut into pieces of tile_tokens.
int tiles_of(const tensor::Batch& batch, int tile_tokens);
/// Cuts the keys so that about `wanted` blocks run, `blocks` of them a part, and takes the parts' room in the
/// workspace.
void cut_keys(Context& context, const tensor::AttentionArgs& args, AttentionView& view, std::int64_t blocks,
              std::int64_t wanted, std::int64_t least_keys = kLeastKeys);

/// attention_clusters.cu: single tokens that could stream the cache (ops_attention.cu), the keys of a key head in parts
/// by the blocks of a cluster. Answers how many parts; 0: better otherwise.
struct FreshRows;
int cluster_parts(const Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
/// Whether they can rotate and write the new rows on their way: a key head's scale wants all of its row, which groups
/// have not in one warp.
bool clusters_make_rows(const AttentionView& view);
void launch_attention_clusters(Context& context, const tensor::AttentionArgs& args, const AttentionView& view,
                               const FreshRows& fresh);
/// attention_groups.cu: the same, where several heads share a key head.
void launch_attention_groups(Context& context, const tensor::AttentionArgs& args, const AttentionView& view,
                             const FreshRows& fresh);

/// attention_flash.cu: many tokens on tensor cores; heads up to 192 wide with values up to 128.
bool can_flash(const Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
void launch_flash(Context& context, const tensor::AttentionArgs& args, AttentionView& view);
/// Whether that will be by Hopper's matrix units, which can take rounded_q.
bool on_hopper(const Context& context, const AttentionView& view);

/// attention_latents.cu: latent attention over a cache whose keys begin with the values.
bool can_share_latents(const Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
void launch_latents(Context& context, const tensor::AttentionArgs& args, AttentionView& view);

/// attention_widened.cu: attention over a cache of 8 bits (one segment, kCache), whose rows that are there are widened
/// to bf16 in the workspace for the ways that know 16 bits (FP8 is exact in it, INT8 times its scale is rounded). It is
/// cut, by sequences and then by key heads, into parts whose rows fit; where not even one key head of one sequence does
/// there are none.
class Widening {
 public:
  explicit Widening(const tensor::AttentionArgs& args);
  int parts() const { return parts_; }
  /// The part as an attention over bf16, its rows at the front of the workspace, which begins anew. Good until the next
  /// call.
  const tensor::AttentionArgs& part(Context& context, int i);
  /// Widens the rows of the last part.
  void launch(Context& context) const;

 private:
  tensor::AttentionArgs whole_, args_;
  tensor::KvSegment segment_;
  tensor::Batch batch_;
  std::int64_t rows_ = 0, sequences_ = 0, kv_heads_ = 0, head_parts_ = 1;  // rows a sequence; of a part
  std::int64_t first_sequence_ = 0, first_token_ = 0, first_head_ = 0;     // of the last part
  int parts_ = 0;
};

/// Joins the parts that keys were cut into, if they were.
void join_attention(Context& context, const AttentionView& view);
/// attention_leave.cu: that and the product by head that follows latent attention of some tokens, in one launch.
struct Product;
bool can_leave(const Context& context, const AttentionView& view);
bool can_leave(const AttentionView& view, const Product& product);
void launch_leave(Context& context, const AttentionView& view, const Product& product);

/// attention_absorbed.cu: that of one token, with what waiting.cuh has of it.
struct FreshLatents;
bool can_absorb(Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
void launch_absorbed(Context& context, const AttentionView& view, const FreshLatents& fresh);

}  // namespace fathom::cuda
