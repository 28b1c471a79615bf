// The sequences of ops that a calibration times: one function a family, in the order of plan::Family.
#pragma once
#include <functional>

#include "measure/calibrate_rig.h"
#include "plan/calibration.h"

namespace fathom::measure {

/// All tables of one device by itself. `point` is called after each point.
Result<std::vector<plan::MeasuredTable>> time_families(Rig& rig, const Grid& grid, const std::function<void()>& point);
/// How many points that will be.
std::size_t count_points(const Grid& grid, tensor::Backend& backend);
/// The ways in which engines step on this backend: formats of Family::kStep.
std::vector<std::string_view> step_ways(tensor::Backend& backend);

/// A table with its axes and no points yet.
plan::MeasuredTable make_table(plan::Family family, std::string format, std::vector<std::vector<double>> axes);
/// Calls time(place) for each point, which answers its seconds and sets what it moves and does.
struct Point {
  double seconds = 0, bytes = 0, flops = 0;
};
Status fill_table(plan::MeasuredTable& table,
                  const std::function<Result<Point>(const std::vector<double>& place)>& time,
                  const std::function<void()>& point);

}  // namespace fathom::measure
