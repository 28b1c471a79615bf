// Products: x · wᵀ with weights of any format, cut into blocks for threads. The heart of linear, experts and the like.
#pragma once
#include <span>

#include "backends/cpu/kernels.h"
#include "backends/cpu/thread_pool.h"
#include "backends/cpu/workspace.h"
#include "tensor/weight.h"

namespace fathom::cpu {

/// What every op works with.
struct Context {
  const Kernels& kernels;
  ThreadPool& pool;
  Workspace& workspace;
};

/// Whether weights of this format can be multiplied with. f64 and i64 cannot.
bool can_multiply(tensor::WeightFormat format);
bool is_plain(tensor::WeightFormat format);

/// Row pointers to columns [column, column + width) of rows [first, first + count): into the weight itself when it is
/// plain, else to `widened` [count, width], where they are written as f32. Answers the rows' element type.
Element weight_rows(const tensor::Weight& weight, std::int64_t first, std::int64_t count, std::int64_t column,
                    std::int64_t width, float* widened, Row* rows);

/// out[m · out_stride + n] (+)= x[m] · row (first_row + n) of weight (+ bias[n]), m < m_count, n < rows.
struct Product {
  const tensor::Weight* weight = nullptr;
  std::int64_t first_row = 0, rows = 0;
  const float* const* x = nullptr;  // m_count pointers to weight->cols elements
  std::int64_t m_count = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;
  bool accumulate = false;
  const std::byte* packed = nullptr;                 // x packed for kernels.packed; null: not used
  const std::byte* row_data(std::int64_t n) const {  // of a plain weight
    return weight->data +
           (first_row + n) * static_cast<std::int64_t>(tensor::weight_bytes(weight->format, 1, weight->cols));
  }
};

/// Up to this many rows of x the weight is read straight through, and activations stay f32 whatever the weight is. With
/// more rows, or from PackedKernels::least_tokens on, bf16 weights may be multiplied with activations rounded to bf16.
inline constexpr std::int64_t kDirectRows = 8;

/// Rows [n0, n0 + nb) of the weight × rows [m0, m0 + mb) of x. Blocks of a packed product: m0 = 0, mb = m_count.
/// `ahead`: the first row of the weight that this thread reads next, fetched meanwhile; null: unknown.
struct Block {
  std::int64_t n0 = 0, nb = 0, m0 = 0, mb = 0;
  const std::byte* ahead = nullptr;
};
/// One block of a product, on this thread.
void product_block(const Kernels& kernels, const Product& product, const Block& block, Scratch& scratch);
/// How many rows of the weight make a good block for one task, when `total_rows` are to be shared among `threads`.
std::int64_t good_block(const Kernels& kernels, const Product& product, std::int64_t total_rows, int threads);
/// Whether kernels.packed is used for this product once its x is packed.
bool wants_packing(const Kernels& kernels, const Product& product);
/// Bytes of the packed x.
std::size_t packed_bytes(const Kernels& kernels, std::int64_t m_count, std::int64_t k);

/// Products of one shape (rows, m_count, format), on all threads. Takes from the shared workspace and gives it back.
void multiply(const Context& context, std::span<Product> products);

}  // namespace fathom::cpu
