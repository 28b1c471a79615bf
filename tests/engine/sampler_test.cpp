// The sampler draws what the probabilities say, and its filters leave what they should.
#include "engine/sampler.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace fathom::engine {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  for (const float x : logits) p.push_back(std::exp(x / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

std::vector<int> draw(const SamplingOptions& options, const std::vector<float>& logits, int draws) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) {
    const auto id = sampler.sample(logits);
    EXPECT_TRUE(id);
    if (id) ++counts.at(static_cast<std::size_t>(*id));
  }
  return counts;
}

// Counts of a binomial lie within five standard deviations but once in a million times; the seeds are fixed.
void expect_distribution(const std::vector<int>& counts, const std::vector<double>& p) {
  const int draws = std::accumulate(counts.begin(), counts.end(), 0);
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double mean = draws * p[i], deviation = std::sqrt(draws * p[i] * (1 - p[i]));
    EXPECT_NEAR(counts[i], mean, 5 * deviation + 1e-9) << "token " << i;
  }
}

std::vector<double> only(std::vector<double> p, const std::vector<std::size_t>& kept) {
  double sum = 0;
  for (const std::size_t i : kept) sum += p[i];
  std::vector<double> out(p.size(), 0.0);
  for (const std::size_t i : kept) out[i] = p[i] / sum;
  return out;
}

const std::vector<float> kLogits = {0.1f, 2.0f, -1.0f, 1.5f, 0.9f, -4.0f, 1.2f, 0.3f};
constexpr int kDraws = 40'000;

TEST(Greedy, TakesTheLowestAmongEquals) {
  Sampler sampler({}, 5);
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, 7, 3, 7, 7}), 1);
  EXPECT_EQ(*sampler.sample(std::vector<float>{0, 0, 0, 0, 0}), 0);
  EXPECT_EQ(*sampler.sample(std::vector<float>{-3, -2, -2, -9, -3}), 1);
}

TEST(Greedy, NeverTakesWhatIsNotANumber) {
  Sampler sampler({}, 4);
  EXPECT_EQ(*sampler.sample(std::vector<float>{kNaN, 1, 2, kNaN}), 2);
  EXPECT_EQ(*sampler.sample(std::vector<float>{kNaN, -kInfinity, -5, kNaN}), 2);
}

TEST(Sampling, SaysSoWhenTheModelComputesNothingFinite) {
  for (const double temperature : {0.0, 1.0}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{kNaN, kNaN}, {-kInfinity, -kInfinity}, {kInfinity, 0}, {kNaN, kInfinity}}) {
      Sampler sampler({.temperature = temperature}, 2);
      const auto id = sampler.sample(logits);
      ASSERT_FALSE(id);
      EXPECT_EQ(id.error().key, "engine.no_finite_logit");
    }
  }
}

TEST(Sampling, NeverDrawsWhatIsNotANumber) {
  auto logits = kLogits;
  logits[1] = kNaN;
  for (const SamplingOptions& options : {SamplingOptions{.temperature = 1},
                                         {.temperature = 5, .top_k = 7},
                                         {.temperature = 1, .top_p = 0.99},
                                         {.temperature = 1, .min_p = 1e-9}})
    EXPECT_EQ(draw(options, logits, 2000)[1], 0);
}

TEST(Sampling, FollowsTheTemperature) {
  for (const double temperature : {0.5, 1.0, 2.5})
    expect_distribution(draw({.temperature = temperature, .seed = 11}, kLogits, kDraws), softmax(kLogits, temperature));
}

TEST(Sampling, TopKKeepsTheKBest) {
  expect_distribution(draw({.temperature = 1, .top_k = 3, .seed = 5}, kLogits, kDraws),
                      only(softmax(kLogits, 1), {1, 3, 6}));
  expect_distribution(draw({.temperature = 1, .top_k = 1, .seed = 5}, kLogits, 100), only(softmax(kLogits, 1), {1}));
  expect_distribution(draw({.temperature = 1, .top_k = 1000, .seed = 5}, kLogits, kDraws), softmax(kLogits, 1));
}

