// Collectives: what the ranks of a layout say to each other. `self` is one rank alone; `meta` prices it.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace fathom::tensor {

/// The groups of ranks that a layout forms. An architecture names the group, never a rank.
enum class Group : std::uint8_t {
  kTensor,   // splits attention heads and dense feed-forward
  kExpert,   // whole experts are spread over it
  kData,     // replicas, and where ZeRO shards its states
  kContext,  // splits the tokens of one sequence
  kPipeline,
};

/// Every call is collective: all ranks of the group make it in the same order. In place where one tensor is given.
/// Tensors are dense. Failures of a peer surface through the engine that owns the group, never as wrong numbers.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int size(Group group) const = 0;
  virtual int rank(Group group) const = 0;
  /// x = sum over ranks of x. Price: 2 (n-1)/n · bytes on a ring.
  virtual void all_reduce(Group group, const Tensor& x) = 0;
  /// out [n · rows, …] = the ranks' x [rows, …] one after the other.
  virtual void all_gather(Group group, const Tensor& x, const Tensor& out) = 0;
  /// out [rows / n, …] = this rank's part of the sum of x [rows, …].
  virtual void reduce_scatter(Group group, const Tensor& x, const Tensor& out) = 0;
  /// Rows of x go to the ranks that own their experts, and come back the same way: the two halves of expert parallelism.
  /// x and out are [n · rows, …]: block i of x goes to rank i, block i of out comes from rank i.
  virtual void all_to_all(Group group, const Tensor& x, const Tensor& out) = 0;
};

}  // namespace fathom::tensor
