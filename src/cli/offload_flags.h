// The flags of verbs that run a model which may not fit on its device.
#pragma once
#include "base/json.h"
#include "measure/offload.h"

namespace fathom::cli {

class FlagSet;  // flags.h

/// --gpu-memory, --offload. `wishes` outlives the parse.
void add_offload_flags(FlagSet& verb, measure::OffloadWishes& wishes);
/// null when nothing is offloaded.
Json offload_json(const std::optional<measure::OffloadReport>& report);

}  // namespace fathom::cli
