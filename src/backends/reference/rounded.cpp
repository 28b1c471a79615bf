#include "backends/reference/rounded.h"

#include <cmath>
#include <limits>

namespace fathom::reference {

void round_activations(tensor::WeightFormat format, double* x, std::int64_t n) {
  const bool fp8 = format == tensor::WeightFormat::fp8_row;
  float largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::fabs(static_cast<float>(x[i])));
    finite = finite && std::isfinite(static_cast<float>(x[i]));
  }
  const float scale = largest == 0 ? 1.0f : largest / (fp8 ? 448.0f : 127.0f);
  for (std::int64_t i = 0; i < n; ++i) {
    const float quotient = static_cast<float>(x[i]) / scale;
    const double code = fp8 ? static_cast<double>(f8e4m3_to_f32(f32_to_f8e4m3(quotient)))
                            : std::fmax(-127.0, std::fmin(127.0, std::nearbyint(static_cast<double>(quotient))));
    x[i] = finite ? code * static_cast<double>(scale) : std::numeric_limits<double>::quiet_NaN();
  }
}

void round_rows(const tensor::Weight& weight, Array& x) {
  if (!tensor::rounds_activations(weight, x.shape[0])) return;
  for (std::int64_t t = 0; t < x.shape[0]; ++t) round_activations(weight.format, x.at(t), x.shape[1]);
}

}  // namespace fathom::reference
