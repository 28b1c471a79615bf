// Products of family linear as kernels see them, and who launches them: few tokens (linear_few.cu), many (linear_many.cu). ops_linear.cu chooses.
#pragma once
#include "backends/cuda/any_float.cuh"

namespace fathom::cuda {

inline constexpr int kFewTokens = 8;

/// G products out[t, g, :] = x[t, g, :] · W_g, where W_g is rows [first_row + g · row_step, + rows) of the weight: transposed (an output a row)
/// or as it lies (an output a column).
struct Product {
  WeightView weight;
  std::int64_t tokens = 0, groups = 1, rows = 0, first_row = 0, row_step = 0;
  bool by_column = false;
  const float* x = nullptr;
  float* out = nullptr;
  std::int64_t x_stride = 0, x_step = 0, out_stride = 0, out_step = 0;  // a token, a group
  const std::byte* bias = nullptr;                                      // [outputs], of one group only
  DType bias_type = DType::f32;
  bool accumulate = false;
  tensor::Activations activations = tensor::Activations::kAsTheyAre;  // else multiply_rounded, which rounds x so
  const float* added = nullptr;  // [tokens, outputs] that is added too; one group only, and of many tokens no bias and out's stride
  std::int64_t added_stride = 0;

  __host__ __device__ std::int64_t outputs() const { return by_column ? weight.cols : rows; }
  __host__ __device__ std::int64_t inputs() const { return by_column ? rows : weight.cols; }
};

/// The RMS norm of one row whose result is the x of some products: they make it themselves, and one of them writes it.
struct NormedX {
  const float* from = nullptr;  // null: x is there already
  float* x = nullptr;
  const std::byte* weight = nullptr;
  DType weight_type = DType::f32;
  float eps = 0;
  std::int64_t n = 0;
  bool unread = false;  // nothing else reads x: it stays unwritten
};

/// Products of one x that are launched as one: a third of q, k and v alone does not keep the memory busy.
struct Together {
  static constexpr int kMost = 4;
  Product products[kMost];
  unsigned first_block[kMost] = {};
  int count = 0;
  NormedX norm;
  bool gated = false;  // a gate and its up: the first's out becomes gated(gate, up); the second's is its own. A third, of a normed x, is plain
  float limit = 0;     // of the gate
};

/// value [index] of a vector of any float type; 0 where there is none.
__device__ inline float element_of(const std::byte* vector, DType type, std::int64_t index) {
  return vector == nullptr ? 0.0f : FloatVector{vector, type}[index];
}
/// What becomes output (t, g, i) when its sum is known.
__device__ inline float finished(const Product& p, std::int64_t t, std::int64_t g, std::int64_t i, float sum) {
  float value = sum + element_of(p.bias, p.bias_type, i);
  if (p.added != nullptr) value += p.added[t * p.added_stride + i];
  if (p.accumulate) value += p.out[t * p.out_stride + g * p.out_step + i];
  return value;
}
__device__ inline void store(const Product& p, std::int64_t t, std::int64_t g, std::int64_t i, float sum) {
  p.out[t * p.out_stride + g * p.out_step + i] = finished(p, t, g, i, sum);
}

inline bool is_plain(tensor::WeightFormat format) {
  using tensor::WeightFormat;
  return format == WeightFormat::f32 || format == WeightFormat::f16 || format == WeightFormat::bf16;
}

inline bool is_half(tensor::WeightFormat format) { return format == tensor::WeightFormat::bf16 || format == tensor::WeightFormat::f16; }
inline DType type_of_half(tensor::WeightFormat format) { return format == tensor::WeightFormat::bf16 ? DType::bf16 : DType::f16; }
/// The first row of a product of one group, 16 bits an element.
inline const std::byte* weights_of(const Product& p) { return p.weight.data + 2 * p.first_row * p.weight.cols; }

/// At most kFewTokens tokens, or can_use_some; an output a row, one group; all of one x, weight format and width. Rows of x and of the weights can be read in eights.
/// `route`: of one token, done beside them where can_route_beside says so; they neither write its logits nor read what it chooses.
bool can_use_some(const Context& context, const Product& p);  // up to 32 tokens on Hopper's matrix units (linear_some.cu)
/// `gather`: of some tokens, the hits of what is chosen, found behind it (`here` experts as can_route_beside_some was told).
struct RouteView;
struct GatherView;
bool can_route_beside(const Together& all);
void launch_together(Context& context, const Together& all, const RouteView* route = nullptr, const GatherView* gather = nullptr);
void launch_some(Context& context, const Together& all, const RouteView* route = nullptr, const GatherView* gather = nullptr);
bool can_route_beside_some(const Context& context, const RouteView& route, int here = 0);
/// At most kFewTokens tokens, any number of groups, an output a row or a column.
void launch_few(Context& context, const Product& p);
/// Any shape, format and address.
void launch_tiled(Context& context, Product p);
/// Whether the rows of all groups, widened to 16 bits, fit the workspace at once.
bool widens_whole(const Product& p);
/// By cuBLASLt where it knows a way; operands at multiples of 16 bytes, no bias. Several groups of 8- and 4-bit weights: widens_whole.
void multiply_many(Context& context, const Product& p);
/// Products of one x, alike in all but their weights and outs, whose addresses are evenly apart: as one. False: they are not, or are better apart.
inline constexpr int kMostTogetherMany = 3;
bool multiply_together(Context& context, const Product* products, int count);
/// Whichever of these fits.
void multiply_any(Context& context, const Product& p);
/// With eight-bit activations (tensor::rounds_activations): any shape and address of x and out, one group, an output a row.
void multiply_rounded(Context& context, const Product& p);
/// out[i, :] = x[i, :] [n] as eight-bit codes of a product with such a weight mean it. out may be x.
void round_values(Context& context, const tensor::Weight& weight, const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t n, float* out, std::int64_t out_stride);
/// out[t, i] = bias[i], or that is added.
void launch_bias(Context& context, const Product& p);

}  // namespace fathom::cuda
