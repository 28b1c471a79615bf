// Faults on purpose, for tests of what happens then: FATHOM_FAULT=KIND:RANK[:PASS] makes rank RANK fail at its pass number PASS (0: the
// first). Kinds: "error" (the pass fails), "hang" (it never ends), "kill" (the process dies), "memory" (none left when it is made).
#pragma once
#include <cstdint>

#include "engine/spread.h"

namespace fathom::engine {

Status inject_fault_at_start(int rank);
/// "hang" returns once another rank has noticed.
Status inject_fault(const Seat& seat, std::int64_t pass);

}  // namespace fathom::engine
