// What falls to a rank of one pass; private to the engine.
#pragma once
#include "engine/engine.h"

namespace fathom::engine {

/// The tokens of its replica's slots. The counts of all replicas are known to each.
struct Engine::Share {
  std::vector<std::int64_t> tokens, rows;  // by replica
  std::vector<std::int64_t> order;         // of the caller's rows of logits: which row it is, replica after replica
  std::int64_t own_tokens = 0, own_rows = 0, all_rows = 0;
  PassKind kind = PassKind::kDecode;
  bool fresh = true;
  std::uint64_t key = 0;
};

// The others hear of it, and all of them say the same.
template <class T>
T Engine::told(T result) {
  if (result || seat_.alone()) return result;
  seat_.transport->fail(result.error());
  return tl::unexpected<Error>(*seat_.transport->failure());
}

}  // namespace fathom::engine
