// The cheapest rented machine on which a question has a yes.
#pragma once
#include <optional>

#include "plan/answer.h"

namespace fathom::plan {

struct RentedAnswer {
  const hardware::CloudOffer* offer = nullptr;
  double usd_per_hour = 0;  // on demand, the whole machine
  PlanAnswer answer;
};

/// The same request on every cloud machine of the catalog, from the cheapest up, until one fits; nullopt when none
/// does. Machines whose memory cannot hold the weights at all are passed over without planning.
std::optional<RentedAnswer> cheapest_rented(const PlanRequest& request);

}  // namespace fathom::plan
