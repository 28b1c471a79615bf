// Transport `threads`: the ranks are threads of this process, and what one sends the other copies from where it lies.
#pragma once
#include <memory>
#include <vector>

#include "tensor/transport.h"

namespace fathom::threads {

/// One end a rank, in the order of ranks; each may be used by another thread. An end that is destroyed while others
/// wait for it counts as failed ("ranks.left").
std::vector<std::shared_ptr<tensor::Transport>> make_thread_transports(int ranks);

}  // namespace fathom::threads
