// A device chooses the tokens that the host would, draw for draw. Needs a GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "backends/backends.h"
#include "engine/sampler.h"
#include "tensor/backend.h"

namespace fathom::engine {
namespace {

struct Device {
  std::unique_ptr<tensor::Backend> backend;
  std::unique_ptr<tensor::Buffer> logits, seen, shared;
  std::int64_t rows, vocabulary;

  Status start(std::int64_t rows_, std::int64_t vocabulary_) {
    rows = rows_, vocabulary = vocabulary_;
    FATHOM_TRY(backend, backends::make_backend("cuda"));
    FATHOM_TRY(logits, backend->allocate_buffer(static_cast<Bytes>(rows * vocabulary) * 4));
    FATHOM_TRY(seen, backend->allocate_buffer(static_cast<Bytes>(rows * ((vocabulary + 31) / 32)) * 4));
    FATHOM_TRY(shared, backend->allocate_buffer(static_cast<Bytes>(rows) * (sizeof(tensor::SamplingRow) + 4),
                                                tensor::Placement::kShared));
    return {};
  }
  Result<std::vector<std::int32_t>> choose(const std::vector<float>& values, std::vector<Sampler>& samplers) {
    FATHOM_TRY_VOID(backend->upload(logits->data(), std::as_bytes(std::span(values))));
    auto* asked = reinterpret_cast<tensor::SamplingRow*>(shared->data());
    auto* ids =
        reinterpret_cast<std::int32_t*>(shared->data() + static_cast<Bytes>(rows) * sizeof(tensor::SamplingRow));
    for (std::size_t r = 0; r < samplers.size(); ++r) {
      asked[r] = samplers[r].next_row();
      asked[r].seen = static_cast<std::int64_t>(r);
    }
    backend->sample({.logits = reinterpret_cast<const float*>(logits->data()),
                     .rows = rows,
                     .vocabulary = vocabulary,
                     .asked = asked,
                     .seen = reinterpret_cast<std::uint32_t*>(seen->data()),
                     .ids = ids});
    FATHOM_TRY_VOID(backend->synchronize());
    return std::vector<std::int32_t>(ids, ids + rows);
  }
};

TEST(SampleOnDevice, ChoosesWhatTheHostDoes) {
  if (!backends::make_backend("cuda")) GTEST_SKIP() << "no GPU";
  const SamplingOptions every[] = {
      {},
      {.temperature = 1},
      {.temperature = 0.7, .top_k = 40},
      {.temperature = 1.3, .top_p = 0.9},
      {.temperature = 0.8, .top_k = 50, .top_p = 0.95, .min_p = 0.02, .repetition_penalty = 1.2},
      {.temperature = 2, .min_p = 0.1},
      {.repetition_penalty = 1.5},
      {.temperature = 100, .top_k = 3},
      {.temperature = 0.01},
      {.temperature = 1, .top_p = 0.01},
      {.temperature = 1, .top_k = 1}};
  for (const std::int64_t vocabulary :
       {std::int64_t{1}, std::int64_t{7}, std::int64_t{1000}, std::int64_t{102400}, std::int64_t{129280}}) {
    const std::int64_t rows = std::size(every);
    Device device;
    ASSERT_TRUE(device.start(rows, vocabulary));
    std::vector<Sampler> here, there;
    for (const SamplingOptions& options : every)
      here.emplace_back(options, vocabulary), there.emplace_back(options, vocabulary);
    std::mt19937 random(static_cast<unsigned>(vocabulary));
    std::normal_distribution<float> normal(0, 3);
    for (int step = 0; step < 12; ++step) {
      std::vector<float> logits(static_cast<std::size_t>(rows * vocabulary));
      for (float& x : logits) x = step % 3 == 2 ? std::round(normal(random)) : normal(random);  // with many equals
      if (step == 4 && vocabulary > 2)
        for (std::size_t i = 0; i < logits.size(); i += 3)
          logits[i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
      const auto got = device.choose(logits, there);
      ASSERT_TRUE(got) << error_text(got.error());
      for (std::int64_t r = 0; r < rows; ++r) {
        const auto want = here[static_cast<std::size_t>(r)].sample(
            std::span(logits).subspan(static_cast<std::size_t>(r * vocabulary), static_cast<std::size_t>(vocabulary)));
        ASSERT_EQ((*got)[static_cast<std::size_t>(r)], want ? *want : -1)
            << "vocabulary " << vocabulary << ", options " << r << ", step " << step;
      }
    }
  }
}

// More rows than go together, those that draw beside greedy ones: blocks of a row wait for each other, not for others.
TEST(SampleOnDevice, ManyRowsOfEveryKind) {
  if (!backends::make_backend("cuda")) GTEST_SKIP() << "no GPU";
  const SamplingOptions every[] = {{.temperature = 1},
                                   {},
                                   {.temperature = 0.7, .top_k = 400},
                                   {.temperature = 1.3, .top_k = 30, .top_p = 0.9},
                                   {.repetition_penalty = 1.5},
                                   {.temperature = 1.5, .top_p = 0.99, .min_p = 0.01, .repetition_penalty = 1.2}};
  for (const std::int64_t rows : {std::int64_t{2}, std::int64_t{32}, std::int64_t{100}}) {
    constexpr std::int64_t kVocabulary = 32003;
    Device device;
    ASSERT_TRUE(device.start(rows, kVocabulary));
    std::vector<Sampler> here, there;
    for (std::int64_t r = 0; r < rows; ++r) {
      SamplingOptions options = every[static_cast<std::size_t>(r) % std::size(every)];
      options.seed = static_cast<std::uint64_t>(r) + 1;
      here.emplace_back(options, kVocabulary), there.emplace_back(options, kVocabulary);
    }
    std::mt19937 random(static_cast<unsigned>(rows));
    std::normal_distribution<float> normal(0, 3);
    for (int step = 0; step < 3; ++step) {
      std::vector<float> logits(static_cast<std::size_t>(rows * kVocabulary));
      for (float& x : logits) x = step == 1 ? std::round(normal(random)) : normal(random);  // with many equals
      const auto got = device.choose(logits, there);
      ASSERT_TRUE(got) << error_text(got.error());
      for (std::int64_t r = 0; r < rows; ++r) {
        const auto want = here[static_cast<std::size_t>(r)].sample(std::span(logits).subspan(
            static_cast<std::size_t>(r * kVocabulary), static_cast<std::size_t>(kVocabulary)));
        ASSERT_EQ((*got)[static_cast<std::size_t>(r)], want ? *want : -1)
            << rows << " rows, row " << r << ", step " << step;
      }
    }
  }
}

}  // namespace
}  // namespace fathom::engine
