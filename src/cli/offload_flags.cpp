#include "cli/offload_flags.h"

#include "base/i18n.h"
#include "cli/flags.h"

namespace fathom::cli {

void add_offload_flags(FlagSet& verb, measure::OffloadWishes& wishes) {
  verb.option("--gpu-memory", wishes.memory, tr("cli.offload.memory"));
  verb.option("--offload", wishes.way, tr("cli.offload.way"));
}

Json offload_json(const std::optional<measure::OffloadReport>& report) {
  if (!report) return {};
  const plan::OffloadPlan& plan = report->plan;
  const plan::OffloadRates& rates = report->problem.rates;
  const auto times = [](const plan::OffloadTimes& t) {
    return Json{{"streamed_seconds", t.streamed}, {"on_host_seconds", t.on_host > 0 ? Json(t.on_host) : Json()}};
  };
  return {{"what", plan.experts ? "experts" : "layers"},
          {"layers", plan.layers},
          {"moved_bytes", plan.moved_bytes},
          {"places", plan.places},
          {"place_bytes", plan.place_bytes},
          {"host_tokens", std::min<std::int64_t>(plan.host_tokens, INT32_MAX)},
          {"needed_bytes", report->needed},
          {"room_bytes", report->room},
          {"host_threads", report->host_threads},
          {"prefill_tokens", report->problem.prefill_tokens},
          {"decode_tokens", report->problem.decode_tokens},
          {"prefill", times(plan.prefill)},
          {"decode", times(plan.decode)},
          {"rates",
           {{"link_bytes_per_second", rates.link},
            {"host_bytes_per_second_of_one_token", rates.host_stream_one},
            {"host_bytes_per_second", rates.host_stream},
            {"host_flops", rates.host_flops},
            {"handover_seconds", rates.handover}}}};
}

}  // namespace fathom::cli
