// Activations rounded to eight bits a token (tensor/ops.h, kWeightOnlyTokens), written plainly.
#pragma once
#include "backends/reference/elements.h"
#include "tensor/ops.h"

namespace fathom::reference {

/// x [n] as its codes mean it (code × scale): what a W8A8 product with such a weight sees. Computed in f32, whatever x
/// is.
void round_activations(const tensor::Weight& weight, double* x, std::int64_t n);
/// Every row of x [T, k], when the product rounds.
void round_rows(const tensor::Weight& weight, Array& x);

}  // namespace fathom::reference
