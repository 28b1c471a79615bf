#include <algorithm>

#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

/// What has no shape.
class MachineTables : Tables {
 public:
  explicit MachineTables(const Tables& tables) : Tables(tables) {}

  Status run() {
    FATHOM_TRY_VOID(elementwise());
    return copies();
  }

 private:
  Status elementwise() {
    return table(Family::kElementwise, "", {grid_.bytes}, [&](const Place& at) -> Result<Point> {
      const std::int64_t n = std::max<std::int64_t>(whole(at[0]) / 12, 64), wide = std::min<std::int64_t>(n, 4096),
                         rows = std::max<std::int64_t>(n / wide, 1);
      const Tensor a = rig_.tensor(DType::f32, {rows, wide}), b = rig_.tensor(DType::f32, {rows, wide}),
                   out = rig_.tensor(DType::f32, {rows, wide});
      Point point{.bytes = 12.0 * num(rows) * num(wide)};
      FATHOM_TRY(point.seconds,
                 rig_.time(recorded(num(rows)), 0, [&](int) { ops_.add({.a = a, .b = b, .out = out}); }));
      return point;
    });
  }

  /// Copies, transfers and launches.
  Status copies() {
    const double large = grid_.bytes.back();
    FATHOM_TRY_VOID(table(Family::kCopy, "", {{large}}, [&](const Place& at) -> Result<Point> {
      const std::int64_t rows = std::max<std::int64_t>(whole(at[0]) / 8 / 4096, 1);
      const Tensor a = rig_.tensor(DType::f32, {rows, 4096}), b = rig_.tensor(DType::f32, {rows, 4096});
      Point point{.bytes = 8.0 * num(rows) * 4096};
      FATHOM_TRY(point.seconds, rig_.time(true, 0, [&](int) { ops_.copy({.x = a, .out = b}); }));
      return point;
    }));
    Backend& backend = rig_.backend();
    const Bytes most = static_cast<Bytes>(std::max(std::min(large, 1e8), 1.0));
    FATHOM_TRY(const auto host, backend.allocate_buffer(most, Placement::kShared));
    FATHOM_TRY_VOID(table(Family::kHostCopy, "", {{std::min(large, 1e8)}}, [&](const Place& at) -> Result<Point> {
      const auto bytes = static_cast<Bytes>(at[0]);
      const Tensor to = rig_.tensor(DType::f32, {static_cast<std::int64_t>(bytes / 4)});
      Point point{.bytes = at[0]};
      FATHOM_TRY(point.seconds, rig_.time_calls(5, [&] {
        backend.copy_in(to.data, host->data(), bytes);
        return backend.synchronize();
      }));
      return point;
    }));
    FATHOM_TRY_VOID(table(Family::kLaunch, "", {{512}}, [&](const Place& at) -> Result<Point> {
      const Tensor a = rig_.tensor(DType::f32, {1, 64}), b = rig_.tensor(DType::f32, {1, 64});
      Point point{.bytes = at[0] * 512};
      FATHOM_TRY(point.seconds, rig_.time(false, 0, [&](int) {
        for (std::int64_t i = 0; i < whole(at[0]); ++i) ops_.gelu({.x = a, .out = b});
      }));
      return point;
    }));
    return {};
  }
};

}  // namespace

Status time_machine(const Tables& tables) { return MachineTables(tables).run(); }

}  // namespace fathom::measure
