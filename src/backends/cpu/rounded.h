// Activations rounded to eight bits a token (tensor/ops.h, kWeightOnlyTokens): what W8A8 products read.
#pragma once
#include <cstdint>

#include "backends/cpu/products.h"

namespace fathom::cpu {

/// out [k] = x as its codes mean it (code × scale), for a product with such a weight. NaN in all that shares a scale
/// with NaN or infinity. out may be x.
void round_activations(const Kernels& kernels, const tensor::Weight& weight, const float* x, std::int64_t k,
                       float* out);

/// Rows of x rounded on all threads into shared workspace; answers pointers to them.
const float** round_rows(const Context& context, Scratch& shared, const tensor::Weight& weight, const float* const* x,
                         std::int64_t count, std::int64_t k);
/// Bytes of workspace that it takes.
std::size_t rounded_bytes(std::int64_t count, std::int64_t k);

/// A product with an int8_row weight: codes by codes, exactly, then the scales. Takes from the shared workspace and
/// gives it back.
void multiply_codes(const Context& context, const Product& product);

}  // namespace fathom::cpu
