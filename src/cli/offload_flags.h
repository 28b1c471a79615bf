// The flags of verbs that run a model which may not fit on its device.
#pragma once
#include "base/json.h"
#include "measure/offload.h"

namespace CLI {
class App;
}

namespace fathom::cli {

/// --gpu-memory, --offload. `wishes` outlives the parse.
void add_offload_flags(CLI::App& app, measure::OffloadWishes& wishes);
/// null when nothing is offloaded.
Json offload_json(const std::optional<measure::OffloadReport>& report);

}  // namespace fathom::cli
