// fathom plan: what fits and how fast.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "base/i18n.h"
#include "cli/verbs.h"
#include "plan/batch.h"

namespace fathom::cli {
namespace {

struct Options {
  std::string batch;
  int threads = 0;
} options;

Result<int> run_lines() {
  FATHOM_TRY(const plan::BatchResult result, plan::run_batch(options.batch, options.threads, [](std::string_view text) -> Status {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) return fail_environment("cli.plan.cannot_write");
    return {};
  }));
  (void)result;
  return kExitOk;
}

}  // namespace

void setup_plan(CLI::App& app) {
  app.add_option("--batch", options.batch, tr("cli.plan.batch"));
  app.add_option("--threads", options.threads, tr("cli.plan.threads"))->check(CLI::Range(0, 4096));
}

Result<int> run_plan(const Common&) { return run_lines(); }

}  // namespace fathom::cli
