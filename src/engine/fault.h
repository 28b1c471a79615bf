// Faults on purpose, for tests of what happens then: FATHOM_FAULT=KIND:RANK[:PASS] makes rank RANK fail at its pass
// number PASS (0: the first). Kinds: "error" (the pass fails), "hang" (it never ends), "kill" (the process dies),
// "memory" (none left when it is made), "device" (a kernel writes where there is no memory; on a backend without a
// device the pass fails), "stall" (what was launched does not go on for two minutes).
#pragma once
#include <cstdint>

#include "engine/spread.h"
#include "tensor/backend.h"

namespace fathom::engine {

Status inject_fault_at_start(int rank);
/// "hang" returns once another rank has noticed.
Status inject_fault(const Seat& seat, std::int64_t pass, tensor::Backend& backend);

}  // namespace fathom::engine
