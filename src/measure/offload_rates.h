// Rates that an offload is planned by, measured on the machine that will do it.
#pragma once
#include "model/architecture.h"
#include "plan/offload.h"
#include "tensor/backend.h"
#include "weights/storage.h"

namespace fathom::measure {

/// One layer's routed experts on this rank, as they are stored. count 0: none.
struct ExpertShape {
  std::int64_t count = 0, total = 0, top_k = 0, hidden = 0, inner = 0;
  tensor::WeightFormat gate = tensor::WeightFormat::bf16, down = tensor::WeightFormat::bf16;
};
ExpertShape experts_of(const model::Architecture& architecture, const weights::StoragePolicy& storage);

/// The link and the handover by copies of `device`, experts by ops of `host` (null: as they are) on up to a GiB of
/// them, for the passes of `problem`. Some tenths of a second. Errors: no memory.
Result<plan::OffloadRates> measure_offload_rates(tensor::Backend& device, tensor::Backend* host,
                                                 const ExpertShape& experts, const plan::OffloadCase& problem);

}  // namespace fathom::measure