TEST(Sampling, TopPKeepsTheSmallestSetThatReachesIt) {
  const auto p = softmax(kLogits, 1);  // descending: 1, 3, 6, 4, 7, 0, 2, 5
  expect_distribution(draw({.temperature = 1, .top_p = p[1] * 0.5, .seed = 7}, kLogits, 100), only(p, {1}));
  expect_distribution(draw({.temperature = 1, .top_p = p[1] + p[3] + 1e-4, .seed = 7}, kLogits, kDraws),
                      only(p, {1, 3, 6}));
  expect_distribution(draw({.temperature = 1, .top_p = p[1] + p[3] - 1e-4, .seed = 7}, kLogits, kDraws),
                      only(p, {1, 3}));
}

TEST(Sampling, TopPCountsWithinTopK) {
  // Among the best three, the best alone has exp(2) of the weight; the share is of those three, not of all.
  const auto three = only(softmax(kLogits, 1), {1, 3, 6});
  expect_distribution(
      draw({.temperature = 1, .top_k = 3, .top_p = three[1] + three[3] - 1e-4, .seed = 3}, kLogits, kDraws),
      only(three, {1, 3}));
}

TEST(Sampling, MinPKeepsWhatHasThisShareOfTheBest) {
  const auto p = softmax(kLogits, 1);
  const double least = std::exp(1.2 - 2.0) - 1e-4;  // token 6 just passes
  expect_distribution(draw({.temperature = 1, .min_p = least, .seed = 13}, kLogits, kDraws), only(p, {1, 3, 6}));
  expect_distribution(draw({.temperature = 1, .min_p = 1, .seed = 13}, kLogits, 100), only(p, {1}));
}

TEST(Sampling, RepetitionPenaltyLowersWhatWasSeen) {
  const std::vector<float> logits = {2, 1.9f, -1, -1.1f};
  Sampler sampler({.repetition_penalty = 1.5}, 4);
  const std::vector<std::int32_t> history = {0, 2, -7, 99};  // ids outside the vocabulary do not matter
  sampler.add_history(history);
  EXPECT_EQ(*sampler.sample(logits), 1);  // 2 / 1.5 < 1.9
  EXPECT_EQ(*sampler.sample(logits), 0);  // now 1 has been seen, too: 1.9 / 1.5
  const std::vector<float> negative = {-2, -2, -1, -1.1f};
  EXPECT_EQ(*sampler.sample(negative), 3);  // -1 · 1.5 < -1.1
}

TEST(Sampling, ASeedDecides) {
  const auto run = [](std::uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed}, static_cast<std::int64_t>(kLogits.size()));
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(*sampler.sample(kLogits));
    return ids;
  };
  EXPECT_EQ(run(42), run(42));
  EXPECT_NE(run(42), run(43));
  EXPECT_NE(run(0), run(1));
}

