// fathom quantize: a checkpoint in fewer bits.
#include "weights/quantize.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>

#include "base/i18n.h"
#include "base/json.h"
#include "base/strings.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "weights/interrupt.h"

namespace fathom::cli {
namespace {

struct QuantizeFlags {
  std::string model, out, to;
  std::int64_t group = 128;
  weights::QuantizeOptions quantize;
};
QuantizeFlags quantize_flags;

void print_json(const weights::QuantizeReport& report) {
  const Json json = {{"folder", report.folder.string()},
                     {"format", tensor::weight_format_name(report.format)},
                     {"quantized_tensors", report.quantized},
                     {"kept_tensors", report.kept},
                     {"quantized_elements", report.elements},
                     {"indivisible", report.indivisible},
                     {"relative_error", report.relative_error},
                     {"files", report.files},
                     {"bytes_before", report.bytes_before},
                     {"bytes", report.bytes},
                     {"seconds", report.seconds}};
  std::printf("%s\n", dump_json(json, 2).c_str());
}

void print_text(const weights::QuantizeReport& report) {
  std::printf("%s\n", tr("cli.quantize.done", {{"folder", report.folder.string()},
                                               {"quantized", std::to_string(report.quantized)},
                                               {"kept", std::to_string(report.kept)},
                                               {"before", format_bytes(report.bytes_before)},
                                               {"after", format_bytes(report.bytes)},
                                               {"files", std::to_string(report.files)},
                                               {"error", fmt::format("{:.2f} %", 100 * report.relative_error)},
                                               {"seconds", format_seconds(report.seconds)}})
                          .c_str());
  if (!report.indivisible.empty()) {
    const std::vector<std::string> shown(
        report.indivisible.begin(),
        report.indivisible.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(report.indivisible.size(), 3)));
    std::printf("%s\n", tr("cli.quantize.indivisible",
                           {{"count", std::to_string(report.indivisible.size())}, {"names", join(shown)}})
                            .c_str());
  }
}

}  // namespace

void setup_quantize(FlagSet& verb) {
  verb.option("MODEL", quantize_flags.model, tr("cli.quantize.model")).required();
  verb.option("--to", quantize_flags.to, tr("cli.quantize.to")).required();
  verb.option("-o,--out", quantize_flags.out, tr("cli.quantize.out")).required();
  verb.option("--group", quantize_flags.group, tr("cli.quantize.group"));
  verb.flag("--asymmetric", quantize_flags.quantize.asymmetric, tr("cli.quantize.asymmetric"));
  verb.flag("--weight-only", quantize_flags.quantize.weight_only, tr("cli.quantize.weight_only"));
  verb.option("--ignore", quantize_flags.quantize.ignore, tr("cli.quantize.ignore"));
  verb.option("--threads", quantize_flags.quantize.threads, tr("cli.quantize.threads")).within(1, 1024);
  verb.flag("--force", quantize_flags.quantize.overwrite, tr("cli.quantize.force"));
}

Result<int> run_quantize(const Common& common) {
  FATHOM_TRY(quantize_flags.quantize.to, weights::parse_quantize_target(quantize_flags.to));
  if (quantize_flags.group != 128)
    return fail("weights.quantize_group", {{"group", std::to_string(quantize_flags.group)}});
  const weights::InterruptGuard guard;
  std::unique_ptr<Progress> bar;
  quantize_flags.quantize.progress = [&](Bytes done, Bytes total) {
    if (!bar) bar = std::make_unique<Progress>(tr("cli.quantize.progress"), total);
    bar->update(done);
    return !weights::InterruptGuard::requested();
  };
  FATHOM_TRY(const weights::QuantizeReport report,
             weights::quantize_checkpoint(quantize_flags.model, quantize_flags.out, quantize_flags.quantize));
  bar.reset();
  if (common.json)
    print_json(report);
  else
    print_text(report);
  return kExitOk;
}

}  // namespace fathom::cli
