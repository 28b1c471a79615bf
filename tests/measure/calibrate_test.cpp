// How a calibration times what a pass costs around its ops: as engines step on that device.
#include <gtest/gtest.h>

#include "backends/backends.h"
#include "measure/calibrate_families.h"
#include "measure/calibrate_tables.h"
#include "support/stand_in.h"

namespace fathom::measure {
namespace {

using plan::Family;
using plan::MeasuredTable;

/// A stand-in that writes down what is asked of it.
class Watched final : public fathom::test::StandIn {
 public:
  struct Choice {
    std::int64_t rows, vocabulary;
    bool goes_on;
    int waited_for;  // passes that were launched before and not yet taken
    bool operator==(const Choice&) const = default;
  };
  Watched(std::unique_ptr<Backend> inner, bool ahead, std::vector<Choice>& choices)
      : StandIn(std::move(inner), ahead), choices_(choices) {}
  bool sample(const tensor::SampleArgs& args) override {
    if (args.rows > 0) choices_.push_back({args.rows, args.vocabulary, args.next.sequences != nullptr, under_way_});
    return StandIn::sample(args);
  }
  void remember(int moment) override {
    ++under_way_;
    StandIn::remember(moment);
  }
  Status await_moment(int moment) override {
    --under_way_;
    return StandIn::await_moment(moment);
  }

 private:
  std::vector<Choice>& choices_;
  int under_way_ = 0;
};

Grid grid_of_steps(std::vector<double> bytes) {
  Grid grid = quick_grid();
  grid.step_bytes = std::move(bytes);
  return grid;
}

struct TimedSteps {
  std::vector<MeasuredTable> tables;
  std::vector<Watched::Choice> choices;
};
TimedSteps steps_of(const Grid& grid, bool chooses, bool ahead) {
  TimedSteps made;
  auto backend = backends::make_backend("cpu", {.threads = 1});
  EXPECT_TRUE(backend);
  if (chooses) *backend = std::make_unique<Watched>(std::move(*backend), ahead, made.choices);
  const auto rig = Rig::make(std::move(*backend), grid);
  EXPECT_TRUE(rig);
  std::size_t points = 0;
  const std::function<void()> point = [&] { ++points; };
  const Status timed = time_steps(Tables(**rig, grid, point, made.tables));
  EXPECT_TRUE(timed) << error_text(timed.error());
  EXPECT_EQ(points, step_ways((*rig)->backend()).size() * grid.step_bytes.size());
  return made;
}

TEST(CalibrateSteps, AHostWaitsForLogits) {
  const TimedSteps made = steps_of(grid_of_steps({4, 4096}), false, false);
  ASSERT_EQ(made.tables.size(), 1u);
  EXPECT_EQ(made.tables[0].family, Family::kStep);
  EXPECT_EQ(made.tables[0].format, plan::kStepToHost);
}

TEST(CalibrateSteps, ADeviceThatChoosesIsWaitedForAPassAtATime) {
  const TimedSteps made = steps_of(grid_of_steps({4, 4096}), true, false);
  ASSERT_EQ(made.tables.size(), 2u);
  EXPECT_EQ(made.tables[1].format, plan::kStepChosen);
  ASSERT_FALSE(made.choices.empty());
  EXPECT_EQ(made.choices.front(), (Watched::Choice{1, 1, false, 0}));
  EXPECT_EQ(made.choices.back(), (Watched::Choice{1, 1024, false, 0}));
}

TEST(CalibrateSteps, ADeviceThatRunsAheadHasTheNextPassByThen) {
  const TimedSteps made = steps_of(grid_of_steps({4, 1 << 20}), true, true);
  ASSERT_EQ(made.tables.size(), 3u);
  const MeasuredTable& ahead = made.tables[2];
  EXPECT_EQ(ahead.format, plan::kStepAhead);
  EXPECT_EQ(ahead.axes, (std::vector<std::vector<double>>{{4, 1 << 20}}));
  EXPECT_EQ(ahead.bytes, ahead.axes[0]);
  for (const double seconds : ahead.seconds) EXPECT_GT(seconds, 0);
  // A megabyte is two rows of a large vocabulary.
  EXPECT_EQ(made.choices.back(), (Watched::Choice{2, 1 << 17, true, 1}));
  const auto alone = [](const Watched::Choice& c) { return c.goes_on && c.waited_for == 0; };
  EXPECT_EQ(std::count_if(made.choices.begin(), made.choices.end(), alone), 4)
      << "the first pass of each run: two lengths of each point";
}

TEST(CalibrateTables, CountsItsPointsAndKeepsEveryTable) {
  const Grid grid = quick_grid();
  for (const bool ahead : {false, true}) {
    std::vector<Watched::Choice> choices;
    auto backend = backends::make_backend("cpu", {.threads = 1});
    ASSERT_TRUE(backend);
    if (ahead) *backend = std::make_unique<Watched>(std::move(*backend), true, choices);
    const auto rig = Rig::make(std::move(*backend), grid);
    ASSERT_TRUE(rig);
    std::size_t points = 0;
    const auto tables = time_families(**rig, grid, [&] { ++points; });
    ASSERT_TRUE(tables) << error_text(tables.error());
    EXPECT_EQ(points, count_points(grid, (*rig)->backend()));
    plan::Calibration made{.device = "cpu", .name = "n", .date = "d", .source = "s", .tables = *tables};
    const auto back = plan::parse_calibration(plan::calibration_json(made), "a test");
    ASSERT_TRUE(back) << error_text(back.error());
    for (const std::string_view way : {plan::kStepToHost, plan::kStepChosen, plan::kStepAhead})
      EXPECT_EQ(back->find(Family::kStep, way) != nullptr, ahead || way == plan::kStepToHost) << way;
    for (int f = 0; f < plan::kFamilyCount; ++f) {
      const auto family = static_cast<Family>(f);
      const bool there = std::any_of(back->tables.begin(), back->tables.end(),
                                     [&](const MeasuredTable& t) { return t.family == family; });
      EXPECT_EQ(there, family != Family::kAllReduce) << plan::family_name(family);
    }
  }
}

}  // namespace
}  // namespace fathom::measure
