#include "backends/cpu/rounded.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace fathom::cpu {
namespace {

/// To the nearest e4m3, ties to even, |x| <= 448 or a little above. Normal ones lose 20 bits of their mantissa; below 2^-6 the step is 2^-9.
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

}  // namespace

void round_activations(const Kernels& kernels, tensor::WeightFormat format, const float* x, std::int64_t k, float* out) {
  if (!kernels.finite(x, k)) {
    std::fill_n(out, k, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const bool fp8 = format == tensor::WeightFormat::fp8_row;
  float largest = 0;
  for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float scale = largest == 0 ? 1.0f : largest / (fp8 ? 448.0f : 127.0f);
  if (fp8)
    for (std::int64_t i = 0; i < k; ++i) out[i] = nearest_e4m3(x[i] / scale) * scale;
  else
    for (std::int64_t i = 0; i < k; ++i) out[i] = nearest_int8(x[i] / scale) * scale;
}

std::size_t rounded_bytes(std::int64_t count, std::int64_t k) {
  return static_cast<std::size_t>(count) * (static_cast<std::size_t>(k) * sizeof(float) + sizeof(float*)) + 256;
}

const float** round_rows(const Context& context, Scratch& shared, tensor::WeightFormat format, const float* const* x, std::int64_t count, std::int64_t k) {
  const float** rows = shared.take<const float*>(count);
  float* rounded = shared.take<float>(count * k);
  for (std::int64_t t = 0; t < count; ++t) rows[t] = rounded + t * k;
  context.pool.for_each(count, [&](std::int64_t t, int) { round_activations(context.kernels, format, x[t], k, rounded + t * k); });
  return rows;
}

}  // namespace fathom::cpu
