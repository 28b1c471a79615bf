// Anonymous pages for weights, caches and arenas.
#pragma once
#include <memory>

#include "tensor/backend.h"

namespace fathom::reference {

/// Bytes that this process may still take: the least of free memory and what its cgroup leaves.
Bytes available_memory();
/// Zeroed, page-aligned memory of exactly `bytes`. kEnvironment "reference.no_memory" when there is less than that.
Result<std::unique_ptr<tensor::Buffer>> allocate_pages(Bytes bytes);

}  // namespace fathom::reference
