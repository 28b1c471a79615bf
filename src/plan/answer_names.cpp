#include "plan/answer.h"

namespace fathom::plan {

std::string_view bound_name(BoundBy bound) {
  static constexpr std::string_view names[] = {"weights", "kv",   "compute", "communication",
                                               "launch",  "host", "network"};
  return names[static_cast<int>(bound)];
}

std::string_view provenance_name(ProvenanceTier tier) {
  static constexpr std::string_view names[] = {"measured_here", "measured_same", "measured_sibling", "default"};
  return names[static_cast<int>(tier)];
}

}  // namespace fathom::plan
