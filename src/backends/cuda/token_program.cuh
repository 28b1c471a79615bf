// Short ops on the rows of single tokens (rotations, norms, copies, rows written to caches), done by one launch: those of a token that touch the
// same elements by one block in their order, the others beside them. Each alone would take as long as a launch takes.
#pragma once
#include "backends/cuda/device_math.cuh"
#include "tensor/ops.h"

namespace fathom::cuda {

/// A token's rows: `inner` of them, each n elements.
struct TokenRows {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t token = 0, row = 0;  // strides in elements
  int inner = 1, n = 0;
  std::int64_t scales = 0;          // of a cache in INT8: bytes from a token's first code to its first scale
};

struct TokenAction {
  enum class Kind : std::uint8_t {
    kRope,   // x in place
    kNorm,   // out = RMS norm of x
    kCopy,   // out = x
    kWrite,  // the same to the token's row of a cache, kPosition or kRing
  };
  Kind kind = Kind::kCopy;
  TokenRows x, out;
  const float *cosines = nullptr, *sines = nullptr;  // [tokens, half]
  std::int64_t angle_stride = 0;
  int half = 0, first_dim = 0;
  bool interleaved = false, inverse = false, ring = false;
  const std::byte* weight = nullptr;
  DType weight_type = DType::f32;
  float eps = 0;
  std::int64_t rows_per_slot = 0;
};

struct TokenProgram {
  static constexpr int kMost = 8;
  static constexpr std::int64_t kMostTokens = 256, kMostElements = 1 << 16;  // of a launch; of a token's rows
  TokenAction actions[kMost];
  int count = 0;
  int first[kMost + 1] = {};        // of each chain of actions; launch_program sets them
  std::int64_t tokens = 0;
  const int4* sequences = nullptr;  // slot, first_token, tokens, past; null: nothing is written to caches
  int sequence_count = 0;
};

/// The rows of x by token, x [tokens, …] of rank 2 or 3; n is 0 where they are too long for a program.
TokenRows token_rows(const tensor::Tensor& x);
void launch_program(Context& context, const TokenProgram& program);
/// That and, beside it, a product by head that carries queries of some tokens into latent space; neither touches what the other writes.
struct Product;
bool can_enter(const Product& product);
void launch_program(Context& context, const TokenProgram& program, const Product& product);

}  // namespace fathom::cuda
