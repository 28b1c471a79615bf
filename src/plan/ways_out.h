// Ways out: when something does not fit, the nearest things that do.
#pragma once
#include <vector>

#include "plan/answer.h"

namespace fathom::plan {

/// At most one of each kind, in the order of what they cost a person. Tries; what cannot be planned is left out.
std::vector<WayOut> find_ways_out(const PlanRequest& request, const Candidate& best);

}  // namespace fathom::plan
