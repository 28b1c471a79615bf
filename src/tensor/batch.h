// Batch: which tokens of which sequences one forward pass works on, and where their caches lie.
#pragma once
#include <cstdint>
#include <span>

#include "tensor/tensor.h"

namespace fathom::tensor {

/// Tokens [first_token, first_token + tokens) of the batch are positions past … past + tokens - 1 of the sequence whose
/// caches lie in `slot`. Without caches (training) slot is the sequence's number and past is 0.
struct Sequence {
  std::int32_t slot = 0;
  std::int32_t first_token = 0;
  std::int32_t tokens = 0;
  std::int32_t past = 0;
};
static_assert(sizeof(Sequence) == 16, "read by device kernels as int4");

struct Batch {
  std::int64_t tokens = 0;              // sum over sequences
  std::span<const Sequence> sequences;  // on the host
  Tensor sequence_table;                // the same as [sequences, 4] i32 where the device can read it
  Tensor ids;                           // [tokens] i32
  Tensor positions;                     // [tokens] i32: past, past + 1, … of each sequence
  Tensor output_rows;                   // [outputs] i32: tokens whose logits are wanted; undefined: all
  std::int64_t topk_horizon =
      0;  // verify only: tokens that the reference's pass had (topk_horizon.h); 0: ties to the lower row
};

/// Compressed entries (one per `ratio` tokens) that could close inside a sequence's part of the batch: an upper bound
/// that depends on the token count alone, so that shapes do not change from step to step.
inline std::int64_t max_entries(std::int64_t tokens, std::int64_t ratio) { return (tokens + ratio - 1) / ratio; }
/// The sum over the sequences of a batch; entry rows of sequence s follow those of sequence s - 1.
inline std::int64_t max_entries(const Batch& batch, std::int64_t ratio) {
  std::int64_t n = 0;
  for (const Sequence& sequence : batch.sequences) n += max_entries(sequence.tokens, ratio);
  return n;
}

}  // namespace fathom::tensor
