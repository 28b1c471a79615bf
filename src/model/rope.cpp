#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/spec.h"

namespace fathom::model {
namespace {

double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

// The dimension whose wavelength makes `rotations` turns over the original context.
double yarn_dimension(const RopeSpec& rope, double rotations) {
  return static_cast<double>(rope.dims) *
         std::log(static_cast<double>(rope.original_context) / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeSpec& rope) {
  const auto half = static_cast<std::size_t>(rope.dims / 2);
  std::vector<float> out(half);
  for (std::size_t i = 0; i < half; ++i) {
    // transformers raises in f32; so do we, so that angles at long positions agree.
    const float power = static_cast<float>(2 * i) / static_cast<float>(rope.dims);
    out[i] = 1.0f / std::pow(static_cast<float>(rope.theta), power);
  }
  if (rope.type == RopeSpec::Type::kLinear)
    for (float& f : out) f /= static_cast<float>(rope.factor);
  if (rope.type == RopeSpec::Type::kLlama3) {
    const double low = static_cast<double>(rope.original_context) / rope.low_frequency_factor;
    const double high = static_cast<double>(rope.original_context) / rope.high_frequency_factor;
    for (float& f : out) {
      const double wavelength = 2 * std::numbers::pi / static_cast<double>(f);
      if (wavelength < high) continue;
      if (wavelength > low) {
        f = static_cast<float>(static_cast<double>(f) / rope.factor);
        continue;
      }
      const double smooth = (static_cast<double>(rope.original_context) / wavelength - rope.low_frequency_factor) /
                            (rope.high_frequency_factor - rope.low_frequency_factor);
      f = static_cast<float>((1 - smooth) * static_cast<double>(f) / rope.factor + smooth * static_cast<double>(f));
    }
  }
  if (rope.type == RopeSpec::Type::kYarn) {
    double low = yarn_dimension(rope, rope.beta_fast), high = yarn_dimension(rope, rope.beta_slow);
    if (rope.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(rope.dims - 1));
    if (low == high) high += 0.001;
    for (std::size_t i = 0; i < half; ++i) {
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      const auto f = static_cast<double>(out[i]);
      out[i] = static_cast<float>(f / rope.factor * ramp + f * (1 - ramp));
    }
  }
  return out;
}

double rotary_scale(const RopeSpec& rope) {
  if (rope.type != RopeSpec::Type::kYarn) return 1.0;
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0)
    return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
  return yarn_mscale(rope.factor, 1) * rope.attention_multiplier;
}

}  // namespace fathom::model
