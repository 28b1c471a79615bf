// fathom synth: a checkpoint with random weights.
#include "weights/synth.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "base/i18n.h"
#include "base/json.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "weights/interrupt.h"

namespace fathom::cli {
namespace {

struct SynthFlags {
  std::string model, out, dtype = "native";
  std::optional<std::int64_t> layers;
  weights::SynthOptions synth;
};
SynthFlags synth_flags;

void print_json(const model::ModelSpec& spec, const weights::SynthReport& report) {
  const Json json = {
      {"folder", report.folder.string()}, {"model_type", spec.model_type},  {"layers", spec.layers},
      {"dtype", synth_flags.dtype},       {"seed", synth_flags.synth.seed}, {"parameters", report.parameters},
      {"tensors", report.tensors},        {"files", report.files},          {"bytes", report.bytes},
      {"seconds", report.seconds}};
  std::printf("%s\n", dump_json(json, 2).c_str());
}

void print_text(const model::ModelSpec& spec, const weights::SynthReport& report) {
  std::printf("%s\n", tr("cli.synth.done", {{"folder", report.folder.string()},
                                            {"type", spec.model_type},
                                            {"layers", std::to_string(spec.layers)},
                                            {"parameters", format_count(static_cast<double>(report.parameters))},
                                            {"tensors", std::to_string(report.tensors)},
                                            {"bytes", format_bytes(report.bytes)},
                                            {"files", std::to_string(report.files)},
                                            {"seconds", format_seconds(report.seconds)},
                                            {"rate", format_bytes(report.bytes_per_second())}})
                          .c_str());
  std::printf("%s\n", tr("cli.synth.note", {{"seed", std::to_string(synth_flags.synth.seed)}}).c_str());
}

}  // namespace

void setup_synth(FlagSet& verb) {
  verb.option("MODEL", synth_flags.model, tr("cli.synth.model")).required();
  verb.option("-o,--out", synth_flags.out, tr("cli.synth.out")).required();
  verb.option("--layers", synth_flags.layers, tr("cli.synth.layers"));
  verb.option("--dtype", synth_flags.dtype, tr("cli.synth.dtype"));
  verb.option("--seed", synth_flags.synth.seed, tr("cli.synth.seed"));
  verb.option("--threads", synth_flags.synth.threads, tr("cli.synth.threads")).within(1, 1024);
  verb.flag("--force", synth_flags.synth.overwrite, tr("cli.synth.force"));
}

Result<int> run_synth(const Common& common) {
  FATHOM_TRY(const weights::StoragePolicy policy, weights::parse_storage_policy(synth_flags.dtype));
  FATHOM_TRY(const model::ModelSpec published, weights::find_model_spec(synth_flags.model));
  FATHOM_TRY(const model::ModelSpec spec, weights::synthetic_spec(published, synth_flags.layers, policy.dtype));
  const weights::InterruptGuard guard;
  std::unique_ptr<Progress> bar;
  synth_flags.synth.progress = [&](Bytes done, Bytes total) {
    if (!bar) bar = std::make_unique<Progress>(tr("cli.synth.progress"), total);
    bar->update(done);
    return !weights::InterruptGuard::requested();
  };
  FATHOM_TRY(const weights::SynthReport report,
             weights::synthesize_checkpoint(spec, synth_flags.out, synth_flags.synth));
  bar.reset();
  if (common.json)
    print_json(spec, report);
  else
    print_text(spec, report);
  return kExitOk;
}

}  // namespace fathom::cli
