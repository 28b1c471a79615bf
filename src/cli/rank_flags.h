// The flags of verbs that run a model on several ranks.
#pragma once
#include "measure/ranks.h"

namespace CLI {
class App;
}

namespace fathom::cli {

/// --ranks, --gpus, --tp, --pp, --ep, --dp. `wishes` outlives the parse.
void add_rank_flags(CLI::App& app, measure::RankWishes& wishes);

}  // namespace fathom::cli
