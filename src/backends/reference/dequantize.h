// What the bits of a stored weight mean, written plainly; the oracle of every fast kernel that reads them.
#pragma once
#include <cstdint>

#include "tensor/weight.h"

namespace fathom::reference {

/// Row `row` of a weight of any float format as `weight.cols` doubles: element × its block's scale, exactly (a product
/// of an 8-bit or 4-bit float and an f32 is exact in a double). Scales lie row-major by block: block (r, c) of a square
/// format is scales[r · ceil(cols / side) + c]. mxfp4: the even column of a pair is the low half of its byte.
void dequantize_row(const tensor::Weight& weight, std::int64_t row, double* out);
/// int4: the even column is the low half too; (code - zero point) × scale, the zero point 8 where the format has none.
/// One e2m1 code (the low four bits).
float f4e2m1_to_f32(std::uint8_t code);

}  // namespace fathom::reference
