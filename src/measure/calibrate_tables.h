// What those who time the families of one subject share: the rig, the grid, and a table after the other. Private to
// calibrate_*.cpp.
#pragma once
#include <cmath>

#include "measure/calibrate_before.h"
#include "measure/calibrate_families.h"

namespace fathom::measure {

/// Where on its axes a point is.
using Place = std::vector<double>;
inline std::int64_t whole(double value) { return std::llround(value); }
inline double num(std::int64_t value) { return static_cast<double>(value); }

class Tables {
 public:
  /// `made` gets the tables, `point` is called after each point.
  Tables(Rig& rig, const Grid& grid, const std::function<void()>& point, std::vector<plan::MeasuredTable>& made)
      : rig_(rig), ops_(rig.ops()), grid_(grid), point_(point), made_(made) {}

 protected:
  static constexpr std::int64_t kHeadDim = LatentRows::kHead, kLatent = LatentRows::kLatent, kRope = LatentRows::kRope;
  static constexpr double kLeastSeconds = 2e-7;  // tables have no zeros

  /// Passes of so many tokens are recorded, as steps of decoding are.
  bool recorded(double tokens) const { return tokens < grid_.eager_tokens; }
  Status table(plan::Family family, const std::string& format, std::vector<std::vector<double>> axes,
               const std::function<Result<Point>(const Place&)>& time) {
    plan::MeasuredTable made = make_table(family, format, std::move(axes));
    const auto one = [&](const Place& place) -> Result<Point> {
      FATHOM_TRY_VOID(rig_.forget());
      return time(place);
    };
    FATHOM_TRY_VOID(fill_table(made, one, point_));
    made_.push_back(std::move(made));
    return {};
  }

  Rig& rig_;
  tensor::Ops& ops_;
  const Grid& grid_;

 private:
  const std::function<void()>& point_;
  std::vector<plan::MeasuredTable>& made_;
};

// The subjects, in the order of plan::Family.
Status time_products(const Tables& tables);
Status time_attention(const Tables& tables);
Status time_rows(const Tables& tables);
Status time_experts(const Tables& tables);
Status time_machine(const Tables& tables);
Status time_steps(const Tables& tables);

}  // namespace fathom::measure
