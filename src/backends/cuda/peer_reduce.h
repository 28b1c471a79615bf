// Sums over a few GPUs that reach each other's memory (NVLink), for tensors so small that the way there and back is
// what they cost. Each GPU writes its numbers into the others' inboxes, a flag beside every one, and adds up what it
// finds in its own, in the order of ranks: the same bits on all of them, and one trip. Larger ones go in two trips,
// each GPU adding up its part. No multicast.
#pragma once
#include <array>
#include <cstdint>

#include "backends/cuda/context.h"

namespace fathom::cuda {

inline constexpr int kMostPeers = 8;
inline constexpr std::uint32_t kCutOff = 0x80000000u;  // the host has given up

/// What the kernels need; lies in the launch's arguments.
struct PeerTable {
  int ranks = 0, rank = 0;
  std::array<std::byte*, kMostPeers> inbox{};  // of each rank, as this GPU reaches it
  std::uint32_t* state =
      nullptr;  // [0] calls so far, [1] blocks that are through, [2] not 0: a wait failed; on this GPU
  std::uint32_t* fault = nullptr;  // pinned host memory, for those that wait long alone: not 0 once a wait took too
                                   // long: 1 + the rank that was waited for, or kCutOff
  std::uint64_t patience_ns = 0;
};

/// Bytes of one inbox for so many ranks, all of it zero at first.
Bytes peer_inbox_bytes(int ranks);
/// Bytes of one sum that goes this way, at most.
Bytes peer_reduce_most(int ranks);
/// x [count] f32 on this GPU becomes the sum over the ranks, which all launch this with the same count. x starts at a
/// multiple of 16 bytes; count is a multiple of 4, and count · 4 at most peer_reduce_most. On the context's stream; may
/// be captured. Price: one trip over NVLink (about 3 µs and bytes · 2 · (ranks - 1)), two trips of bytes · 2 · 2 (ranks
/// - 1) / ranks when large.
void launch_peer_reduce(Context& context, const PeerTable& table, float* x, std::int64_t count);

}  // namespace fathom::cuda
