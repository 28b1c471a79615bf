#include "backends/reference/rounded.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fathom::reference {
namespace {

/// Values that share a scale.
void round_together(bool fp8, bool powers, double* x, std::int64_t n) {
  float largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::fabs(static_cast<float>(x[i])));
    finite = finite && std::isfinite(static_cast<float>(x[i]));
  }
  float scale = largest == 0 ? 1.0f : largest / (fp8 ? 448.0f : 127.0f);
  if (powers && finite) {
    int exponent = 0;
    const float fraction = std::frexp(std::max(scale, std::numeric_limits<float>::min()), &exponent);  // in [0.5, 1)
    scale = std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const float quotient = static_cast<float>(x[i]) / scale;
    const double code = fp8 ? static_cast<double>(f8e4m3_to_f32(f32_to_f8e4m3(quotient)))
                            : std::fmax(-127.0, std::fmin(127.0, std::nearbyint(static_cast<double>(quotient))));
    x[i] = finite ? code * static_cast<double>(scale) : std::numeric_limits<double>::quiet_NaN();
  }
}

}  // namespace

void round_activations(const tensor::Weight& weight, double* x, std::int64_t n) {
  const bool fp8 = weight.format != tensor::WeightFormat::int8_row;
  const bool powers = weight.activations == tensor::Activations::kPerGroupOfPowers;
  if (!tensor::rounds_in_groups(weight)) return round_together(fp8, powers, x, n);
  for (std::int64_t first = 0; first < n; first += tensor::kRoundedColumns)
    round_together(fp8, powers, x + first, std::min(tensor::kRoundedColumns, n - first));
}

void round_rows(const tensor::Weight& weight, Array& x) {
  if (!tensor::rounds_activations(weight, x.shape[0])) return;
  for (std::int64_t t = 0; t < x.shape[0]; ++t) round_activations(weight, x.at(t), x.shape[1]);
}

}  // namespace fathom::reference
