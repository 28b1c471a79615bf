#include "cli/rank_flags.h"

#include "base/i18n.h"
#include "cli/flags.h"

namespace fathom::cli {

void add_rank_flags(FlagSet& verb, measure::RankWishes& wishes) {
  constexpr int kMost = 4096;
  verb.option("--ranks", wishes.ranks, tr("cli.ranks.ranks")).within(1, kMost);
  verb.option("--gpus", wishes.gpus, tr("cli.ranks.gpus")).within(1, kMost);
  verb.option("--tp", wishes.tp, tr("cli.ranks.tp")).within(1, kMost);
  verb.option("--pp", wishes.pp, tr("cli.ranks.pp")).within(1, kMost);
  verb.option("--ep", wishes.ep, tr("cli.ranks.ep")).within(1, kMost);
  verb.option("--dp", wishes.dp, tr("cli.ranks.dp")).within(1, kMost);
}

}  // namespace fathom::cli
