#include "tensor/backend.h"

#include <utility>

#include "base/clock.h"
#include "tensor/host_collectives.h"

namespace fathom::tensor {

Result<std::unique_ptr<Collectives>> Backend::make_collectives(std::shared_ptr<Transport> transport,
                                                               const GroupMembers& members) {
  FATHOM_CHECK(host_addressable(), "a device brings collectives of its own");
  return make_host_collectives(std::move(transport), members);
}

// A host has done what it was told when the call returns.
void Backend::mark(const char*) { marks_.push_back(now_seconds()); }

Result<std::vector<double>> Backend::take_marks() { return std::exchange(marks_, {}); }

}  // namespace fathom::tensor
