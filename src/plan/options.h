// Options: a question as a person types it. Names and values are those of a request's keys.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plan/request.h"

namespace fathom::plan {

struct PlanOptions {
  std::string model;  // as in a request
  std::string on =
      "this";  // hardware as in a request, "this" (this machine), "cpu" (its processor), or a file of `probe --json`
  std::string slo;                      // "ttft=2s,tpot=50ms"
  std::string gpu_memory;               // "24GiB": a device counts as having no more; "": what it has
  std::optional<std::int64_t> context;  // input + output; input is what output leaves
  std::vector<std::pair<std::string, std::string>> settings;  // other keys of a request, values as text
};

/// Errors: those of a request, of the machine's profile, and of the texts above.
Result<PlanRequest> request_from_options(const PlanOptions& options);
/// "2s", "50ms", "0.5" (seconds).
Result<double> parse_seconds(std::string_view text);

}  // namespace fathom::plan
