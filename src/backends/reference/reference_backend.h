// Backend `reference`: every op and its backward in plain C++, sums in double, one thread. The oracle that fast
// backends are compared with, itself compared with transformers through the golden files. Slow and meant to be.
#pragma once
#include <memory>

#include "tensor/backend.h"

namespace fathom::reference {

/// Activations f32, f64, f16 or bf16; anything else: kUnsupported "reference.activation_dtype". `threads` and `isa` are
/// ignored. Bit-identical from run to run. Workspace 0: it takes what it needs from the heap.
Result<std::unique_ptr<tensor::Backend>> make_reference_backend(tensor::BackendOptions options);

}  // namespace fathom::reference