// tensor/sampling.h, word for word.
std::int32_t by_the_rule(const std::vector<float>& logits, const tensor::SamplingRow& row) {
  std::vector<std::int32_t> rank(logits.size());
  std::iota(rank.begin(), rank.end(), 0);
  const auto score = [&](std::int32_t id) {
    return tensor::sampling_score(logits[static_cast<std::size_t>(id)], 1, false);
  };
  std::sort(rank.begin(), rank.end(),
            [&](std::int32_t a, std::int32_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  const float best = score(rank[0]);
  const auto weight = [&](std::int32_t id) { return tensor::sampling_weight(score(id), best, row.per_octave); };
  if (row.top_k > 0 && row.top_k < std::ssize(rank)) rank.resize(static_cast<std::size_t>(row.top_k));
  if (row.top_p > 0) {
    std::uint64_t sum = 0, reached = 0;
    for (const std::int32_t id : rank) sum += weight(id);
    std::size_t kept = 0;
    while (kept < rank.size() && reached < std::max<std::uint64_t>(tensor::share_of(sum, row.top_p), 1))
      reached += weight(rank[kept++]);
    rank.resize(kept);
  }
  std::erase_if(rank, [&](std::int32_t id) { return weight(id) < row.least; });
  std::sort(rank.begin(), rank.end());
  std::uint64_t total = 0, sum = 0;
  for (const std::int32_t id : rank) total += weight(id);
  for (const std::int32_t id : rank)
    if ((sum += weight(id)) > tensor::share_of(total, row.draw)) return id;
  return -1;
}

RC_GTEST_PROP(Sampling, IsWhatTheRuleSays,
              (std::uint64_t seed, std::uint8_t k, std::uint8_t p, std::uint8_t m, bool equals)) {
  std::vector<float> logits(40);
  std::uint64_t state = seed;
  for (float& x : logits) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = static_cast<float>(static_cast<std::int64_t>(state >> 40) % 2000 - 1000) / (equals ? 500.0f : 130.0f);
    if (equals) x = std::round(x);
  }
  const SamplingOptions options{
      .temperature = 0.9, .top_k = k % 45, .top_p = (p % 100 + 1) / 100.0, .min_p = m % 50 / 100.0, .seed = seed};
  Sampler one(options, 40), other(options, 40);
  for (int i = 0; i < 5; ++i) {
    const auto id = one.sample(logits);
    RC_ASSERT(id.has_value());
    RC_ASSERT(*id == by_the_rule(logits, other.next_row()));
  }
}

TEST(Arithmetic, WeightsArePowers) {
  for (double octaves = 0; octaves < 40; octaves += 0.37) {
    const double weight = static_cast<double>(tensor::sampling_weight(static_cast<float>(-octaves), 0, 1));
    EXPECT_NEAR(weight, std::exp2(tensor::kWeightBits - static_cast<double>(static_cast<float>(octaves))),
                1 + weight * 3e-8);
  }
  EXPECT_EQ(tensor::sampling_weight(2, 2, 1), std::uint64_t{1} << tensor::kWeightBits);
  EXPECT_EQ(tensor::sampling_weight(-kInfinity, 2, 1), 0u);
  EXPECT_EQ(tensor::sampling_weight(-1e30f, 2, 1e10), 0u);
  for (const float x : {-kInfinity, -3.5f, -1e-40f, 0.0f, 1e-40f, 2.0f, kInfinity})
    EXPECT_EQ(tensor::score_of_key(tensor::sampling_key(x)), x);
  EXPECT_LT(tensor::sampling_key(-1), tensor::sampling_key(-0.5f));
  EXPECT_LT(tensor::sampling_key(-0.5f), tensor::sampling_key(0));
  EXPECT_LT(tensor::sampling_key(0), tensor::sampling_key(1e-30f));
}

TEST(Options, OutsideTheirRangesAreRefused) {
  EXPECT_TRUE(check_sampling({}));
  EXPECT_TRUE(
      check_sampling({.temperature = 0.7, .top_k = 40, .top_p = 0.95, .min_p = 0.05, .repetition_penalty = 1.1}));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const SamplingOptions& bad : {SamplingOptions{.temperature = -1},
                                     {.temperature = nan},
                                     {.temperature = 1e9},
                                     {.top_k = -1},
                                     {.top_p = 0},
                                     {.top_p = 1.5},
                                     {.top_p = nan},
                                     {.min_p = -0.1},
                                     {.min_p = 2},
                                     {.min_p = nan},
                                     {.repetition_penalty = 0},
                                     {.repetition_penalty = nan}}) {
    const auto checked = check_sampling(bad);
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().key, "engine.sampling_range");
  }
}

RC_GTEST_PROP(Sampling, AlwaysAnswersATokenThatThereIs,
              (const std::vector<float>& given, unsigned k, std::uint64_t seed)) {
  RC_PRE(!given.empty());
  bool any = false, infinite = false;
  for (const float x : given) {
    any = any || std::isfinite(x);
    infinite = infinite || x == kInfinity;
  }
  RC_PRE(any && !infinite);
  Sampler sampler({.temperature = 0.8,
                   .top_k = static_cast<std::int64_t>(k % 5),
                   .top_p = 0.9,
                   .min_p = 0.01,
                   .repetition_penalty = 1.2,
                   .seed = seed},
                  static_cast<std::int64_t>(given.size()));
  for (int i = 0; i < 3; ++i) {
    const auto id = sampler.sample(given);
    RC_ASSERT(id.has_value());
    RC_ASSERT(*id >= 0 && static_cast<std::size_t>(*id) < given.size());
    RC_ASSERT(std::isfinite(given[static_cast<std::size_t>(*id)]));
  }
}

}  // namespace
}  // namespace fathom::engine
