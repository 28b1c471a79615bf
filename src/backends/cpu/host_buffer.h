// Memory for weights, caches, arenas and workspace: anonymous pages, huge where the kernel gives them.
#pragma once
#include <memory>

#include "tensor/backend.h"

namespace fathom::cpu {

class ThreadPool;

/// Zeroed, 64-byte aligned memory (2 MiB aligned from that size on). With `pool` every page is touched by all threads
/// now, so that running takes no page faults; without, pages come as they are first used. kEnvironment "cpu.no_memory"
/// naming what was asked for and what there is.
Result<std::unique_ptr<tensor::Buffer>> allocate_pages(Bytes bytes, ThreadPool* pool);

}  // namespace fathom::cpu
