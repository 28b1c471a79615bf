// Kernels: what every instruction set writes for itself. A table of plain functions over rows of memory; the ops above
// it (cpu_ops.h) decide what is multiplied with what, on which thread. All work on one thread, allocate nothing, sum in
// f32, and give the same bits for the same arguments. Rows need no alignment; nothing is read past their ends. Twins
// are the ops of src/backends/reference; tests/backends/cpu_kernels_test.cpp runs every table that works here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace fathom::cpu {

/// 16-bit elements as they lie in memory.
struct F16 {
  std::uint16_t bits;
};
struct Bf16 {
  std::uint16_t bits;
};
/// OCP e4m3fn: rows of caches.
struct E4m3 {
  std::uint8_t bits;
};

/// Whole numbers: codes of cache rows, whose scales are the caller's (tensor/int8_rows.h).
struct I8 {
  std::int8_t code;
};

/// The element types that kernels read and write. stream_rows reads no kE4m3 and no kI8, and nothing writes kI8.
enum class Element : std::uint8_t { kF32, kF16, kBf16, kE4m3, kI8 };
constexpr std::int64_t element_bytes(Element element) {
  return element == Element::kF32 ? 4 : element == Element::kF16 || element == Element::kBf16 ? 2 : 1;
}
/// FATHOM_CHECKs that the type is one of the five.
Element element_of(DType dtype);

using Row = const std::byte*;

/// out[m · out_stride + r] (+)= x[m] · rows[r] over k elements, for m < m_count and r < row_count.
struct DotRows {
  Element element = Element::kF32;
  const Row* rows = nullptr;
  std::int64_t row_count = 0, k = 0;
  const float* const* x = nullptr;
  std::int64_t x_offset = 0, m_count = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  bool accumulate = false;
};

/// The same for many rows that lie one after the other in memory, read as fast as memory gives them: eight streams,
/// each through its own stretch of the rows, with lines fetched ahead.
struct StreamRows {
  Element element = Element::kF32;
  Row first = nullptr;
  std::int64_t row_count = 0, k = 0;  // rows are k elements apart
  const float* const* x = nullptr;
  std::int64_t m_count = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  bool accumulate = false;
};

/// y[m · y_stride + i] (+)= sum over r of p[m · p_stride + r] · rows[r][i], i < n.
struct CombineRows {
  Element element = Element::kF32;
  const Row* rows = nullptr;
  std::int64_t row_count = 0, n = 0;
  const float* p = nullptr;
  std::int64_t p_stride = 0, m_count = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;
  bool accumulate = false;
};

/// Rows that hold `heads` vectors of n elements each, `head_bytes` apart; every head has `group` rows of x (or y), head
/// by head. The rows are passed over once, all heads of some rows after another, so that memory is read in order.
struct HeadRows {
  Element element = Element::kF32;
  const Row* rows = nullptr;
  std::int64_t row_count = 0, heads = 0, head_bytes = 0, group = 1, n = 0;
};
/// out[i · out_stride + r] (+)= x[i] · (head i / group of rows[r]).
struct DotHeads {
  HeadRows in;
  const float* const* x = nullptr;
  std::int64_t x_offset = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  bool accumulate = false;
};
/// y[i · y_stride + j] += sum over r of p[i · p_stride + r] · (head i / group of rows[r])[j].
struct CombineHeads {
  HeadRows in;
  const float* p = nullptr;
  std::int64_t p_stride = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;
};

/// Panels: the right-hand side of a product as f32 [panel][depth][Kernels::panel_width], zero-padded in the last panel.
/// transpose: column c of the right-hand side is rows[c] (c < row_count) and depth runs along a row's `count` elements.
/// straight: depth is the row number and columns run along a row's `count` elements.
/// Written at depth [depth_first, …) of panels that are `panel_depth` deep.
struct PackRows {
  Element element = Element::kF32;
  const Row* rows = nullptr;
  std::int64_t row_count = 0, count = 0;
  float* panels = nullptr;
  std::int64_t panel_depth = 0, depth_first = 0;
};

/// c[m · c_stride + n] (+)= sum over d of a[m][a_offset + d · a_step] · panels[d][n], n < columns, d < depth.
struct PanelProduct {
  const float* const* a = nullptr;
  std::int64_t a_offset = 0, a_step = 1, m_count = 0;
  const float* panels = nullptr;
  std::int64_t depth = 0, columns = 0;
  float* c = nullptr;
  std::int64_t c_stride = 0;
  bool accumulate = false;
};

/// out[m · out_stride + r] = the sum over k of (x[m · x_stride + i] - 128) · rows[r · k + i]: codes of activations,
/// plus 128, by codes of weights from -127 to 127. Exact, for up to kMostCodes columns.
struct DotCodes {
  const std::int8_t* rows = nullptr;
  std::int64_t row_count = 0, k = 0;
  const std::uint8_t* x = nullptr;
  std::int64_t x_stride = 0, m_count = 0;
  std::int32_t* out = nullptr;
  std::int64_t out_stride = 0;
};
inline constexpr std::int64_t kMostCodes = 65536;  // 255 · 127 each
void dot_codes_plain(const DotCodes& args);
void dot_codes_avx2(const DotCodes& args);
void dot_codes_avx512(const DotCodes& args);  // F, BW, VL
void dot_codes_vnni(const DotCodes& args);    // and VNNI

