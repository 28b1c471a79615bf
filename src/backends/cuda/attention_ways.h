// The ways that attention is computed, each with what it asks for; ops_attention.cu takes the first that can.
#pragma once
#include "backends/cuda/attention.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

inline constexpr std::int64_t kLeastKeys = 64;  // of a part

bool one_token_each(const tensor::Batch& batch);
/// Tiles when every sequence is cut into pieces of tile_tokens.
int tiles_of(const tensor::Batch& batch, int tile_tokens);
/// Cuts the keys so that about `wanted` blocks run, `blocks` of them a part, and takes the parts' room in the
/// workspace.
void cut_keys(Context& context, const tensor::AttentionArgs& args, AttentionView& view, std::int64_t blocks,
              std::int64_t wanted, std::int64_t least_keys = kLeastKeys);

/// attention_flash.cu: many tokens on tensor cores; heads up to 192 wide with values up to 128.
bool can_flash(const Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
void launch_flash(Context& context, const tensor::AttentionArgs& args, AttentionView& view);
/// Whether that will be by Hopper's matrix units, which can take rounded_q.
bool on_hopper(const Context& context, const AttentionView& view);

/// attention_latents.cu: latent attention over a cache whose keys begin with the values.
bool can_share_latents(const Context& context, const tensor::AttentionArgs& args, const AttentionView& view);
void launch_latents(Context& context, const tensor::AttentionArgs& args, AttentionView& view);

}  // namespace fathom::cuda
