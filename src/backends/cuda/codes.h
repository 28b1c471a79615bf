// Products whose operands are both e4m3 codes, on Hopper's matrix units: experts and single weights with eight-bit
// activations (tensor::rounds_activations). codes_wide.cuh has the kernel, codes.cu who launches it.
#pragma once
#include "backends/cuda/experts_mma.h"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {

/// Whether a product with a weight of fp8_row or fp8_block128 goes that way: the device, shapes and addresses.
bool can_multiply_codes(const Context& context, const Product& p);
/// As multiply_rounded. Codes of x stay at context.rounded_data for the next product of the same x.
void multiply_codes(Context& context, Product p);

/// The same for a mixture of experts of fp8_block128 whose matrices lie evenly.
bool can_multiply_codes(const Context& context, const tensor::ExpertsArgs& args, const Matrices& matrices);
/// The whole op, from the rest of the workspace.
void multiply_codes(Context& context, const tensor::ExpertsArgs& args, const Matrices& matrices);

/// Whether codes and scales of dense x fit context.rounded_data.
bool codes_fit(std::int64_t tokens, std::int64_t cols);
/// Ops that also make codes for the product that comes next, when the last one wanted them. False: not for these;
/// nothing was launched.
bool norm_and_code(Context& context, const tensor::RmsNormArgs& args);
bool gate_and_code(Context& context, const tensor::SwigluArgs& args);

}  // namespace fathom::cuda
