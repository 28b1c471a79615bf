// Collectives `self`: one rank alone. Sums are what they are, gathers and exchanges are copies.
#pragma once
#include <memory>

#include "tensor/collectives.h"

namespace fathom::self {

/// Host memory only; tensors are dense. Every group has size 1 and rank 0. Nothing can fail.
std::unique_ptr<tensor::Collectives> make_self_collectives();

}  // namespace fathom::self
