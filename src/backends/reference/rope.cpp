// Family rope: rotary positions (Su et al. 2021).
#include <algorithm>
#include <cmath>

#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary

void ReferenceOps::rotary(const RotaryArgs& args) {
  const std::int64_t n = args.positions.dim(0), half = args.inverse_frequency.dim(0);
  FATHOM_CHECK(args.cos.shape == (Shape{n, half}) && args.sin.shape == args.cos.shape);
  const auto positions = load_ints(args.positions);
  const Array frequency = load(args.inverse_frequency);
  Array cos(args.cos.shape), sin(args.sin.shape);
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t i = 0; i < half; ++i) {
      const std::int64_t position = std::max<std::int64_t>(positions[static_cast<std::size_t>(t)], 0);  // -1: angle 0
      const float angle =
          static_cast<float>(position) * static_cast<float>(*frequency.at(i));  // f32, as transformers has it
      cos.at(t)[i] = std::cos(static_cast<double>(angle)) * args.scale;
      sin.at(t)[i] = std::sin(static_cast<double>(angle)) * args.scale;
    }
  store(args.cos, cos);
  store(args.sin, sin);
}

namespace {
void turn(const RopeArgs& args) {
  const std::int64_t n = args.x.dim(0), heads = args.x.dim(1), half = args.cos.dim(1);
  FATHOM_CHECK(args.x.shape.rank == 3 && args.cos.dim(0) == n && args.sin.shape == args.cos.shape);
  FATHOM_CHECK(args.first_dim >= 0 && args.first_dim + 2 * half <= args.x.dim(2));
  const Array cos = load(args.cos), sin = load(args.sin);
  Array x = load(args.x);
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < half; ++i) {
        double* rotated = x.at(t, h) + args.first_dim;
        double& first = rotated[args.interleaved ? 2 * i : i];
        double& second = rotated[args.interleaved ? 2 * i + 1 : i + half];
        const double c = cos.at(t)[i], s = args.inverse ? -sin.at(t)[i] : sin.at(t)[i];
        const double turned = first * c - second * s;
        second = second * c + first * s;
        first = turned;
      }
  store(args.x, x);
}
}  // namespace

void ReferenceOps::rope(const RopeArgs& args) { turn(args); }

// A rotation's transpose is the rotation back, a scale in cos and sin included.
void ReferenceGradOps::rope_backward(const RopeGrad& args) {
  RopeArgs back = args.f;
  back.x = args.dx;
  back.inverse = !args.f.inverse;
  turn(back);
}

}  // namespace fathom::reference
