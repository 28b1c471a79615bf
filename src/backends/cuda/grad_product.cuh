// What backward ops of several families are made of: products of f32 in f32, of operands at any strides and of weights in any format
// (grad_product.cu), and sums over rows (grad_norm.cu).
#pragma once
#include "backends/cuda/any_float.cuh"
#include "backends/cuda/experts.cuh"

namespace fathom::cuda {

inline constexpr int kGradTile = 64;  // rows and columns of a block's part of a product

/// One operand of a product: element (index, depth), where index counts the product's rows (left) or columns (right). One of the two is
/// contiguous.
struct GradSide {
  const float* data = nullptr;                              // null: of the weight (right only)
  std::int64_t index = 0, depth = 0, outer = 0, group = 0;  // strides in elements; outer: of every `inner` steps of depth
  std::int32_t inner = 0;                                   // 0: depth has one stride
  std::int32_t share = 1;                                   // so many groups in a row read the same
  const std::int32_t* rows = nullptr;                       // the index (hits as depth: the depth) i is row rows[i] of data
  WeightView weight;
  std::int64_t first_row = 0, row_step = 0;  // of the weight, and of a group
  bool depth_is_row = false;                 // depth counts the weight's rows, index its columns; else the other way round
  bool of_expert = false;                    // the weight's addresses are those of the expert
  MatrixOfExperts experts;
};

/// out [rows, columns] (+)= left · right, for every group. With hits each part is an expert's: as rows, rows are hits, cut into runs of at
/// most kGradTile; as depth, each expert adds the sum over its hits to a matrix of its own.
struct GradProduct {
  enum class Hits : std::uint8_t { kNone, kRows, kDepth };
  GradSide left, right;
  std::int64_t rows = 0, columns = 0, depth = 0, groups = 1;
  float* out = nullptr;
  std::int64_t out_stride = 0, out_group = 0;  // columns are contiguous
  bool accumulate = true;
  Hits hits = Hits::kNone;
  const RunOfExpert* runs = nullptr;
  int most_runs = 0, here = 0;
  MatrixOfExperts out_experts;  // hits as depth: f32, out_stride apart; null: not wanted
};

/// `room`: Blas::kWorkspaceBytes of the workspace where cuBLASLt may do it (operands of one stride, at multiples of 16 bytes); or null.
void launch_grad_product(Context& context, const GradProduct& product, std::byte* room = nullptr);
/// Whether cuBLASLt may.
bool fits_blas(const GradProduct& product);

/// Rows of a weight as an operand: [first_row + group · row_step, …).
GradSide weight_side(const tensor::Weight& weight, std::int64_t first_row, std::int64_t row_step, bool depth_is_row);

/// d(gated) / d(gate) and d(gated) / d(up) of device_math.cuh; what was cut has no slope.
struct GatedSlopes { float gate, up; };
__device__ inline GatedSlopes gated_slopes(float gate, float up, float limit) {
  const bool gate_cut = limit > 0.0f && gate > limit, up_cut = limit > 0.0f && (up > limit || up < -limit);
  if (gate_cut) gate = limit;
  if (up_cut) up = up > 0.0f ? limit : -limit;
  const float s = sigmoid(gate);
  return {gate_cut ? 0.0f : up * s * (1.0f + gate * (1.0f - s)), up_cut ? 0.0f : silu(gate)};
}

/// out[i] += the sum over rows r of values[r, i]; or of values[r, i] · (x[r, i] - mean[r]) · scale[r] where those are there.
struct ColumnSum {
  RowsView values, x;
  const float *mean = nullptr, *scale = nullptr;
};
void add_column_sums(Context& context, const ColumnSum& sum, float* out);
/// Dense rows of f32.
RowsView dense_rows(const float* data, std::int64_t count, std::int64_t n);
/// A dense f32 gradient of a parameter; null where it is undefined.
float* parameter_of(const tensor::Tensor& gradient, std::int64_t elements);

}  // namespace fathom::cuda
