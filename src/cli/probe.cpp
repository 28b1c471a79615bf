// fathom probe: what this machine is, measured.
#include "hardware/probe.h"

#include <cstdio>

#include "base/i18n.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "hardware/probe_report.h"

namespace fathom::cli {
namespace {

struct ProbeFlags {
  bool quick = false, thorough = false, no_measure = false, no_disk = false, save = false;
};
ProbeFlags probe_flags;

}  // namespace

void setup_probe(FlagSet& verb) {
  const Flag quick = verb.flag("--quick", probe_flags.quick, tr("cli.probe.quick"));
  const Flag thorough = verb.flag("--thorough", probe_flags.thorough, tr("cli.probe.thorough"));
  const Flag none = verb.flag("--no-measure", probe_flags.no_measure, tr("cli.probe.no_measure"));
  quick.excludes(thorough).excludes(none);
  thorough.excludes(none);
  verb.flag("--no-disk", probe_flags.no_disk, tr("cli.probe.no_disk"));
  verb.flag("--save", probe_flags.save, tr("cli.probe.save")).excludes(none);
}

Result<int> run_probe(const Common& common) {
  hardware::ProbeOptions options;
  if (probe_flags.quick) options.effort = hardware::Effort::kQuick;
  if (probe_flags.thorough) options.effort = hardware::Effort::kThorough;
  if (probe_flags.no_measure) options.effort = hardware::Effort::kNone;
  options.measure_disks = !probe_flags.no_disk;
  const bool talk = !common.json && stderr_is_terminal();
  if (talk) options.on_stage = [](std::string_view key) { std::fprintf(stderr, "\r\x1b[K%s", tr(key).c_str()); };
  const hardware::Machine machine = hardware::probe(options);
  if (talk) std::fputs("\r\x1b[K", stderr);
  std::fputs((common.json ? hardware::probe_json(machine) + "\n" : hardware::probe_report(machine)).c_str(), stdout);
  if (probe_flags.save) {
    FATHOM_TRY_VOID(hardware::save_profile(machine));
    if (!common.json) std::printf("\n%s\n", tr("cli.probe.saved", {{"path", hardware::profile_path()}}).c_str());
  }
  return kExitOk;
}

}  // namespace fathom::cli
