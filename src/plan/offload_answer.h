// What Fathom itself would make of a model that does not fit on one device: weights in host memory (plan/offload.h).
#pragma once
#include <optional>

#include "plan/offload.h"

namespace fathom::plan {

struct PlanRequest;
struct Candidate;

struct OffloadAnswer {
  OffloadCase problem;
  OffloadPlan plan;
  double ttft_ms = 0, tpot_ms = 0;  // of the request's batch
};

/// For a chat on one GPU whose memory `best` exceeds by weights that can leave it; nothing otherwise. Whatever engine
/// was asked about, this is Fathom's. The link is the catalog's; the host's memory and CPU are taken to be
/// OffloadRates' defaults, a desktop's, since a plan knows no other.
std::optional<OffloadAnswer> offload_answer(const PlanRequest& request, const Candidate& best);

}  // namespace fathom::plan
