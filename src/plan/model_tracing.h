// Running an architecture on meta: one layer of each kind, or all of them.
#pragma once
#include "plan/model_trace.h"

namespace fathom::plan {

/// Places fake constants, so that begin() works on meta. Once an architecture.
void bind_fake_constants(model::Architecture& share);
/// One layer of each kind. `share` must have its constants bound.
ModelTrace trace_model(const model::Architecture& share, Phase phase, DType activations);

/// The whole forward pass as one trace, of `tokens` tokens in one sequence (for holding the shortcut against). tokens
/// 0: with rates.
meta::Trace trace_whole(const model::Architecture& share, Phase phase, DType activations, std::int64_t tokens);

}  // namespace fathom::plan
