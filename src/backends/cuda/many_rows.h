// Prefill: ops over many dense rows that also round what they make for the product that comes next (context.h,
// RoundedActivations).
#pragma once
#include "backends/cuda/context.h"
#include "tensor/ops.h"

namespace fathom::cuda {

/// Where rows x [tokens, width] (dense, f32) are to be rounded to, if they are many and a product has rounded before;
/// null: nowhere. Whoever asks writes both and then tells with keep_rounded.
std::byte* room_to_round(const Context& context, const tensor::Tensor& x);
void keep_rounded(Context& context, const tensor::Tensor& x);

/// False: not for these; nothing was launched.
bool norm_and_round(Context& context, const tensor::RmsNormArgs& args);
bool gate_and_round(Context& context, const tensor::SwigluArgs& args);
/// Halves rotated against each other, four pairs a thread.
bool rotate_many(Context& context, const tensor::RopeArgs& args);
/// Rows of a cache (kPosition, kRing) that lie in one piece, eight elements a thread.
bool write_many(Context& context, const tensor::CacheWriteArgs& args);

}  // namespace fathom::cuda
