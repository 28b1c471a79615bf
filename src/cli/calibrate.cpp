// fathom calibrate: this machine's own figures, for plans.
#include "measure/calibrate.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "base/i18n.h"
#include "base/json.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/verbs.h"

namespace fathom::cli {
namespace {

struct CalibrateFlags {
  measure::CalibrateOptions options;
  std::string out;
};
CalibrateFlags calibrate_flags;

double best_rate(const plan::MeasuredTable& table, const std::vector<double>& of) {
  double best = 0;
  for (std::size_t i = 0; i < of.size(); ++i) best = std::max(best, of[i] / table.seconds[i]);
  return best;
}

/// What a person looks for first: bandwidths and rates of each family.
void print_tables(const plan::Calibration& made) {
  Table table({{tr("cli.calibrate.col_family")},
               {tr("cli.calibrate.col_format")},
               {tr("cli.calibrate.col_points"), Align::kRight},
               {tr("cli.calibrate.col_least"), Align::kRight},
               {tr("cli.calibrate.col_bytes"), Align::kRight},
               {tr("cli.calibrate.col_flops"), Align::kRight}});
  for (const plan::MeasuredTable& t : made.tables) {
    const double bytes = best_rate(t, t.bytes), flops = best_rate(t, t.flops);
    table.add_row(
        {tr("cli.calibrate.family_" + std::string(plan::family_name(t.family))), t.format, std::to_string(t.points()),
         fmt::format("{:.1f}", 1e6 * *std::min_element(t.seconds.begin(), t.seconds.end())),
         bytes > 0 ? fmt::format("{:.1f}", bytes / kGB) : "", flops > 0 ? fmt::format("{:.2f}", flops / 1e12) : ""});
  }
  std::fputs(table.render().c_str(), stdout);
}

}  // namespace

void setup_calibrate(FlagSet& verb) {
  verb.option("--device", calibrate_flags.options.device, tr("cli.calibrate.device"));
  verb.option("--gpus", calibrate_flags.options.gpus, tr("cli.calibrate.gpus")).within(1, 64);
  verb.option("--threads", calibrate_flags.options.threads, tr("cli.calibrate.threads")).within(1, 4096);
  const Flag output = verb.option("-o,--output", calibrate_flags.out, tr("cli.calibrate.output"));
  verb.flag("--quick", calibrate_flags.options.quick, tr("cli.calibrate.quick"))
      .needs(output);  // never this machine's profile
}

Result<int> run_calibrate(const Common& common) {
  if (calibrate_flags.options.gpus > 1 && calibrate_flags.options.device != "cuda")
    return fail("ranks.gpus_device",
                {{"gpus", std::to_string(calibrate_flags.options.gpus)}, {"device", calibrate_flags.options.device}});
  std::unique_ptr<Progress> bar;
  calibrate_flags.options.progress = [&](std::size_t done, std::size_t all) {
    if (!bar) bar = std::make_unique<Progress>(tr("cli.calibrate.measuring"), all);
    bar->update(done);
  };
  FATHOM_TRY(const plan::Calibration made, measure::calibrate(calibrate_flags.options));
  bar.reset();
  FATHOM_TRY(const Path path, measure::save_calibration(made, calibrate_flags.out));
  if (common.json) {
    std::fputs(plan::calibration_json(made).c_str(), stdout);
    return kExitOk;
  }
  std::puts(tr("cli.calibrate.title", {{"name", made.name}, {"date", made.date}}).c_str());
  print_tables(made);
  std::puts(tr(calibrate_flags.out.empty() ? "cli.calibrate.saved" : "cli.calibrate.written",
               {{"path", path.string()}, {"device", calibrate_flags.options.device}})
                .c_str());
  return kExitOk;
}

}  // namespace fathom::cli
