#include "cli/rank_flags.h"

#include <CLI/CLI.hpp>

#include "base/i18n.h"

namespace fathom::cli {

void add_rank_flags(CLI::App& app, measure::RankWishes& wishes) {
  const auto most = CLI::Range(1, 4096);
  app.add_option("--ranks", wishes.ranks, tr("cli.ranks.ranks"))->check(most);
  app.add_option("--gpus", wishes.gpus, tr("cli.ranks.gpus"))->check(most);
  app.add_option("--tp", wishes.tp, tr("cli.ranks.tp"))->check(most);
  app.add_option("--pp", wishes.pp, tr("cli.ranks.pp"))->check(most);
  app.add_option("--ep", wishes.ep, tr("cli.ranks.ep"))->check(most);
  app.add_option("--dp", wishes.dp, tr("cli.ranks.dp"))->check(most);
}

}  // namespace fathom::cli
