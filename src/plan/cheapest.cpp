#include "plan/cheapest.h"

#include <algorithm>

#include "plan/engine_profile.h"

namespace fathom::plan {

std::optional<RentedAnswer> cheapest_rented(const PlanRequest& request) {
  const auto catalog = hardware::hardware_catalog();
  if (!catalog) return std::nullopt;
  std::vector<const hardware::CloudOffer*> offers;
  for (const hardware::CloudOffer& offer : (*catalog)->offers())
    if (offer.on_demand_usd_per_hour && *offer.on_demand_usd_per_hour > 0) offers.push_back(&offer);
  std::stable_sort(offers.begin(), offers.end(), [](const auto* a, const auto* b) {
    return *a->on_demand_usd_per_hour < *b->on_demand_usd_per_hour;
  });
  const model::ModelSizes& sizes = request.model->sizes();
  // Nothing that Fathom plans with goes below four bits a parameter.
  const Bytes weights =
      request.weights->native ? sizes.checkpoint_bytes - sizes.checkpoint_bytes_mtp : sizes.parameters_main / 2;
  for (const hardware::CloudOffer* offer : offers) {
    const auto choice = (*catalog)->find(offer->accelerator);
    if (!choice) continue;
    auto cluster = make_cluster(*choice, offer->devices);
    if (!cluster || cluster->device.capacity_bytes * static_cast<Bytes>(offer->devices) < weights) continue;
    PlanRequest rented = request;
    rented.cluster = std::move(*cluster);
    rented.layout = {};
    auto answer = make_plan(rented);
    if (answer && answer->best.memory.fits)
      return RentedAnswer{offer, *offer->on_demand_usd_per_hour, std::move(*answer)};
  }
  return std::nullopt;
}

}  // namespace fathom::plan
