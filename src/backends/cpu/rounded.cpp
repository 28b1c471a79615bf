#include "backends/cpu/rounded.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tensor/ops.h"

namespace fathom::cpu {
namespace {

/// To the nearest e4m3, ties to even, |x| <= 448 or a little above. Normal ones lose 20 bits of their mantissa; below
/// 2^-6 the step is 2^-9.
float nearest_e4m3(float x) {
  constexpr float kSmall = 24576.0f;  // 1.5 · 2^14: its last bit is 2^-9
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const float normal = std::bit_cast<float>((bits + 0x7ffffu + (bits >> 20 & 1u)) & ~0xfffffu);
  const float small = (x + kSmall) - kSmall;
  const float near = std::fabs(x) < 0x1p-6f ? small : normal;
  return std::max(-448.0f, std::min(448.0f, near));
}
float nearest_int8(float x) {
  constexpr float kWhole = 12582912.0f;  // 1.5 · 2^23: its last bit is 1
  return std::max(-127.0f, std::min(127.0f, (x + kWhole) - kWhole));
}

/// Codes plus 128, and their scale: NaN where x holds NaN or infinity.
float round_to_codes(const Kernels& kernels, const float* x, std::int64_t k, std::uint8_t* codes) {
  if (!kernels.finite(x, k)) {
    std::fill_n(codes, k, std::uint8_t{128});
    return std::numeric_limits<float>::quiet_NaN();
  }
  float largest = 0;
  for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float scale = largest == 0 ? 1.0f : largest / 127.0f;
  for (std::int64_t i = 0; i < k; ++i)
    codes[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(nearest_int8(x[i] / scale)) + 128);
  return scale;
}

/// The least power of two that is not below x (above 0 and finite).
float power_above(float x) {
  constexpr std::uint32_t kMantissa = 0x7fffffu, kSmallest = 0x00800000u;
  const std::uint32_t bits = std::max(std::bit_cast<std::uint32_t>(x), kSmallest);
  return std::bit_cast<float>((bits + kMantissa) & ~kMantissa);
}

/// Values that share a scale.
void round_together(const Kernels& kernels, bool fp8, bool powers, const float* x, std::int64_t k, float* out) {
  if (!kernels.finite(x, k)) {
    std::fill_n(out, k, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  float largest = 0;
  for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(x[i]));
  float scale = largest == 0 ? 1.0f : largest / (fp8 ? 448.0f : 127.0f);
  if (powers) scale = power_above(scale);
  if (fp8)
    for (std::int64_t i = 0; i < k; ++i) out[i] = nearest_e4m3(x[i] / scale) * scale;
  else
    for (std::int64_t i = 0; i < k; ++i) out[i] = nearest_int8(x[i] / scale) * scale;
}

constexpr std::int64_t kCodeRows = 64, kCodeTokens = 64;  // of one task

}  // namespace

void multiply_codes(const Context& context, const Product& product) {
  const tensor::Weight& weight = *product.weight;
  const std::int64_t k = weight.cols;
  FATHOM_CHECK(k <= kMostCodes, "a weight has too many columns for sums of 32 bits");
  Scratch& shared = context.workspace.shared();
  const std::size_t mark = shared.used();
  const std::int64_t room =
      static_cast<std::int64_t>((shared.left() - 256) / (static_cast<std::size_t>(k) + sizeof(float)));
  FATHOM_CHECK(room > 0, "a weight has too many columns for the workspace");
  for (std::int64_t first = 0; first < product.m_count; first += room) {
    const std::int64_t tokens = std::min(room, product.m_count - first);
    float* scales = shared.take<float>(tokens);
    auto* codes = shared.take<std::uint8_t>(tokens * k);
    context.pool.for_each(tokens, [&](std::int64_t t, int) {
      scales[t] = round_to_codes(context.kernels, product.x[first + t], k, codes + t * k);
    });
    const std::int64_t row_blocks = (product.rows + kCodeRows - 1) / kCodeRows,
                       token_blocks = (tokens + kCodeTokens - 1) / kCodeTokens;
    context.pool.for_each(row_blocks * token_blocks, [&](std::int64_t task, int thread) {
      const std::int64_t n0 = task / token_blocks * kCodeRows, nb = std::min(kCodeRows, product.rows - n0);
      const std::int64_t m0 = task % token_blocks * kCodeTokens, mb = std::min(kCodeTokens, tokens - m0);
      Scratch& scratch = context.workspace.of(thread);
      scratch.reset();
      auto* sums = scratch.take<std::int32_t>(mb * nb);
      context.kernels.dot_codes(
          {.rows = reinterpret_cast<const std::int8_t*>(weight.data) + (product.first_row + n0) * k,
           .row_count = nb,
           .k = k,
           .x = codes + m0 * k,
           .x_stride = k,
           .m_count = mb,
           .out = sums,
           .out_stride = nb});
      const auto* row_scales = reinterpret_cast<const float*>(weight.scales) + product.first_row + n0;
      for (std::int64_t m = 0; m < mb; ++m) {
        float* out = product.out + (first + m0 + m) * product.out_stride + n0;
        for (std::int64_t n = 0; n < nb; ++n) {
          float value = static_cast<float>(sums[m * nb + n]) * (scales[m0 + m] * row_scales[n]);
          if (product.bias != nullptr) value += product.bias[n0 + n];
          out[n] = product.accumulate ? out[n] + value : value;
        }
      }
    });
    shared.rewind(mark);
  }
}

void round_activations(const Kernels& kernels, const tensor::Weight& weight, const float* x, std::int64_t k,
                       float* out) {
  const bool fp8 = weight.format != tensor::WeightFormat::int8_row,
             powers = weight.activations == tensor::Activations::kPerGroupOfPowers;
  const std::int64_t together = tensor::rounds_in_groups(weight) ? tensor::kRoundedColumns : k;
  for (std::int64_t first = 0; first < k; first += together)
    round_together(kernels, fp8, powers, x + first, std::min(together, k - first), out + first);
}

std::size_t rounded_bytes(std::int64_t count, std::int64_t k) {
  return static_cast<std::size_t>(count) * (static_cast<std::size_t>(k) * sizeof(float) + sizeof(float*)) + 256;
}

const float** round_rows(const Context& context, Scratch& shared, const tensor::Weight& weight, const float* const* x,
                         std::int64_t count, std::int64_t k) {
  const float** rows = shared.take<const float*>(count);
  float* rounded = shared.take<float>(count * k);
  for (std::int64_t t = 0; t < count; ++t) rows[t] = rounded + t * k;
  context.pool.for_each(
      count, [&](std::int64_t t, int) { round_activations(context.kernels, weight, x[t], k, rounded + t * k); });
  return rows;
}

}  // namespace fathom::cpu
