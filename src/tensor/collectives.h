// Collectives: what the ranks of a layout say to each other. `self` is one rank alone; `meta` prices it;
// host_collectives.h speaks over any transport; a device backend brings its own (Backend::make_collectives).
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace fathom::tensor {

/// The groups of ranks that a layout forms. An architecture names the group, never a rank.
enum class Group : std::uint8_t {
  kTensor,   // splits attention heads and dense feed-forward
  kExpert,   // whole experts are spread over it
  kData,     // replicas, and where ZeRO shards its states
  kContext,  // splits the tokens of one sequence
  kPipeline,
  kAttention,  // replicas of attention that share their experts: each has sequences of its own
};
inline constexpr int kGroupCount = 6;

/// The ranks of each group that this rank belongs to, numbered within the whole run, in the group's order. A group of
/// one may be empty.
struct GroupMembers {
  std::array<std::vector<int>, kGroupCount> ranks;
  const std::vector<int>& of(Group group) const { return ranks[static_cast<std::size_t>(group)]; }
};

/// Every call is collective: all ranks of the group make it in the same order. In place where one tensor is given.
/// Tensors are dense. Sums are added in the order of ranks, so that the same layout gives the same bits, and the same
/// on every rank. A failure (a peer that died, is silent, or failed itself) ends the run: it is kept, later calls
/// return at once and what they leave means nothing. The engine asks status() after each pass, so it never surfaces as
/// wrong numbers.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int size(Group group) const = 0;
  virtual int rank(Group group) const = 0;
  /// x = sum over ranks of x. Price: 2 (n-1)/n · bytes on a ring.
  virtual void all_reduce(Group group, const Tensor& x) = 0;
  /// out [n · rows, …] = the ranks' x [rows, …] one after the other.
  virtual void all_gather(Group group, const Tensor& x, const Tensor& out) = 0;
  /// The same for x [rows[me], …] of different lengths: out [sum of rows, …].
  virtual void all_gather_rows(Group group, const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) = 0;
  /// out [rows / n, …] = this rank's part of the sum of x [rows, …].
  virtual void reduce_scatter(Group group, const Tensor& x, const Tensor& out) = 0;
  /// Rows of x go to the ranks that own their experts, and come back the same way: the two halves of expert
  /// parallelism. x and out are [n · rows, …]: block i of x goes to rank i, block i of out comes from rank i.
  virtual void all_to_all(Group group, const Tensor& x, const Tensor& out) = 0;
  /// Point to point: x goes to member `to` of the group, and is `out` of its receive. Empty tensors are not sent.
  virtual void send(Group group, int to, const Tensor& x) = 0;
  virtual void receive(Group group, int from, const Tensor& out) = 0;
  /// Said between stretches of work (a layer), so that those who wait know that this rank is alive.
  virtual void beat() {}
  /// The first failure, if any.
  virtual Status status() { return {}; }
};

}  // namespace fathom::tensor
