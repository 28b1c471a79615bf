// Transport: bytes between the ranks of one run, in host memory. `threads` are ranks of one process, `mpi` processes of
// one or many machines. Collectives and the engine's commands stand on it.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fathom::tensor {

struct Outgoing {
  int to = 0;
  std::span<const std::byte> bytes;
};
struct Incoming {
  int from = 0;
  std::span<std::byte> bytes;
};

/// kBusy: the others are at work; one that neither beats nor speaks for rank_patience_seconds() is taken for lost.
/// kIdle: they may have nothing to do (waiting for a prompt, reading weights): only their failure ends the wait.
enum class Patience : std::uint8_t { kBusy, kIdle };

/// FATHOM_RANK_TIMEOUT in seconds (1 … 3600), or 15.
double rank_patience_seconds();

/// One rank's end. Used by one thread at a time.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  /// This rank's number among, and the count of, the ranks of its machine.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  /// Whether `rank` is a thread of this process (its addresses are ours).
  virtual bool same_process(int rank) const = 0;
  /// Sends and receives all of these; returns when all are done. Between two ranks messages arrive in the order of
  /// calls, and sender and receiver agree on their lengths. Errors: "ranks.failed" (a rank said why it failed),
  /// "ranks.silent"; both end the run.
  virtual Status exchange(std::span<const Outgoing> out, std::span<const Incoming> in) = 0;
  /// A second channel, for commands: leaves bytes for `to` and goes on; it takes them when it gets to it, in the order
  /// of posts.
  virtual Status post(int to, std::vector<std::byte> bytes) = 0;
  virtual Result<std::vector<std::byte>> take(int from, Patience patience) = 0;
  /// This rank is alive and getting on. Cheap.
  virtual void beat() = 0;
  /// This rank cannot go on: everyone who waits, now or later, is told why. The first failure counts.
  virtual void fail(const Error& error) = 0;
  /// The failure that ended the run, this rank's own or another's.
  virtual std::optional<Error> failure() const = 0;
};

// What the engine builds of it. All ranks call these together; waits are idle.

/// Everyone gets rank 0's bytes.
Status broadcast(Transport& transport, std::vector<std::byte>& bytes);
/// Rank 0 gets everyone's bytes, by rank; the others get nothing.
Result<std::vector<std::vector<std::byte>>> gather(Transport& transport, std::vector<std::byte> bytes);
/// Whether all ranks got here well. If not, rank 0 gets the first one's error, and the others "ranks.told": one
/// sentence is enough.
Status agree(Transport& transport, const Status& mine);

/// An error as bytes and back.
std::vector<std::byte> pack_error(const Error& error);
Error unpack_error(std::span<const std::byte> bytes);

/// "rank 2 of 4 failed: …".
Error rank_failed(int rank, int ranks, const Error& cause);

}  // namespace fathom::tensor
