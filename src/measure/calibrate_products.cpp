#include <algorithm>
#include <array>

#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

constexpr std::int64_t kLeastMade = 8;  // tokens up to which nothing is gained by another form of x

class ProductTables : Tables {
 public:
  explicit ProductTables(const Tables& tables) : Tables(tables) {}

  Status run() {
    for (std::size_t f = 0; f < grid_.formats.size(); ++f) FATHOM_TRY_VOID(products(grid_.formats[f], f == 0));
    return grouped();
  }

 private:
  Status products(const std::string& name, bool full) {
    const auto format = parse_weight_format(name);
    FATHOM_CHECK(format.has_value());
    const std::vector<double>&tokens = full ? grid_.tokens : grid_.few_tokens,
          &widths = full ? grid_.widths : grid_.few_widths;
    for (const Family family : {Family::kPlain, Family::kSum, Family::kGates, Family::kNormed, Family::kNormedGates})
      FATHOM_TRY_VOID(table(family, name, {tokens, widths, widths}, [&](const Place& at) {
        return product(family, *format, whole(at[0]), whole(at[1]), whole(at[2]));
      }));
    return {};
  }

  Result<Point> product(Family family, WeightFormat format, std::int64_t tokens, std::int64_t n, std::int64_t k) {
    const bool gates = family == Family::kGates || family == Family::kNormedGates,
               normed = family == Family::kNormed || family == Family::kNormedGates;
    const int parts = gates || normed ? 2 : 1;
    const std::int64_t own = n / parts;
    const Tensor from = rig_.tensor(DType::f32, {tokens, k}), x = rig_.tensor(DType::f32, {tokens, k}),
                 norm = make_tensor(rig_.weight(WeightFormat::f32, 1, k).tensor().data, DType::f32, {k});
    std::array<Tensor, 2> out{rig_.tensor(DType::f32, {tokens, own}), rig_.tensor(DType::f32, {tokens, own})};
    const Tensor residual = rig_.tensor(DType::f32, {tokens, own});
    // In a model the x of a product that a sum follows comes from a gate or from attention, which may leave it in the
    // form that the product wants: so does a gate here, whose own time is taken off.
    const bool made = family == Family::kSum && tokens > kLeastMade;
    const Tensor up = made ? rig_.tensor(DType::f32, {tokens, k}) : Tensor();
    const auto make = [&] { ops_.swiglu({.gate = from, .up = up, .limit = 0, .out = x}); };
    const double cold = num(static_cast<std::int64_t>(weight_bytes(format, n, k)));
    double making = 0;
    if (made) {
      FATHOM_TRY(making, rig_.time(recorded(num(tokens)), 0, [&](int) { make(); }));
    }
    Point point{
        .bytes = num(static_cast<std::int64_t>(weight_bytes(format, own, k))) * parts + 4.0 * num(tokens) * num(k + n),
        .flops = 2.0 * num(tokens) * num(n) * num(k)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(tokens)), cold, [&](int) {
      if (made) make();
      if (normed) ops_.rms_norm({.x = from, .weight = norm, .eps = 1e-6, .out = x});
      for (int i = 0; i < parts; ++i)
        ops_.linear(
            {.x = x, .weight = rig_.weight(format, own, k), .bias = {}, .out = out[static_cast<std::size_t>(i)]});
      if (gates) ops_.swiglu({.gate = out[0], .up = out[1], .limit = 0, .out = out[0]});
      if (family == Family::kSum) ops_.add({.a = out[0], .b = residual, .out = out[0]});
    }));
    point.seconds = std::max(point.seconds - making, 0.3 * point.seconds);
    return point;
  }

  Status grouped() {
    std::vector<double> tokens = grid_.few_tokens;
    for (const Family family : {Family::kGroupedIn, Family::kGroupedOut}) {
      FATHOM_TRY_VOID(
          table(family, grid_.formats.front(), {tokens, grid_.latent_heads}, [&](const Place& at) -> Result<Point> {
            const std::int64_t t = whole(at[0]), heads = whole(at[1]);
            const bool in = family == Family::kGroupedIn;
            const WeightFormat format = *parse_weight_format(grid_.formats.front());
            const Tensor narrow = rig_.tensor(DType::f32, {t, heads, kHeadDim}),
                         wide = rig_.tensor(DType::f32, {t, heads, kLatent});
            const double weights = num(static_cast<std::int64_t>(weight_bytes(format, heads * kHeadDim, kLatent)));
            Point point{.bytes = weights + 4.0 * num(t) * num(heads) * num(kHeadDim + kLatent),
                        .flops = 2.0 * num(t) * num(heads) * num(kHeadDim) * num(kLatent)};
            FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 2 * weights, [&](int) {
              // Both halves lie in one weight: rows of the keys, then those of the values, a head.
              ops_.grouped_linear({.x = in ? narrow : wide,
                                   .weight = rig_.weight(format, heads * 2 * kHeadDim, kLatent),
                                   .group_rows = 2 * kHeadDim,
                                   .row_offset = in ? 0 : kHeadDim,
                                   .rows = kHeadDim,
                                   .transposed = in,
                                   .out = in ? wide : narrow});
            }));
            return point;
          }));
    }
    return {};
  }
};

}  // namespace

Status time_products(const Tables& tables) { return ProductTables(tables).run(); }

}  // namespace fathom::measure
