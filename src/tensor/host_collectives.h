// Collectives over a transport, on host memory: plain, and the same bits every time. What CPUs use, and the twin of the
// devices' own.
#pragma once
#include <memory>

#include "tensor/collectives.h"
#include "tensor/transport.h"

namespace fathom::tensor {

/// Sums are of f32 or f64, rank after rank in the group's order. A small tensor goes whole to everybody; of a large one
/// each rank sums its part and gives it to the others: the same order, so the same bits.
std::unique_ptr<Collectives> make_host_collectives(std::shared_ptr<Transport> transport, GroupMembers members);

}  // namespace fathom::tensor
