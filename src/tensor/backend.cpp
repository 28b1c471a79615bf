#include "tensor/backend.h"

#include "tensor/host_collectives.h"

namespace fathom::tensor {

Result<std::unique_ptr<Collectives>> Backend::make_collectives(std::shared_ptr<Transport> transport, const GroupMembers& members) {
  FATHOM_CHECK(host_addressable(), "a device brings collectives of its own");
  return make_host_collectives(std::move(transport), members);
}

}  // namespace fathom::tensor
