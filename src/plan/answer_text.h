// Sentences about an answer, in the language in use.
#pragma once
#include <string>

#include "plan/answer.h"

namespace fathom::plan {

/// Why it does not fit: which device and category overflow, by how many bytes. Empty when it fits.
std::string why_not(const PlanRequest& request, const Candidate& candidate);
/// "--weights int4: 4-bit weights, 31.2 GiB on the fullest device".
std::string way_out_text(const PlanRequest& request, const WayOut& way);
/// "tp 8 · pp 1 · ep 8".
std::string layout_text(const Layout& layout, bool training);
/// The whole report for a person.
std::string report_text(const PlanRequest& request, const PlanAnswer& answer);

}  // namespace fathom::plan