struct NormRow {
  const float* x = nullptr;
  Row weight = nullptr, bias = nullptr;  // null: none
  Element weight_element = Element::kF32, bias_element = Element::kF32;
  float eps = 0;
  float* out = nullptr;  // may be x
  std::int64_t n = 0;
};

/// One head: pairs of x, n = 2 · half elements. sign -1 turns back.
struct RotateRow {
  float* x = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  std::int64_t half = 0;
  bool interleaved = false;
  float sign = 1;
};

/// Products with 16-bit weights as they lie and activations rounded to bf16, summed in f32. The activations are packed
/// once for all threads, `token_tile` rows a group.
struct PackedTokens {
  const float* const* x = nullptr;
  std::int64_t x_offset = 0, m_count = 0, k = 0;  // m_count <= token_tile
  std::byte* out = nullptr;                       // packed_bytes(k)
};
struct PackedProduct {
  const std::byte* weight = nullptr;  // first row, bf16
  std::int64_t weight_stride = 0;     // bytes
  std::int64_t rows = 0, k = 0;
  const std::byte* tokens = nullptr;  // ceil(m_count / token_tile) packed groups
  std::int64_t m_count = 0;
  float* out = nullptr;  // out[m · out_stride + r] (+)= …
  std::int64_t out_stride = 0;
  bool accumulate = false;
  const std::byte* ahead =
      nullptr;                   // the weight rows that this thread will read next, or null; same stride, rows and k
  std::byte* scratch = nullptr;  // scratch_bytes
};
struct PackedKernels {
  std::int64_t token_tile = 0;
  std::int64_t least_tokens = 0;  // with fewer, reading the weight straight through is as fast
  std::int64_t row_block = 0;     // rows of the weight that one call takes at most, and best
  std::int64_t max_tokens = 0;    // of one call, a multiple of token_tile
  std::size_t scratch_bytes = 0;
  std::size_t (*packed_bytes)(std::int64_t k) = nullptr;  // of one group
  void (*pack)(const PackedTokens& args) = nullptr;
  void (*multiply)(const PackedProduct& args) = nullptr;
};

struct Kernels {
  std::int64_t panel_width = 0;  // at most kMaxPanelWidth
  void (*dot_rows)(const DotRows& args) = nullptr;
  void (*stream_rows)(const StreamRows& args) = nullptr;
  void (*combine_rows)(const CombineRows& args) = nullptr;
  void (*dot_heads)(const DotHeads& args) = nullptr;
  void (*combine_heads)(const CombineHeads& args) = nullptr;
  void (*pack_transposed)(const PackRows& args) = nullptr;
  void (*pack_straight)(const PackRows& args) = nullptr;
  void (*panel_product)(const PanelProduct& args) = nullptr;
  void (*dot_codes)(const DotCodes& args) = nullptr;
  void (*rms_norm)(const NormRow& args) = nullptr;
  void (*layer_norm)(const NormRow& args) = nullptr;
  void (*rotate)(const RotateRow& args) = nullptr;
  void (*widen)(Element element, Row from, std::int64_t n, float* to) = nullptr;
  void (*narrow)(Element element, const float* from, std::int64_t n, std::byte* to) = nullptr;
  void (*add)(const float* a, const float* b, float* out, std::int64_t n) = nullptr;
  void (*add_scaled)(float factor, const float* x, float* y, std::int64_t n) = nullptr;       // y += factor · x
  void (*add_scaled_relu)(float factor, const float* x, float* y, std::int64_t n) = nullptr;  // y += factor · max(x, 0)
  void (*scale)(float factor, float* y, std::int64_t n) = nullptr;
  float (*sum_of_squares)(const float* x, std::int64_t n) = nullptr;
  float (*largest)(const float* x, std::int64_t n) = nullptr;  // -inf of none; a NaN may or may not be passed over
  bool (*finite)(const float* x, std::int64_t n) = nullptr;
  /// out = exp(scale · x - shift), answers the sum. out may be x.
  float (*exponentials)(const float* x, float scale, float shift, float* out, std::int64_t n) = nullptr;
  void (*swiglu)(const float* gate, const float* up, float limit, float* out,
                 std::int64_t n) = nullptr;  // limit 0: none
  void (*gelu)(const float* x, float* out, std::int64_t n) = nullptr;
  void (*sigmoid)(const float* x, float* out, std::int64_t n) = nullptr;
  /// One column at a time: softmax of gate over `parts` rows (stride n), out = sum of share · kv.
  void (*pool)(const float* kv, const float* gate, std::int64_t parts, std::int64_t n, float* out) = nullptr;
  const PackedKernels* packed = nullptr;  // null: bf16 weights go through panels like all others
};
inline constexpr std::int64_t kMaxPanelWidth = 64;

/// The tables. Those of an instruction set may only be called where it runs (isa.h); null when not built for this
/// processor.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();

}  // namespace fathom::cpu
