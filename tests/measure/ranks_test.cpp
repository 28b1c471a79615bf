// Layouts: chosen as asked or as planned, refused in one sentence, and every golden checkpoint the same on ranks as
// alone.
#include "measure/ranks.h"

#include <gtest/gtest.h>

#include "measure/verify.h"
#include "model/architecture.h"
#include "support/paths.h"

namespace fathom::measure {
namespace {

Path golden(const std::string& name) { return test::fixtures() / "golden" / name; }

Result<engine::Spread> chosen(const std::string& name, const RankWishes& wishes) {
  FATHOM_TRY(const model::ModelSpec spec, model::load_config(golden(name)));
  FATHOM_TRY(const Launch launch, find_launch(wishes, "cpu"));
  return choose_spread(launch, wishes, spec, {});
}

std::string refusal(const std::string& name, const RankWishes& wishes) {
  const auto spread = chosen(name, wishes);
  return spread ? "" : spread.error().key;
}

TEST(Spread, IsWhatWasAskedFor) {
  EXPECT_EQ(chosen("llama-mha", {}).value(), (engine::Spread{}));
  EXPECT_EQ(chosen("llama-mha", {.tp = 2}).value(), (engine::Spread{.tp = 2}));
  EXPECT_EQ(chosen("llama-mha", {.ranks = 4, .tp = 2, .pp = 2}).value(), (engine::Spread{.tp = 2, .pp = 2}));
  EXPECT_EQ(chosen("v3", {.ranks = 4, .tp = 2, .ep = 4, .dp = 2}).value(), (engine::Spread{.tp = 2, .dp = 2, .ep = 4}));
  const auto best = chosen("v3", {.ranks = 4});
  ASSERT_TRUE(best) << error_text(best.error());
  EXPECT_EQ(best->ranks(), 4);
  const auto spread = chosen("v3", {.ep = 2});
  ASSERT_TRUE(spread) << error_text(spread.error());
  EXPECT_EQ(spread->ranks(), 2);
  EXPECT_EQ(spread->ep, 2);
}

TEST(Spread, WhatCannotBeIsRefused) {
  EXPECT_EQ(refusal("llama-mha", {.ranks = 4, .tp = 3}), "ranks.product");
  EXPECT_EQ(refusal("llama-mha", {.ranks = 3, .tp = 2, .pp = 1, .dp = 1}), "ranks.product");
  EXPECT_EQ(refusal("llama-mha", {.tp = 2, .ep = 2}), "ranks.no_experts");
  EXPECT_EQ(refusal("v3", {.tp = 2, .ep = 4}), "ranks.experts");
  EXPECT_EQ(refusal("v3", {.gpus = 2}), "ranks.gpus_device");
  EXPECT_EQ(refusal("v3", {.pp = 999}), "ranks.layers");
}

class Goldens : public testing::TestWithParam<std::string> {};

TEST_P(Goldens, AreEqualOnRanks) {
  const auto spec = model::load_config(golden(GetParam()));
  ASSERT_TRUE(spec) << error_text(spec.error());
  // tests/engine has every layout of every architecture; here it is the reference's own logits.
  std::vector<RankWishes> layouts = {{.tp = 2, .pp = 2}};
  if (spec->routing.experts > 0) layouts = {{.tp = 2, .ep = 2}, {.ep = 2, .dp = 2}};
  for (const RankWishes& wishes : layouts) {
    const auto report = verify(golden(GetParam()), {.atol = 1e-4, .threads = 2, .ranks = wishes});
    ASSERT_TRUE(report) << error_text(report.error());
    EXPECT_TRUE(report->passed) << spread_text(report->spread) << ": " << report->worst;
    EXPECT_GE(report->spread.ranks(), 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Folder, Goldens, testing::Values("llama3-gqa", "v2-lite", "v3", "v4-yarn"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace fathom::measure
