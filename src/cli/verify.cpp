#include "measure/verify.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>

#include "base/i18n.h"
#include "base/json.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/offload_flags.h"
#include "cli/rank_flags.h"
#include "cli/verbs.h"

namespace fathom::cli {
namespace {
struct VerifyFlags {
  std::string folder;
  measure::VerifyOptions options;
};
VerifyFlags verify_flags;

std::string difference_text(double difference) {
  return std::isnan(difference) ? "NaN" : fmt::format("{:.2e}", difference);
}
Json difference_json(double difference) {
  return std::isfinite(difference) ? Json(difference) : Json(difference_text(difference));
}

Json layout_json(const engine::Spread& s) { return {{"tp", s.tp}, {"pp", s.pp}, {"dp_attention", s.dp}, {"ep", s.ep}}; }

void print_json(const measure::VerifyReport& report) {
  Json cases = Json::array();
  for (const auto& c : report.cases)
    cases.push_back({{"prompt", c.prompt},
                     {"way", c.way},
                     {"tokens", c.tokens},
                     {"max_difference", difference_json(c.worst)},
                     {"at_token", c.worst_token},
                     {"at_id", c.worst_id},
                     {"greedy_compared", c.greedy_tokens},
                     {"greedy_differs_at", c.greedy_differs_at < 0 ? Json() : Json(c.greedy_differs_at)},
                     {"passed", c.passed}});
  const Json json = {{"device", report.device},
                     {"ranks", report.spread.ranks()},
                     {"layout", layout_json(report.spread)},
                     {"offload", offload_json(report.offload)},
                     {"fetched_bytes", report.fetched_bytes},
                     {"host_calls", report.host_calls},
                     {"kv", report.kv},
                     {"passed", report.passed},
                     {"max_difference", difference_json(report.worst)},
                     {"tolerance", std::isfinite(report.tolerance) ? Json(report.tolerance) : Json()},
                     {"cases", cases}};
  std::puts(dump_json(json, 2).c_str());
}

std::string device_text(const measure::VerifyReport& report) {
  if (report.spread.ranks() == 1) return report.device;
  return tr("cli.verify.on_ranks", {{"device", report.device},
                                    {"ranks", std::to_string(report.spread.ranks())},
                                    {"spread", measure::spread_text(report.spread)}});
}

void print_table(const measure::VerifyReport& report) {
  if (report.offload) std::puts(measure::offload_text(*report.offload).c_str());
  Table table({{tr("cli.verify.col_prompt"), Align::kRight},
               {tr("cli.verify.col_way")},
               {tr("cli.verify.col_tokens"), Align::kRight},
               {tr("cli.verify.col_worst"), Align::kRight},
               {tr("cli.verify.col_place")},
               {tr("cli.verify.col_greedy")},
               {""}});
  for (const auto& c : report.cases)
    table.add_row(
        {std::to_string(c.prompt), tr("cli.verify.way_" + c.way), std::to_string(c.tokens), difference_text(c.worst),
         fmt::format("[{}, {}]", c.worst_token, c.worst_id),
         c.greedy_differs_at < 0 ? tr("cli.verify.equal", {{"n", std::to_string(c.greedy_tokens)}})
                                 : tr("cli.verify.differs", {{"at", std::to_string(c.greedy_differs_at)}}),
         c.passed ? styled(Style::kGreen, tr("cli.verify.pass")) : styled(Style::kRed, tr("cli.verify.fail"))});
  std::fputs(table.render().c_str(), stdout);
  const bool asked = std::isfinite(report.tolerance), narrow = report.kv != "f32";
  std::puts(tr(!report.passed ? (asked ? "cli.verify.summary_fail" : "cli.verify.summary_broken")
               : !asked       ? "cli.verify.summary_told"
               : narrow       ? "cli.verify.summary_within"
                              : "cli.verify.summary_pass",
               {{"device", device_text(report)},
                {"worst", difference_text(report.worst)},
                {"kv", report.kv},
                {"atol", fmt::format("{:g}", report.tolerance)}})
                .c_str());
}
}  // namespace

void setup_verify(FlagSet& verb) {
  verb.option("folder", verify_flags.folder, tr("cli.verify.folder")).required();
  verb.option("--device", verify_flags.options.device, tr("cli.verify.device"));
  verb.option("--dtype", verify_flags.options.weights, tr("cli.verify.dtype"));
  verb.option("--kv,--cache-dtype", verify_flags.options.kv, tr("cli.verify.kv"));
  verb.option("--atol", verify_flags.options.atol, tr("cli.verify.atol")).not_negative();
  verb.option("--chunk", verify_flags.options.chunk, tr("cli.verify.chunk")).positive();
  verb.option("--isa", verify_flags.options.isa, tr("cli.verify.isa"));
  verb.option("--threads", verify_flags.options.threads, tr("cli.verify.threads")).not_negative();
  verb.option("--trace", verify_flags.options.trace, tr("cli.bench.trace"));
  add_rank_flags(verb, verify_flags.options.ranks);
  add_offload_flags(verb, verify_flags.options.offload);
}

Result<int> run_verify(const Common& common) {
  FATHOM_TRY(const measure::VerifyReport report, measure::verify(verify_flags.folder, verify_flags.options));
  if (report.followed) return kExitOk;
  if (common.json)
    print_json(report);
  else
    print_table(report);
  return report.passed ? kExitOk : kExitNo;
}

}  // namespace fathom::cli
