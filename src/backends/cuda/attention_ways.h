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

/// attention_absorbed.cu: that of one token, with what waiting.cuh has of it.
struct FreshLatents;
bool can_absorb(Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
void launch_absorbed(Context& context, const AttentionView& view, const FreshLatents& fresh);

}  // namespace fathom::cuda
