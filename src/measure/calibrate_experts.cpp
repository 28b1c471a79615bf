#include <algorithm>

#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

class ExpertTables : Tables {
 public:
  explicit ExpertTables(const Tables& tables) : Tables(tables) {}

  Status run() {
    FATHOM_TRY_VOID(experts());
    return route();
  }

 private:
  Status experts() {
    return table(Family::kExperts, grid_.formats.front(),
                 {grid_.expert_tokens, grid_.expert_hidden, grid_.expert_inner, grid_.expert_choices},
                 [&](const Place& at) { return expert_layer(whole(at[0]), whole(at[1]), whole(at[2]), whole(at[3])); });
  }

  Result<Point> expert_layer(std::int64_t t, std::int64_t hidden, std::int64_t inner, std::int64_t k) {
    constexpr int kTables = 8;  // of choices, in turn
    const WeightFormat format = *parse_weight_format(grid_.formats.front());
    std::vector<Weight> gate, up, down;
    for (std::int64_t e = 0; e < grid_.experts; ++e) {
      gate.push_back(rig_.weight(format, inner, hidden));
      up.push_back(rig_.weight(format, inner, hidden));
      down.push_back(rig_.weight(format, hidden, inner));
    }
    std::uint32_t state = 7;
    std::vector<std::int32_t> choices;
    double hit = 0;
    for (int table = 0; table < kTables; ++table) {
      std::vector<bool> seen(static_cast<std::size_t>(grid_.experts));
      for (std::int64_t i = 0; i < t; ++i) {
        const std::size_t first = choices.size();
        while (std::ssize(choices) < static_cast<std::ptrdiff_t>(first) + k) {
          state = state * 1664525u + 1013904223u;
          const auto expert = static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(grid_.experts));
          if (std::find(choices.begin() + static_cast<std::ptrdiff_t>(first), choices.end(), expert) != choices.end())
            continue;
          choices.push_back(expert);
          seen[static_cast<std::size_t>(expert)] = true;
        }
      }
      hit += num(std::count(seen.begin(), seen.end(), true)) / kTables;
    }
    const Tensor indices = rig_.table(choices, {kTables * t, k}), x = rig_.tensor(DType::f32, {t, hidden}),
                 weights = rig_.tensor(DType::f32, {t, k}), out = rig_.tensor(DType::f32, {t, hidden}),
                 residual = rig_.tensor(DType::f32, {t, hidden});
    const double expert =
        num(static_cast<std::int64_t>(2 * weight_bytes(format, inner, hidden) + weight_bytes(format, hidden, inner)));
    Point point{.bytes = hit * expert + 8.0 * num(t) * num(hidden),
                .flops = 6.0 * num(t) * num(k) * num(hidden) * num(inner)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), hit * expert, [&](int call) {
      ops_.experts({.x = x,
                    .indices = indices.rows(call % kTables * t, t),
                    .weights = weights,
                    .gate = gate,
                    .up = up,
                    .down = down,
                    .first_expert = 0,
                    .total_experts = grid_.experts,
                    .limit = 0,
                    .out = out,
                    .accumulate = true});
      ops_.add({.a = out, .b = residual, .out = out});
    }));
    return point;
  }

  static constexpr std::int64_t kWidth = 2048;

  Status route() {
    return table(Family::kRoute, "", {grid_.route_tokens, grid_.route_experts}, [&](const Place& at) -> Result<Point> {
      const std::int64_t t = whole(at[0]), experts = whole(at[1]), k = std::min<std::int64_t>(8, experts / 2);
      const Tensor logits = rig_.tensor(DType::f32, {t, experts}), indices = rig_.tensor(DType::i32, {t, k}),
                   weights = rig_.tensor(DType::f32, {t, k});
      Point point{.bytes = 4.0 * num(t) * num(experts)};
      const auto choose = [&](int) {
        ops_.route({.logits = logits,
                    .bias = {},
                    .table = {},
                    .ids = {},
                    .routing = {.scoring = Scoring::kSoftmax, .experts = experts, .top_k = k},
                    .indices = indices,
                    .weights = weights});
      };
      if (!grid_.route_beside || !recorded(num(t))) {
        FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, choose));
        return point;
      }
      // Shared experts do not wait for the choice: beside the last of their products it may cost nothing.
      const WeightFormat format = *parse_weight_format(grid_.formats.front());
      const Tensor x = rig_.tensor(DType::f32, {t, kWidth}), out = rig_.tensor(DType::f32, {t, kWidth});
      const auto multiply = [&](int) {
        ops_.linear({.x = x, .weight = rig_.weight(format, kWidth, kWidth), .bias = {}, .out = out});
      };
      const double cold = num(static_cast<std::int64_t>(weight_bytes(format, kWidth, kWidth)));
      FATHOM_TRY(const double alone, rig_.time(true, cold, multiply));
      FATHOM_TRY(const double both, rig_.time(true, cold, [&](int call) {
        choose(call);
        multiply(call);
      }));
      point.seconds = std::max(both - alone, kLeastSeconds);
      return point;
    });
  }
};

}  // namespace

Status time_experts(const Tables& tables) { return ExpertTables(tables).run(); }

}  // namespace fathom::measure
