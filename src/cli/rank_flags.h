// The flags of verbs that run a model on several ranks.
#pragma once
#include "measure/ranks.h"

namespace fathom::cli {

class FlagSet;  // flags.h

/// --ranks, --gpus, --tp, --pp, --ep, --dp. `wishes` outlives the parse.
void add_rank_flags(FlagSet& verb, measure::RankWishes& wishes);

}  // namespace fathom::cli
