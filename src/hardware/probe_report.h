// What probe() found, for people and for programs.
#pragma once
#include <string>

#include "hardware/machine.h"

namespace fathom::hardware {

/// Aligned tables in the language in use; sizes in GiB, rates in GB/s. Compares with the catalog where it knows the
/// part.
std::string probe_report(const Machine& machine);

/// machine_to_json() with "catalog": the ids of the parts that the catalog knows and its figures for them.
std::string probe_json(const Machine& machine);

}  // namespace fathom::hardware
